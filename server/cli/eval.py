"""`prefmix eval`: its flags, and from them a table of what policies and mixtures earn."""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from prefmix.server.cli.batch_engine import checked_content_hashes, remote_engine
from prefmix.server.cli.eval_rewards import load_rewards
from prefmix.server.cli.mixture_arguments import add_mixture_flags, mixture_overrides
from prefmix.server.config.errors import CommandError, ConfigError
from prefmix.server.launch.installation import require_extra

if TYPE_CHECKING:
    from prefmix.mixing.spec import MixtureSpec
    from prefmix.weights.engines.local import Engine
    from prefmix.weights.evaluation.evaluate import Evaluation

EPILOG = """\
Rows: the reference, each policy, uniform weights, every profile, parameter averages, and a grid
over the simplex. Win rates are against the first row. Policies come from CONFIG.yaml, the file of
'prefmix serve', from flags, or from a running server. The prompts file is that of 'prefmix fit';
use prompts that nothing was trained on. Everything after -- goes to vLLM.
Example: prefmix eval mixture.yaml --prompts heldout.jsonl --grid 4 --report found \\
    --reward helpful=rewards:helpful --reward harmless=./reward-model"""

Profiles = Mapping[str, Sequence[float]]
Shares = Mapping[str, float]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `prefmix eval`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EPILOG
    parser.usage = (
        "prefmix eval [CONFIG.yaml] --prompts FILE --reward NAME=REWARD [flags] [-- vLLM flags]"
    )
    add = parser.add_argument
    add("config", nargs="?", type=Path, metavar="CONFIG.yaml", help="configuration file")
    add_mixture_flags(parser)
    add(
        "--server",
        metavar="URL",
        help="a running prefmix server; its key: PREFMIX_API_KEY, or _FILE",
    )
    add("--prompts", type=Path, required=True, help="JSONL file of prompts")
    add(
        "--reward",
        action="append",
        required=True,
        metavar="NAME=REWARD",
        help="module:function in TRL's form, or a reward model's checkpoint; once an objective",
    )
    add("--weights-store", type=Path, metavar="FILE", help="profiles of this store, as of a fit")
    add("--grid", type=_positive, metavar="N", help="also mixtures in steps of 1 / N")
    add(
        "--average",
        action="append",
        metavar="PROFILE",
        help="a parameter average at these weights, or 'none'; repeatable; default uniform",
    )
    add("--responses", type=_positive, default=8, help="answers a prompt and row; default 8")
    add("--max-tokens", type=_positive, default=128, help="longest answer; default 128")
    add("--seed", type=int, default=0, help="of drawing answers; default 0")
    add("--cache", type=Path, default=Path(".prefmix/eval"), help="where draws are kept")
    add("--output", type=Path, help="JSON file for the numbers")
    add("--report", type=Path, help="folder for an HTML report; default beside --output")


@dataclass(frozen=True, kw_only=True)
class _Subject:
    """What is evaluated."""

    spec: MixtureSpec
    """With parameter averages behind its own policies."""
    own: MixtureSpec
    """Without."""
    engine: Callable[[], Engine]
    fingerprints: Mapping[str, str]
    profiles: Profiles
    averages: Mapping[str, Shares]
    cache: Path


def run(args: argparse.Namespace, passthrough: Sequence[str]) -> int:
    """Measures, prints the table and writes what was asked for; returns the exit code."""
    require_extra("fit")
    from prefmix.mixing.checkpoints.compatibility import CompatibilityError
    from prefmix.mixing.checkpoints.safe_files import CheckpointFilesError
    from prefmix.mixing.spec import SpecError
    from prefmix.policies.train import TrainError
    from prefmix.weights.engines.local import EngineError
    from prefmix.weights.engines.prompts import PromptsError
    from prefmix.weights.engines.remote import RemoteError
    from prefmix.weights.evaluation.parameter_average import AveragingError
    from prefmix.weights.fit.settings import FitError
    from prefmix.weights.store.errors import StoreFormatError

    try:
        with tempfile.TemporaryDirectory(prefix="prefmix-eval-") as scratch:
            found, about = _measured(args, passthrough, Path(scratch))
    except (ConfigError, SpecError, CompatibilityError, CheckpointFilesError) as error:
        raise CommandError(str(error), exit_code=2) from None
    except StoreFormatError as error:
        raise CommandError(str(error), exit_code=2) from None
    except (AveragingError, EngineError, FitError, TrainError, PromptsError, RemoteError) as error:
        raise CommandError(str(error)) from None
    _publish(args, found, about)
    return 0


def _measured(
    args: argparse.Namespace, passthrough: Sequence[str], scratch: Path
) -> tuple[Evaluation, dict[str, object]]:
    """(what was found, what it was found with)."""
    from prefmix.weights.engines.prompts import hash_of_prompts, read_prompts
    from prefmix.weights.evaluation.evaluate import evaluate
    from prefmix.weights.evaluation.rows import evaluation_rows

    rewards = load_rewards(args.reward, allow_unsafe_weights=bool(args.allow_unsafe_weights))
    prompts = read_prompts(args.prompts)
    subject = _subject(args, passthrough, scratch)
    rows = evaluation_rows(subject.own, subject.profiles, averages=subject.averages, grid=args.grid)
    drawing = {"num_responses": args.responses, "max_tokens": args.max_tokens, "seed": args.seed}
    found = evaluate(
        prompts,
        rows,
        rewards,
        spec=subject.spec,
        engine=subject.engine,
        fingerprints=subject.fingerprints,
        cache=subject.cache,
        kl_members=subject.own.member_names,
        **drawing,
    )
    hashes = {name: subject.fingerprints[name] for name in subject.own.member_names}
    about = {"prompts": hash_of_prompts(prompts), "rewards": args.reward, "policies": hashes}
    return found, about | {"settings": drawing}


def _subject(args: argparse.Namespace, passthrough: Sequence[str], scratch: Path) -> _Subject:
    has_policies = args.config is not None or args.policy or args.base
    if bool(has_policies) == bool(args.server):
        raise CommandError(
            "give either policies (a CONFIG.yaml, --policy NAME=MODEL, or --base and --adapter) or "
            "--server URL",
            exit_code=2,
        )
    if args.server:
        return _served(args, passthrough, scratch)
    return _in_process(args, passthrough, scratch)


def _served(args: argparse.Namespace, passthrough: Sequence[str], scratch: Path) -> _Subject:
    if passthrough:
        raise CommandError(
            "words after '--' are for vLLM in this process; --server has its own", exit_code=2
        )
    if set(args.average or ()) - {"none"}:
        raise CommandError(
            "--average needs the policies' files; give them as CONFIG.yaml, --policy or --base "
            "and --adapter instead of --server",
            exit_code=2,
        )
    remote, models = remote_engine(args.server)
    profiles = _stored(args.weights_store, remote.spec) if args.weights_store else remote.profiles
    return _Subject(
        spec=remote.spec,
        own=remote.spec,
        engine=lambda: remote,
        fingerprints=models,
        profiles=profiles,
        averages={},
        cache=scratch,  # what a server runs may change: nothing is kept
    )


def _in_process(args: argparse.Namespace, passthrough: Sequence[str], scratch: Path) -> _Subject:
    from prefmix.server.config.serve_config import load_config
    from prefmix.server.launch.in_process import start_engine
    from prefmix.weights.evaluation.parameter_average import AveragingError, with_averages
    from prefmix.weights.evaluation.rows import average_member

    config = load_config(args.config, mixture_overrides(args))
    own = config.spec()
    store = args.weights_store or (config.weights_store and Path(config.weights_store))
    if store and (args.weights_store or store.exists()):
        profiles: Profiles = _stored(store, own)
    else:
        profiles = config.profile_set(own).profiles if config.profiles else {}
    checked_content_hashes(config, own)
    averages = _averages(args.average, own, profiles)
    members = {average_member(name): shares for name, shares in averages.items()}
    try:
        spec = with_averages(own, members, scratch)
    except AveragingError as error:
        if args.average:
            raise
        print(f"no parameter average: {error}")
        spec, averages = own, {}
    return _Subject(
        spec=spec,
        own=own,
        engine=lambda: start_engine(config, spec, passthrough),
        fingerprints=checked_content_hashes(config, spec),
        profiles=profiles,
        averages=averages,
        cache=args.cache,
    )


def _stored(path: Path, spec: MixtureSpec) -> Profiles:
    from prefmix.weights.store.errors import StoreFormatError
    from prefmix.weights.store.format import for_mixture, parse

    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise StoreFormatError(f"{path}: cannot be read ({error})") from None
    return for_mixture(parse(text, source=str(path)), spec, source=str(path)).profiles


def _averages(
    asked: Sequence[str] | None, spec: MixtureSpec, profiles: Profiles
) -> dict[str, Shares]:
    """Average's name -> shares of the members, for the averages that are wanted."""
    from prefmix.weights.evaluation.rows import UNIFORM, nonzero, uniform_shares

    if asked is None:
        asked = [UNIFORM] if len(spec.policies) > 1 else []
    found: dict[str, Shares] = {}
    for name in asked:
        if name == UNIFORM:
            found[name] = uniform_shares(spec)
        elif name in profiles:
            found[name] = nonzero(spec.member_names, profiles[name])
        elif name != "none":
            allowed = ", ".join([UNIFORM, "none", *profiles])
            raise CommandError(f"--average is {name!r}; allowed: {allowed}", exit_code=2)
    return found


def _publish(args: argparse.Namespace, found: Evaluation, about: Mapping[str, object]) -> None:
    from prefmix.weights.evaluation.verdict import verdict
    from prefmix.weights.report.evaluation_report import write_evaluation_report

    answers = verdict(found)
    print("\n".join([found.table(), "", *answers]))
    if args.output is not None:
        numbers = {**found.to_dict(), "verdict": answers, "provenance": about}
        args.output.write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
        print(f"\nnumbers  {args.output}")
    folder = args.report
    if folder is None and args.output is not None:
        folder = args.output.with_name(args.output.stem + "-report")
    if folder is not None:
        page = write_evaluation_report(
            found, folder, title="What policies and mixtures earn", provenance=about
        )
        print(f"report   {page}")


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number}; expected 1 or more")
    return number

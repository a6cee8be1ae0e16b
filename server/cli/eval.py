"""`prefmix eval`: reads the flags, measures rewards, and prints and writes the table."""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from prefmix.mixing.ways_to_mix import MIXINGS
from prefmix.server.cli.eval_rewards import check_judges, check_rewards, load_judges, load_rewards
from prefmix.server.cli.eval_subject import eval_subject
from prefmix.server.cli.mixture_arguments import add_mixture_arguments
from prefmix.server.cli.output_places import check_file, check_folder
from prefmix.server.config.errors import CommandError, ConfigError
from prefmix.server.launch.installation import require_extra

if TYPE_CHECKING:
    from prefmix.weights.evaluation.evaluation import Evaluation

EPILOG = """\
The rows of the table are the reference, each policy, uniform weights, every profile, and a grid
over the simplex. Adapters of one base are mixed in both ways, logits and parameters; of full
checkpoints, parameter averages are further rows. Win rates are against the first row.

The policies come from CONFIG.yaml (the file of 'prefmix serve'), from flags or from --server. The
prompts file is like that of 'prefmix fit'; use prompts on which nothing was trained. All words
after -- go to vLLM.

Example: prefmix eval mixture.yaml --prompts heldout.jsonl --grid 4 --report found \\
    --reward helpful=rewards:helpful --reward harmless=./reward-model"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `prefmix eval`."""
    parser.epilog = EPILOG
    parser.usage = (
        "prefmix eval [CONFIG.yaml] --prompts FILE --reward NAME=REWARD [flags] [-- vLLM flags]"
    )
    add_mixture_arguments(parser)
    _add_data_flags(parser.add_argument_group("input and output"))
    _add_row_flags(parser.add_argument_group("rows"))
    _add_sampling_flags(parser.add_argument_group("sampling"))


def _add_data_flags(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--server",
        metavar="URL",
        help="measure this running prefmix server, whose key is in PREFMIX_API_KEY or "
        "PREFMIX_API_KEY_FILE",
    )
    add("--prompts", type=Path, required=True, metavar="FILE", help="JSONL file of prompts")
    add(
        "--reward",
        action="append",
        required=True,
        metavar="NAME=REWARD",
        help="reward of an objective: module:function or file.py:function in TRL's form, or a "
        "reward model's checkpoint; repeat for each objective",
    )
    add(
        "--judge",
        action="append",
        metavar="NAME=JUDGE",
        help="further objective, by pairs: module:function or file.py:function of (prompts, "
        "answers, other answers), or URL#MODEL of an OpenAI-compatible chat model, which is told "
        "NAME; its key is in PREFMIX_JUDGE_API_KEY; repeat for each",
    )
    add("--output", type=Path, metavar="FILE", help="JSON file for the numbers")
    add(
        "--report",
        type=Path,
        metavar="FOLDER",
        help="folder for an HTML report; default: beside --output",
    )
    add(
        "--cache",
        type=Path,
        metavar="FOLDER",
        default=Path(".prefmix/eval"),
        help="folder that keeps draws for the next run; default .prefmix/eval",
    )


def _add_row_flags(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--weights-store",
        type=Path,
        metavar="FILE",
        help="store file whose profiles become rows, such as the output of a fit",
    )
    add("--grid", type=_positive, metavar="N", help="add mixtures in steps of 1 / N")
    add(
        "--mixing",
        choices=(*MIXINGS, "both"),
        help="the ways to mix of all mixtures; default: both for adapters of one base, logits for "
        "full checkpoints",
    )
    add(
        "--candidates",
        type=_positive,
        default=1,
        metavar="N",
        help="add a row to each mixture of logits, without those of the grid, whose answers are "
        "picked from N candidates (docs/candidates.md); default 1, which adds none",
    )
    add(
        "--average",
        action="append",
        metavar="PROFILE",
        help="of full checkpoints, add the parameter average at a profile's weights; 'none' adds "
        "none; repeat for each; default uniform",
    )


def _add_sampling_flags(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--responses", type=_positive, default=8, help="answers to each prompt; default 8")
    add("--max-tokens", type=_positive, default=128, help="longest answer; default 128")
    add("--seed", type=int, default=0, help="seed of the sampling; default 0")


def run(args: argparse.Namespace, passthrough: Sequence[str]) -> int:
    """Measures rewards, prints the table and writes numbers and report; returns the exit code."""
    require_extra("fit")
    from prefmix.mixing.checkpoints.compatibility import CompatibilityError
    from prefmix.mixing.checkpoints.safe_files import CheckpointFilesError
    from prefmix.mixing.spec import SpecError
    from prefmix.policies.errors import TrainError
    from prefmix.weights.averages.errors import ParameterAverageError
    from prefmix.weights.engines.errors import EngineError
    from prefmix.weights.engines.prompts import PromptsError
    from prefmix.weights.engines.remote import RemoteError
    from prefmix.weights.fit.settings import FitError
    from prefmix.weights.store.errors import StoreFormatError

    check_file("--output", args.output)
    check_folder("--report", args.report)
    check_folder("--cache", args.cache)
    try:
        with tempfile.TemporaryDirectory(prefix="prefmix-eval-") as scratch:
            found, about = _measured(args, passthrough, Path(scratch))
    except (ConfigError, SpecError, CompatibilityError, CheckpointFilesError) as error:
        raise CommandError(str(error), exit_code=2) from None
    except StoreFormatError as error:
        raise CommandError(str(error), exit_code=2) from None
    except (
        ParameterAverageError,
        EngineError,
        FitError,
        TrainError,
        PromptsError,
        RemoteError,
    ) as error:
        raise CommandError(str(error)) from None
    _publish(args, found, about)
    return 0


def _measured(
    args: argparse.Namespace, passthrough: Sequence[str], scratch: Path
) -> tuple[Evaluation, dict[str, object]]:
    """Returns (rewards, provenance)."""
    from prefmix.weights.engines.prompts import hash_of_prompts, read_prompts
    from prefmix.weights.evaluation.evaluate import evaluate
    from prefmix.weights.evaluation.rows import evaluation_rows

    rewards = load_rewards(args.reward, allow_unsafe_weights=bool(args.allow_unsafe_weights))
    judges = load_judges(args.judge or (), taken=rewards)
    prompts = read_prompts(args.prompts)
    check_rewards(rewards, prompts)
    check_judges(judges, prompts)
    subject = eval_subject(args, passthrough, scratch)
    rows = evaluation_rows(
        subject.own,
        subject.profiles,
        averages=subject.averages,
        grid=args.grid,
        ways=subject.ways,
        candidates=args.candidates,
    )
    drawing = {"num_responses": args.responses, "max_tokens": args.max_tokens, "seed": args.seed}
    found = evaluate(
        prompts,
        rows,
        rewards,
        spec=subject.spec,
        engine=subject.engine,
        content_hashes=subject.content_hashes,
        cache=subject.cache,
        judges=judges,
        kl_members=subject.own.member_names,
        **drawing,
    )
    hashes = {name: subject.content_hashes[name] for name in subject.own.member_names}
    about = {"prompts": hash_of_prompts(prompts), "rewards": args.reward, "policies": hashes}
    about |= {"judges": args.judge} if args.judge else {}
    return found, about | {"settings": drawing}


def _publish(args: argparse.Namespace, found: Evaluation, about: Mapping[str, object]) -> None:
    from prefmix.weights.evaluation import both_ways
    from prefmix.weights.evaluation.verdict import verdict
    from prefmix.weights.report.evaluation_report import write_evaluation_report
    from prefmix.weights.store.text_tables import aligned

    answers = verdict(found)
    tables = [found.cells, both_ways.cells(found), both_ways.candidate_cells(found)]
    shown = [f"{aligned(cells)}\n" for cells in tables if len(cells) > 1]
    print("\n".join([*shown, *answers]))
    if args.output is not None:
        numbers = {
            **found.to_dict(),
            **both_ways.to_dicts(found),
            "verdict": answers,
            "provenance": about,
        }
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

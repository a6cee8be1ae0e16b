"""`prefmix fit`: reads the flags, runs the fit, and writes a weights store file and a report."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefmix.server.cli.batch_engine import checked_content_hashes, remote_engine
from prefmix.server.cli.mixture_arguments import add_mixture_flags, mixture_overrides
from prefmix.server.config.errors import CommandError, ConfigError
from prefmix.server.launch.installation import require_extra

if TYPE_CHECKING:
    from prefmix.mixing.spec import MixtureSpec
    from prefmix.server.config.serve_config import ServeConfig
    from prefmix.weights.engines.local import Engine
    from prefmix.weights.fit.result import FitResult
    from prefmix.weights.fit.settings import FitSettings

EPILOG = """\
The prompts file has one JSON object on each line: {"prompt": "..."} or {"messages": [...]}.
The policies come from CONFIG.yaml (the file of 'prefmix serve'), from flags or from --server.
All words after -- go to vLLM.

Example: prefmix fit mixture.yaml --prompts prompts.jsonl --output weights.json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `prefmix fit`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EPILOG
    parser.usage = (
        "prefmix fit [CONFIG.yaml] --prompts FILE | --scores FILE [flags] [-- vLLM flags]"
    )
    parser.add_argument(
        "config", nargs="?", type=Path, metavar="CONFIG.yaml", help="configuration file"
    )
    add_mixture_flags(parser.add_argument_group("mixture"))
    _add_data_flags(parser.add_argument_group("input and output"))
    _add_objective_flags(parser.add_argument_group("objective"))
    _add_sampling_flags(parser.add_argument_group("sampling"))
    _add_descent_flags(parser.add_argument_group("descent, for --sampler reference and --scores"))


def _add_data_flags(group: argparse._ArgumentGroup) -> None:
    source = group.add_mutually_exclusive_group(required=True)
    source.add_argument("--prompts", type=Path, metavar="FILE", help="JSONL file of prompts")
    source.add_argument(
        "--scores", type=Path, metavar="FILE", help="Parquet table of scores, instead of sampling"
    )
    add = group.add_argument
    add(
        "--server",
        metavar="URL",
        help="draw and score with this running prefmix server, whose key is in PREFMIX_API_KEY or "
        "PREFMIX_API_KEY_FILE",
    )
    add("--output", type=Path, required=True, metavar="FILE", help="store file to write")
    add("--profile", default="fitted", help="name of the fitted profile; default fitted")
    add(
        "--report",
        type=Path,
        metavar="FOLDER",
        help="folder for the HTML report; default: beside --output",
    )
    add(
        "--cache",
        type=Path,
        metavar="FOLDER",
        default=Path(".prefmix/fit"),
        help="folder that keeps draws for the next run; default .prefmix/fit",
    )


def _add_objective_flags(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--objective",
        choices=("maxmin", "fixed"),
        default="maxmin",
        help="maxmin: equal distance from every policy (default); fixed: the given importances, "
        "which are only measured",
    )
    add(
        "--importance",
        action="append",
        metavar="NAME=NUMBER",
        help="importance of a policy for --objective fixed; repeat for each policy",
    )
    add("--min-weight", type=float, default=0.0, help="smallest weight of any policy; default 0")
    add("--beta", type=float, help="KL coefficient, if --scores holds rewards")


def _add_sampling_flags(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--sampler",
        choices=("mixture", "reference"),
        default="mixture",
        help="mixture: fit the mixture that is served (default); reference: the paper's estimator",
    )
    add("--responses", type=int, default=16, help="responses to each prompt; default 16")
    add("--max-tokens", type=int, default=128, help="longest response; default 128")
    add("--rounds", type=int, default=12, help="rounds of --sampler mixture; default 12")
    add("--round-prompts", type=int, default=64, help="prompts in each round; default 64")
    add("--seed", type=int, default=0, help="seed of the sampling and the batches; default 0")


def _add_descent_flags(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--steps", type=int, default=600, help="steps of the descent; default 600")
    add("--batch", type=int, default=64, help="prompts in each step; default 64")
    add(
        "--step-size",
        type=float,
        help="size of a step in units of 1 / curvature, default 4; with --sampler mixture, share "
        "of a Newton step that each round takes, default 0.5",
    )
    add(
        "--schedule",
        choices=("sqrt", "constant"),
        default="sqrt",
        help="sqrt: steps shrink with the square root of their number (default); constant: equal",
    )
    add("--restarts", type=int, default=8, help="starting points of the descent; default 8")


def run(args: argparse.Namespace, passthrough: Sequence[str]) -> int:
    """Fits, prints the summary, writes store file and report; returns the exit code."""
    require_extra("fit")
    from prefmix.mixing.checkpoints.compatibility import CompatibilityError
    from prefmix.mixing.checkpoints.safe_files import CheckpointFilesError
    from prefmix.mixing.spec import SpecError, check_name
    from prefmix.weights.engines.local import EngineError
    from prefmix.weights.engines.prompts import PromptsError
    from prefmix.weights.engines.remote import RemoteError
    from prefmix.weights.fit.score_table import ScoreTableError
    from prefmix.weights.fit.settings import FitError

    try:
        check_name(args.profile, what="profile")
        settings = _settings(args)
        result, spec, provenance = _fit(args, settings, passthrough)
    except (ConfigError, SpecError, CompatibilityError, CheckpointFilesError) as error:
        raise CommandError(str(error), exit_code=2) from None
    except (EngineError, FitError, PromptsError, RemoteError, ScoreTableError) as error:
        raise CommandError(str(error)) from None
    _publish(args, result, spec, {**provenance, "settings": _plain(settings)})
    return 0


def _settings(args: argparse.Namespace) -> FitSettings:
    from prefmix.weights.fit.mirror_descent import DescentSettings
    from prefmix.weights.fit.settings import FitError, FitSettings

    importances = _importances(args)
    steps = {} if args.step_size is None else {"step_size": args.step_size}
    rounds = {} if args.step_size is None else {"round_step_size": args.step_size}
    try:
        descent = DescentSettings(
            num_steps=args.steps,
            batch_prompts=args.batch,
            schedule=args.schedule,
            min_weight=args.min_weight,
            seed=args.seed,
            **steps,
        )
    except ValueError as error:
        raise FitError(str(error)) from None
    return FitSettings(
        sampler=args.sampler,
        importances=importances,
        num_responses=args.responses,
        max_tokens=args.max_tokens,
        num_rounds=args.rounds,
        round_prompts=args.round_prompts,
        num_restarts=args.restarts,
        descent=descent,
        **rounds,
    )


def _importances(args: argparse.Namespace) -> dict[str, float] | None:
    if args.objective == "maxmin":
        if args.importance:
            raise CommandError(
                "--importance is only used with --objective fixed; add that or leave it out",
                exit_code=2,
            )
        return None
    importances: dict[str, float] = {}
    for item in args.importance or ():
        name, _, number = item.partition("=")
        try:
            importances[name] = float(number)
        except ValueError:
            raise CommandError(
                f"--importance is {item!r}; expected NAME=NUMBER, such as helpful=2", exit_code=2
            ) from None
    if not importances:
        raise CommandError("--objective fixed needs --importance NAME=NUMBER", exit_code=2)
    return importances


def _fit(
    args: argparse.Namespace, settings: FitSettings, passthrough: Sequence[str]
) -> tuple[FitResult, MixtureSpec | None, dict[str, Any]]:
    """Returns (result, mixture if one is known, provenance)."""
    from prefmix.weights.engines.prompts import hash_of_prompts, read_prompts
    from prefmix.weights.fit import score_table
    from prefmix.weights.fit.job import FitJob
    from prefmix.weights.fit.table_fit import fit_table

    has_policies = args.config is not None or args.policy or args.base
    config, spec = _spec(args) if has_policies else (None, None)
    if args.scores is not None:
        names = None if spec is None else spec.policy_names
        table = score_table.read(args.scores, policies=names)
        found = fit_table(table, settings, beta=args.beta)
        return found, spec, {"scores": _file_hash(args.scores)}
    prompts = read_prompts(args.prompts)
    engine, spec, content_hashes = _engine(args, config, spec, passthrough)
    job = FitJob(
        spec=spec,
        prompts=prompts,
        settings=settings,
        engine=engine,
        content_hashes=content_hashes,
        cache=args.cache,
    )
    return job.run(), spec, {"prompts": hash_of_prompts(prompts), "policies": content_hashes}


def _spec(args: argparse.Namespace) -> tuple[ServeConfig, MixtureSpec]:
    from prefmix.server.config.serve_config import load_config
    from prefmix.weights.fit.settings import FitError

    config = load_config(args.config, mixture_overrides(args))
    spec = config.spec()
    if spec.weight_space != "simplex":
        raise FitError("a fit finds weights on the simplex; weight_space is affine")
    return config, spec


def _engine(
    args: argparse.Namespace,
    config: ServeConfig | None,
    spec: MixtureSpec | None,
    passthrough: Sequence[str],
) -> tuple[Callable[[], Engine], MixtureSpec, dict[str, str]]:
    """Returns (function that makes the engine, its mixture, member -> content hash)."""
    if args.server is not None:
        remote, models = remote_engine(args.server)
        return lambda: remote, remote.spec, models
    if config is None or spec is None:
        raise CommandError(
            "no policies: give a CONFIG.yaml, --policy NAME=MODEL, --base and --adapter, or "
            "--server URL",
            exit_code=2,
        )
    from prefmix.server.launch.in_process import start_engine

    hashes = checked_content_hashes(config, spec)
    return lambda: start_engine(config, spec, passthrough), spec, hashes


def _publish(
    args: argparse.Namespace,
    result: FitResult,
    spec: MixtureSpec | None,
    provenance: dict[str, Any],
) -> None:
    from prefmix.weights.fit.output import write_store
    from prefmix.weights.fit.summary import summary
    from prefmix.weights.report.fit_report import write_report

    print(summary(result))
    names = result.names if spec is None else spec.member_names
    provenance = write_store(args.output, result, names, profile=args.profile, about=provenance)
    folder = args.report or args.output.with_name(args.output.stem + "-report")
    page = write_report(result, folder, title=f"Fit of {args.profile}", provenance=provenance)
    print(f"\nweights  {args.output}\nreport   {page}")


def _plain(settings: FitSettings) -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(settings)


def _file_hash(path: Path) -> str:
    import hashlib

    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

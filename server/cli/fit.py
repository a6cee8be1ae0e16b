"""`prefmix fit`: reads the flags, runs the fit, and writes a weights store file and a report."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefmix.server.cli.batch_engine import checked_content_hashes, local_engine, remote_engine
from prefmix.server.cli.eval_rewards import check_rewards, load_rewards
from prefmix.server.cli.fit_arguments import (
    REWARD_OBJECTIVES,
    add_data_flags,
    add_settings_flags,
    check_reward_flags,
    check_used_flags,
    importances_of,
    settings_from_flags,
)
from prefmix.server.cli.mixture_arguments import add_mixture_arguments, mixture_overrides
from prefmix.server.cli.output_places import check_file, check_folder
from prefmix.server.config.errors import CommandError, ConfigError
from prefmix.server.launch.installation import require_extra

if TYPE_CHECKING:
    from prefmix.mixing.spec import MixtureSpec
    from prefmix.server.config.serve_config import ServeConfig
    from prefmix.weights.engines.engine import Engine
    from prefmix.weights.fit.result import FitResult
    from prefmix.weights.fit.settings import FitSettings
    from prefmix.weights.reward_fit.result import RewardFitResult
    from prefmix.weights.store.change import Change

EPILOG = """\
The prompts file has one JSON object on each line: {"prompt": "..."} or {"messages": [...]}.
The policies come from CONFIG.yaml (the file of 'prefmix serve'), from flags or from --server.
All words after -- go to vLLM.

Example: prefmix fit mixture.yaml --prompts prompts.jsonl --output weights.json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `prefmix fit`."""
    parser.epilog = EPILOG
    parser.usage = (
        "prefmix fit [CONFIG.yaml] --prompts FILE | --scores FILE [flags] [-- vLLM flags]"
    )
    add_mixture_arguments(parser)
    add_data_flags(parser.add_argument_group("input and output"))
    add_settings_flags(parser)


def run(args: argparse.Namespace, passthrough: Sequence[str]) -> int:
    """Fits, prints the summary, writes store file and report; returns the exit code."""
    require_extra("fit")
    from prefmix.mixing.checkpoints.compatibility import CompatibilityError
    from prefmix.mixing.checkpoints.safe_files import CheckpointFilesError
    from prefmix.mixing.spec import SpecError, check_name
    from prefmix.policies.errors import TrainError
    from prefmix.weights.engines.errors import EngineError
    from prefmix.weights.engines.prompts import PromptsError
    from prefmix.weights.engines.remote import RemoteError
    from prefmix.weights.fit.output import check_output
    from prefmix.weights.fit.score_table import ScoreTableError
    from prefmix.weights.fit.settings import FitError
    from prefmix.weights.store.errors import StoreError
    from prefmix.weights.store.profiles import ProfileError

    try:
        check_name(args.profile, what="profile")
        check_reward_flags(args)
        check_used_flags(args)
        settings = settings_from_flags(args)
        check_file("--output", args.output)
        check_folder("--report", args.report)
        check_folder("--cache", args.cache)
        if not args.force:
            check_output(args.output, None)
        result, spec, provenance = _fit(args, settings, passthrough)
        _publish(args, result, spec, provenance)
    except (ConfigError, SpecError, CompatibilityError, CheckpointFilesError) as error:
        raise CommandError(str(error), exit_code=2) from None
    except (
        *(EngineError, FitError, PromptsError, RemoteError, ScoreTableError),
        *(StoreError, ProfileError, TrainError),
    ) as error:
        raise CommandError(str(error)) from None
    return 0


def _fit(
    args: argparse.Namespace, settings: FitSettings, passthrough: Sequence[str]
) -> tuple[FitResult | RewardFitResult, MixtureSpec | None, dict[str, Any]]:
    """Returns (result, mixture if one is known, provenance)."""
    from prefmix.weights.engines.prompts import hash_of_prompts, read_prompts
    from prefmix.weights.fit import score_table
    from prefmix.weights.fit.job import FitJob
    from prefmix.weights.fit.output import check_output
    from prefmix.weights.fit.sampling import FitInputs
    from prefmix.weights.fit.table_fit import fit_table
    from prefmix.weights.reward_fit.job import RewardFitJob

    has_policies = args.config is not None or args.policy or args.base
    config, spec = _spec(args) if has_policies else (None, None)
    if args.scores is not None:
        if args.mixing is not None:
            raise CommandError(
                "--mixing says what is deployed and measured, and --scores has no engine to measure"
                " with; leave it out, or give the profile its way by `prefmix weights set`",
                exit_code=2,
            )
        names = None if spec is None else spec.policy_names
        table = score_table.read(args.scores, policies=names)
        found = fit_table(table, settings, beta=args.beta)
        return found, spec, {"scores": _file_hash(args.scores), "settings": _plain(settings)}
    prompts = read_prompts(args.prompts)
    is_of_rewards = args.objective in REWARD_OBJECTIVES
    rewards = {}
    if is_of_rewards:
        rewards = load_rewards(args.reward, allow_unsafe_weights=bool(args.allow_unsafe_weights))
        check_rewards(rewards, prompts)
    engine, spec, content_hashes = _engine(args, config, spec, passthrough)
    if not args.force:
        check_output(args.output, spec.member_names)
    settings = replace(settings, mixing=args.mixing or spec.mixing)
    inputs = FitInputs(
        spec=spec,
        prompts=prompts,
        settings=settings,
        engine=engine,
        content_hashes=content_hashes,
        cache=args.cache,
    )
    about = {
        "prompts": hash_of_prompts(prompts),
        "policies": content_hashes,
        "settings": _plain(settings),
    }
    if not is_of_rewards:
        return FitJob(inputs).run(), spec, about
    job = RewardFitJob(
        inputs, rewards=rewards, aim=args.objective, importances=importances_of(args)
    )
    return job.run(), spec, about | {"rewards": args.reward}


def _spec(args: argparse.Namespace) -> tuple[ServeConfig, MixtureSpec]:
    from prefmix.server.config.config_file import load_config
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
    hashes = checked_content_hashes(config, spec)
    return lambda: local_engine(config, spec, passthrough), spec, hashes


def _publish(
    args: argparse.Namespace,
    result: FitResult | RewardFitResult,
    spec: MixtureSpec | None,
    provenance: dict[str, Any],
) -> None:
    from prefmix.weights.fit.output import write_profile
    from prefmix.weights.fit.result import FitResult
    from prefmix.weights.fit.summary import summary
    from prefmix.weights.report.fit_report import write_report
    from prefmix.weights.report.reward_report import write_reward_report
    from prefmix.weights.reward_fit.summary import summary as reward_summary

    print(summary(result) if isinstance(result, FitResult) else reward_summary(result))
    names = result.names if spec is None else spec.member_names
    mixing = provenance["settings"]["mixing"]
    is_default = mixing == "logits" and (spec is None or spec.mixing == mixing)
    change, provenance = write_profile(
        args.output,
        result,
        names,
        profile=args.profile,
        about=provenance,
        mixing=None if is_default else mixing,
        make_default=args.default,
        force=args.force,
    )
    folder = args.report or args.output.with_name(f"{args.output.stem}-{args.profile}-report")
    title = f"Fit of {args.profile}"
    if isinstance(result, FitResult):
        page = write_report(result, folder, title=title, provenance=provenance)
    else:
        page = write_reward_report(result, folder, title=title, provenance=provenance)
    print(f"\nweights  {args.output}, {_told(change, args.profile)}\nreport   {page}")
    for name, mixing in change.lost_mixings.items():
        print(f"\nThe profile {name!r} mixed {mixing}; it now leaves the way to mix to the server.")
    if change.after.default != args.profile:
        print(
            f"\nThe default is still {change.after.default!r}. New weights are for requests with "
            f"preference_profile {args.profile!r},\nor model NAME@{args.profile}. For all others: "
            f"prefmix weights default {args.profile} --weights-store {args.output}"
        )


def _told(change: Change, profile: str) -> str:
    version = f"version {change.after.version}"
    if change.before is None:
        return f"{version}, profile {profile!r} is the default"
    if change.is_noop:
        return f"{version}, which has these weights already"
    verb = "replaced" if profile in change.before.profiles else "added"
    return f"version {change.before.version} -> {change.after.version}, profile {profile!r} {verb}"


def _plain(settings: FitSettings) -> dict[str, Any]:
    return asdict(settings)


def _file_hash(path: Path) -> str:
    import hashlib

    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

"""The flags of `prefmix fit`, and the settings of a fit that they give."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from prefmix.mixing.name_list import listed
from prefmix.mixing.ways_to_mix import MIXINGS
from prefmix.server.config.errors import CommandError

if TYPE_CHECKING:
    from prefmix.weights.fit.settings import FitSettings


BSMD = "bsmd"
"""The preset of the founding paper's algorithm, batch stochastic mirror descent."""

REWARD_OBJECTIVES = ("max-min-reward", "mean", "weighted")
"""The objectives that are fitted to rewards."""


def add_data_flags(group: argparse._ArgumentGroup) -> None:
    """Adds the flags that name files and the server."""
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
    add(
        "--output",
        type=Path,
        required=True,
        metavar="FILE",
        help="store file that the profile is written to; other profiles in it stay",
    )
    add("--profile", default="fitted", help="name of the fitted profile; default fitted")
    add(
        "--default",
        action="store_true",
        help="make the profile the default of the store; that of a new store it is anyway",
    )
    add(
        "--force",
        action="store_true",
        help="replace --output by a new store, whatever the file holds",
    )
    add(
        "--report",
        type=Path,
        metavar="FOLDER",
        help="folder for the HTML report; default: beside --output, STORE-PROFILE-report",
    )
    add(
        "--cache",
        type=Path,
        metavar="FOLDER",
        default=Path(".prefmix/fit"),
        help="folder that keeps draws for the next run; default .prefmix/fit",
    )


_ROUND_DEFAULTS: dict[str, object] = {"rounds": 6, "round_prompts": 64}
_DESCENT_DEFAULTS: dict[str, object] = {
    "steps": 600,
    "batch": 64,
    "schedule": "sqrt",
    "restarts": 8,
}


def add_settings_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that `settings_from_flags` reads, in groups."""
    _add_objective_flags(parser.add_argument_group("objective"))
    _add_sampling_flags(parser.add_argument_group("sampling"))
    _add_descent_flags(
        parser.add_argument_group("descent, for --scores and all but --sampler mixture")
    )


def _add_objective_flags(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--preset",
        choices=(BSMD,),
        help="bsmd: batch stochastic mirror descent as the founding paper has it, with its "
        "sampler, batches, steps and averaging (docs/fitting.md)",
    )
    add(
        "--objective",
        choices=("maxmin", "fixed", *REWARD_OBJECTIVES),
        default="maxmin",
        help="maxmin: least largest distance from a policy (default); fixed: the given "
        "importances, which are only measured; max-min-reward, mean, weighted: the smallest gain "
        "in the rewards, their mean, their mean by --importance",
    )
    add(
        "--reward",
        action="append",
        metavar="NAME=REWARD",
        help="reward for an objective of rewards: module:function or file.py:function in TRL's "
        "form, or a reward model's checkpoint; repeat for each",
    )
    add(
        "--importance",
        action="append",
        metavar="NAME=NUMBER",
        help="importance of a policy for --objective fixed, of a reward for --objective weighted; "
        "repeat for each",
    )
    add("--min-weight", type=float, default=0.0, help="smallest weight of any policy; default 0")
    add("--beta", type=float, help="KL coefficient, if --scores holds rewards")


def _add_sampling_flags(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--sampler",
        choices=("mixture", "sequence", "reference"),
        default="mixture",
        help="mixture: fit the mixture that is served (default); sequence: the product of whole "
        "sequences, on responses of the served mixture; reference: the same on responses of the "
        "reference policy, as in the paper",
    )
    add(
        "--mixing",
        choices=MIXINGS,
        help="the way to mix that is deployed: it is measured, --sampler mixture fits it, and the "
        "profile has it; default: that of the configuration or the server",
    )
    add("--responses", type=int, default=16, help="responses to each prompt; default 16")
    add("--max-tokens", type=int, default=128, help="longest response; default 128")
    add(
        "--rounds",
        type=int,
        default=_ROUND_DEFAULTS["rounds"],
        help="rounds of --sampler mixture; default 6",
    )
    add(
        "--round-prompts",
        type=int,
        default=_ROUND_DEFAULTS["round_prompts"],
        help="prompts in each round; default 64",
    )
    add("--seed", type=int, default=0, help="seed of the sampling and the batches; default 0")


def _add_descent_flags(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--steps",
        type=int,
        default=_DESCENT_DEFAULTS["steps"],
        help="steps of the descent; default 600",
    )
    add(
        "--batch",
        type=int,
        default=_DESCENT_DEFAULTS["batch"],
        help="prompts in each step; default 64",
    )
    add(
        "--step-size",
        type=float,
        help="size of a step in units of 1 / curvature, default 4; with --sampler mixture, the "
        "largest move of a weight in the first round, default 0.25",
    )
    add(
        "--schedule",
        choices=("sqrt", "constant"),
        default=_DESCENT_DEFAULTS["schedule"],
        help="sqrt: steps shrink with the square root of their number (default); constant: equal",
    )
    add(
        "--restarts",
        type=int,
        default=_DESCENT_DEFAULTS["restarts"],
        help="starting points of the descent; default 8",
    )


def settings_from_flags(args: argparse.Namespace) -> FitSettings:
    """Reads the settings of a fit.

    Raises: CommandError for flags that do not fit together, FitError for a value out of range.
    """
    from prefmix.weights.fit.sequence_level.mirror_descent import DescentSettings
    from prefmix.weights.fit.settings import FitError, FitSettings

    if args.preset == BSMD:
        return _bsmd(args)
    given = importances_of(args)
    importances = given if args.objective == "fixed" else None
    steps = {} if args.step_size is None else {"step_size": args.step_size}
    rounds = {} if args.step_size is None else {"round_radius": args.step_size}
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


def check_used_flags(args: argparse.Namespace) -> None:
    """Raises CommandError for a flag that the chosen sampler does not read."""
    if args.preset is None and args.scores is None and args.sampler == "mixture":
        unused, readers = _DESCENT_DEFAULTS, "--scores and --sampler sequence or reference"
    else:
        unused, readers = _ROUND_DEFAULTS, "--sampler mixture"
    for flag in _changed(args, unused):
        raise CommandError(f"{flag} is for {readers} only; leave it out", exit_code=2)


def _changed(args: argparse.Namespace, defaults: Mapping[str, object]) -> list[str]:
    """The flags that are not at their defaults."""
    return [
        f"--{name.replace('_', '-')}"
        for name, default in defaults.items()
        if getattr(args, name) != default
    ]


def _bsmd(args: argparse.Namespace) -> FitSettings:
    """The settings of the founding paper's algorithm."""
    from prefmix.weights.fit.settings import bsmd

    own: dict[str, object] = {
        "objective": "maxmin",
        "sampler": "mixture",
        "step_size": None,
        "min_weight": 0.0,
    }
    for flag in _changed(args, own | _DESCENT_DEFAULTS):
        message = f"--preset {BSMD} has its own {flag}; leave out one of them"
        raise CommandError(message, exit_code=2)
    return bsmd(num_responses=args.responses, max_tokens=args.max_tokens, seed=args.seed)


def check_reward_flags(args: argparse.Namespace) -> None:
    """Raises CommandError unless rewards, and what they need, are given with their objectives."""
    if args.beta is not None and args.scores is None:
        raise CommandError(
            "--beta is the KL coefficient of the rewards in a table of --scores; leave it out",
            exit_code=2,
        )
    wants_rewards = args.objective in REWARD_OBJECTIVES
    if wants_rewards != bool(args.reward):
        raise CommandError(
            f"--objective {args.objective} needs --reward NAME=REWARD"
            if wants_rewards
            else "--reward is only used with --objective " + ", ".join(REWARD_OBJECTIVES),
            exit_code=2,
        )
    if wants_rewards and (args.scores is not None or args.sampler != "mixture"):
        wrong = "--scores" if args.scores is not None else f"--sampler {args.sampler}"
        raise CommandError(
            f"--objective {args.objective} fits the served mixture on responses of its own; leave "
            f"out {wrong}",
            exit_code=2,
        )


def importances_of(args: argparse.Namespace) -> dict[str, float] | None:
    """The numbers of --importance; None for objectives that have none.

    Raises: CommandError for numbers that are missing, malformed or not used.
    """
    if args.objective not in ("fixed", "weighted"):
        if args.importance:
            raise CommandError(
                "--importance is only used with --objective fixed or weighted; add one of these or "
                "leave it out",
                exit_code=2,
            )
        return None
    importances: dict[str, float] = {}
    for item in args.importance or ():
        name, _, number = item.partition("=")
        if name in importances:
            raise CommandError(f"--importance names {name!r} twice; give it once", exit_code=2)
        try:
            importances[name] = float(number)
        except ValueError:
            raise CommandError(
                f"--importance is {item!r}; expected NAME=NUMBER, such as helpful=2", exit_code=2
            ) from None
    if not importances:
        raise CommandError(
            f"--objective {args.objective} needs --importance NAME=NUMBER", exit_code=2
        )
    if args.objective == "weighted":
        rewards = [item.partition("=")[0] for item in args.reward]
        unknown = [name for name in importances if name not in rewards]
        if unknown:
            raise CommandError(
                f"--importance names {unknown[0]!r}, which is no --reward; there are: "
                f"{listed(rewards)}",
                exit_code=2,
            )
    return importances

"""The weights of `prefmix average` and `prefmix export`, from flags or a profile."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefmix.mixing.name_list import listed
from prefmix.server.cli.known_profiles import known_profiles
from prefmix.server.cli.mixture_arguments import add_mixture_arguments, mixture_overrides
from prefmix.server.config.errors import CommandError

if TYPE_CHECKING:
    from prefmix.mixing.spec import MixtureSpec, Policy
    from prefmix.server.config.serve_config import ServeConfig


@dataclass(frozen=True, kw_only=True)
class Averaged:
    """A mixture, and the weights at which its parameters are averaged."""

    config: ServeConfig
    spec: MixtureSpec
    shares: Mapping[Policy, float]
    """Member -> weight, without those of weight 0."""

    @property
    def told(self) -> str:
        """The weights as text."""
        return ", ".join(f"{member.name} {share:.6g}" for member, share in self.shares.items())

    @property
    def record(self) -> dict[str, Any]:
        """The mixture and its weights, JSON-ready."""
        return {
            "weights": {member.name: share for member, share in self.shares.items()},
            "weight_space": self.spec.weight_space,
            "policies": {
                member.name: {"model": member.model, "revision": member.revision}
                for member in self.shares
            },
            "text_from": self.spec.defaults.name,
        }


def add_average_flags(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Adds the flags that both commands have; returns the group of the output."""
    add_mixture_arguments(parser, weight_space=True)
    weights = parser.add_argument_group("weights")
    which = weights.add_mutually_exclusive_group(required=True)
    which.add_argument("--profile", metavar="NAME", help="those of a profile")
    which.add_argument("--weights", metavar="A=1,B=2", help="those given; policies left out have 0")
    weights.add_argument(
        "--weights-store",
        type=Path,
        metavar="FILE",
        help="store file with the profile; default: that of the configuration",
    )
    output = parser.add_argument_group("output")
    output.add_argument(
        "--output",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder to write; it appears once it is complete",
    )
    output.add_argument(
        "--force",
        action="store_true",
        help="replace --output, if it holds an earlier output of this command",
    )
    return output


def averaged(args: argparse.Namespace) -> Averaged:
    """Reads the mixture and the weights from the flags of `add_average_flags`.

    Raises: ConfigError, SpecError, StoreFormatError, and CommandError for flags that do not fit.
    """
    from prefmix.mixing.simplex import WeightsError, weights_from_preferences
    from prefmix.server.config.config_file import load_config

    config = load_config(args.config, mixture_overrides(args))
    spec = config.spec()
    if args.weights is not None:
        try:
            weights_M = weights_from_preferences(_numbers(args.weights), spec)
        except WeightsError as error:
            raise CommandError(f"--weights: {error}", exit_code=2) from None
    else:
        profiles = known_profiles(config, spec, args.weights_store)
        if args.profile not in profiles:
            raise CommandError(
                f"there is no profile {args.profile!r:.80}; allowed: {listed(list(profiles))}, or "
                "--weights NAME=NUMBER,...",
                exit_code=2,
            )
        weights_M = tuple(profiles[args.profile])
    members = zip(spec.members, weights_M, strict=True)
    shares = {member: float(weight) for member, weight in members if weight}
    return Averaged(config=config, spec=spec, shares=shares)


def _numbers(text: str) -> dict[str, float]:
    numbers: dict[str, float] = {}
    for item in text.split(","):
        name, _, number = item.strip().partition("=")
        try:
            value = float(number)
        except ValueError:
            raise CommandError(
                f"--weights is {text!r:.80}; expected NAME=NUMBER,NAME=NUMBER, such as "
                "helpful=2,harmless=1",
                exit_code=2,
            ) from None
        if name in numbers:
            raise CommandError(f"--weights names {name!r} twice", exit_code=2)
        numbers[name] = value
    return numbers

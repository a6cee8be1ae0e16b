"""The mixture that `prefmix eval` measures: local models, or a running server."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from prefmix.mixing.name_list import listed
from prefmix.mixing.ways_to_mix import MIXINGS, Mixing, MixingError, check_mixing
from prefmix.server.cli.batch_engine import checked_content_hashes, local_engine, remote_engine
from prefmix.server.cli.known_profiles import Profiles, known_profiles, stored_profiles
from prefmix.server.cli.mixture_arguments import mixture_overrides
from prefmix.server.config.errors import CommandError

if TYPE_CHECKING:
    from prefmix.mixing.spec import MixtureSpec
    from prefmix.weights.engines.engine import Engine

Shares = Mapping[str, float]
"""Member -> share in a parameter average."""


@dataclass(frozen=True, kw_only=True)
class EvalSubject:
    """A mixture to measure."""

    own: MixtureSpec
    """The mixture as it was given."""
    spec: MixtureSpec
    """The mixture with its parameter averages as further policies."""
    engine: Callable[[], Engine]
    """Starts the engine."""
    content_hashes: Mapping[str, str]
    """Member of `spec` -> content hash."""
    profiles: Profiles
    averages: Mapping[str, Shares]
    """Name of an average -> shares of the members."""
    ways: tuple[Mixing, ...]
    """The ways to mix that are measured."""
    cache: Path
    """Folder for draws."""


def eval_subject(
    args: argparse.Namespace, passthrough: Sequence[str], scratch: Path
) -> EvalSubject:
    """Finds the mixture, from flags and file or from a running server.

    Args:
      args: the flags of `prefmix eval`.
      passthrough: the words after `--`.
      scratch: a folder for files that are not kept.
    Raises: CommandError for flags that do not fit together, and the errors of a configuration,
      a store, checkpoints and a server.
    """
    has_policies = args.config is not None or args.policy or args.base
    if bool(has_policies) == bool(args.server):
        raise CommandError(
            "give either policies (a CONFIG.yaml, --policy NAME=MODEL, or --base and --adapter) or "
            "--server URL",
            exit_code=2,
        )
    if args.server:
        return _remote_subject(args, passthrough, scratch)
    return _local_subject(args, passthrough, scratch)


def _remote_subject(
    args: argparse.Namespace, passthrough: Sequence[str], scratch: Path
) -> EvalSubject:
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
    profiles = (
        stored_profiles(args.weights_store, remote.spec) if args.weights_store else remote.profiles
    )
    return EvalSubject(
        spec=remote.spec,
        own=remote.spec,
        engine=lambda: remote,
        content_hashes=models,
        profiles=profiles,
        averages={},
        ways=ways_to_mix(args.mixing, remote.spec),
        cache=scratch,  # a server's models may change, so its draws are not kept
    )


def _local_subject(
    args: argparse.Namespace, passthrough: Sequence[str], scratch: Path
) -> EvalSubject:
    from prefmix.server.config.config_file import load_config
    from prefmix.weights.averages.errors import ParameterAverageError
    from prefmix.weights.evaluation.parameter_average import with_averages
    from prefmix.weights.evaluation.rows import average_member

    config = load_config(args.config, mixture_overrides(args))
    own = config.spec()
    profiles = known_profiles(config, own, args.weights_store)
    ways = ways_to_mix(args.mixing, own)
    checked_content_hashes(config, own)
    averages = average_shares(args.average, own, profiles)
    members = {average_member(name): shares for name, shares in averages.items()}
    try:
        spec = with_averages(own, members, scratch)
    except ParameterAverageError as error:
        if args.average:
            raise
        print(f"no parameter average: {error}")
        spec, averages = own, {}
    return EvalSubject(
        spec=spec,
        own=own,
        engine=lambda: local_engine(config, spec, passthrough),
        content_hashes=checked_content_hashes(config, spec, quiet=True),  # already shown
        profiles=profiles,
        averages=averages,
        ways=ways,
        cache=args.cache,
    )


def ways_to_mix(asked: str | None, spec: MixtureSpec) -> tuple[Mixing, ...]:
    """The ways to mix that are measured.

    Args:
      asked: 'both' or one way; None is all ways that the policies have.
    Raises: CommandError for a way that full checkpoints, or policies with prompts of their own, do
      not have.
    """
    if asked is None:
        mixes_both = spec.base is not None and spec.prompts_sha256 is None
        return MIXINGS if mixes_both else ("logits",)
    if asked != "logits" and spec.prompts_sha256 is not None:
        raise CommandError(
            f"--mixing {asked}: mixed parameters are one model, which reads one prompt; leave "
            "--mixing or the policies' own prompts out",
            exit_code=2,
        )
    wanted = tuple(way for way in MIXINGS if asked in (way, "both"))
    try:
        return tuple(check_mixing(way, has_base=spec.base is not None) for way in wanted)
    except MixingError as error:
        raise CommandError(f"--mixing {asked}: {error}", exit_code=2) from None


def average_shares(
    asked: Sequence[str] | None, spec: MixtureSpec, profiles: Profiles
) -> dict[str, Shares]:
    """Finds the shares of each average.

    Args:
      asked: profiles' names, 'uniform' or 'none'; None asks for the uniform average of full
        checkpoints.
      spec: the mixture.
      profiles: its profiles.
    Returns: name of the average -> shares of the members.
    Raises: CommandError for an unknown name, and for averages of adapters, or of policies with
      prompts of their own.
    """
    from prefmix.weights.evaluation.rows import UNIFORM, nonzero, uniform_shares

    has_prompts = spec.prompts_sha256 is not None
    if asked is None:
        can_average = len(spec.policies) > 1 and spec.base is None and not has_prompts
        asked = [UNIFORM] if can_average else []
    elif has_prompts and set(asked) - {"none"}:
        raise CommandError(
            "--average is one model, which reads one prompt; leave --average or the policies' own "
            "prompts out",
            exit_code=2,
        )
    elif spec.base is not None and set(asked) - {"none"}:
        raise CommandError(
            "--average loads one more checkpoint, and adapters of one base need none: the rows "
            "with 'parameters' in their names are their averages, at all weights; leave --average "
            "out",
            exit_code=2,
        )
    found: dict[str, Shares] = {}
    for name in asked:
        if name == UNIFORM:
            found[name] = uniform_shares(spec)
        elif name in profiles:
            found[name] = nonzero(spec.member_names, profiles[name])
        elif name != "none":
            allowed = listed([UNIFORM, "none", *profiles])
            raise CommandError(f"--average is {name!r}; allowed: {allowed}", exit_code=2)
    return found

"""Profiles of a file for the mixture that is there, or why they are for another one."""

from __future__ import annotations

from dataclasses import replace

from prefmix.mixing.name_list import listed
from prefmix.mixing.shown_value import shown
from prefmix.mixing.spec import MixtureSpec, SpecError
from prefmix.weights.store.added import with_added
from prefmix.weights.store.errors import StoreFormatError
from prefmix.weights.store.profiles import ProfileError, ProfileSet, profile_weights


def for_mixture(
    profiles: ProfileSet,
    spec: MixtureSpec,
    *,
    source: str,
    takes_added: bool = False,
    takes_dormant: bool = False,
) -> ProfileSet:
    """The profiles in the member order of `spec`.

    A set for all policies without the reference is accepted: the reference gets 0.

    Args:
      spec: the mixture of the configuration.
      takes_added: true for a server, which has the set's added policies beside those of `spec`.
      takes_dormant: true where profiles may name absent policies.
    Raises: StoreFormatError for profiles of other policies, prompts or another weight space.
    """
    if profiles.added and not takes_added:
        raise StoreFormatError(
            f"{source}: it has policies that were added to a running server "
            f"({listed(profiles.added)}), which only 'prefmix serve' with --adapter-slots has; "
            "give them as adapters in a configuration, and profiles without added_policies"
        )
    if profiles.dormant and not takes_dormant:
        raise StoreFormatError(
            f"{source}: it has dormant profiles, whose policies are not there "
            f"({listed(profiles.dormant)}), which only 'prefmix serve' with --dormant-profiles "
            "takes; delete them by 'prefmix weights delete'"
        )
    if untold := [name for name, each in profiles.added.items() if not each.is_told]:
        raise StoreFormatError(
            f"{source}: added_policies has the hash of a prompt of {listed(untold)}, and not its "
            "text: it is what a server shows of its store; put the store's own file in its place"
        )
    try:
        spec = with_added(spec, profiles.added)
    except SpecError as error:
        raise StoreFormatError(f"{source}: added_policies: {error}") from None
    names = set(profiles.member_names)
    if names not in (set(spec.member_names), set(spec.policy_names)):
        raise StoreFormatError(
            f"{source}: policies are {listed(profiles.member_names)}, but this mixture has "
            f"{listed(spec.member_names)}; its profiles were made for other policies"
        )
    if profiles.prompts_sha256 != spec.prompts_sha256:
        raise StoreFormatError(
            f"{source}: prompts_sha256 is {shown(profiles.prompts_sha256)}, but the prompts of "
            f"this mixture's policies have {shown(spec.prompts_sha256)}; its profiles were made "
            "for other prompts. Fit them again, or, if they are right for these prompts too, "
            "change that key of the file"
        )
    try:
        weights = {
            name: profile_weights(name, profiles.weights(name), spec) for name in profiles.profiles
        }
    except ProfileError as error:
        raise StoreFormatError(f"{source}: {error}") from None
    return replace(
        profiles,
        member_names=spec.member_names,
        profiles=weights,
        weight_space=spec.weight_space,
    )

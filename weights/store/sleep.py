"""Profiles fall asleep when a policy of theirs goes, and wake when all of them are there.

Pure functions, which the edits of a set of profiles use.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from prefmix.mixing.name_list import listed
from prefmix.mixing.spec import MixtureSpec, Policy, SpecError, check_name
from prefmix.weights.store.added import AddedPolicies, with_added
from prefmix.weights.store.dormant import DormantProfile
from prefmix.weights.store.errors import PolicyInUseError
from prefmix.weights.store.profiles import (
    DEFAULT_PROFILE,
    ProfileError,
    ProfileSet,
    build_profile_set,
    check_profile_name,
    profile_mixing,
    profile_weights,
)


def over_policies(
    profiles: ProfileSet, added: AddedPolicies, spec: MixtureSpec, *, keeps_dormant: bool
) -> ProfileSet:
    """The same weights by name, over other added policies.

    Args:
      spec: the mixture of the configuration.
      keeps_dormant: lets profiles fall asleep whose policies go; the default never does.
    Raises: ProfileError for a name that no policy can have; PolicyInUseError for a policy that goes
      and has weight in a profile that cannot fall asleep.
    """
    try:
        whole = with_added(spec, added)
    except SpecError as error:
        raise ProfileError(str(error)) from None
    names = whole.member_names
    for gone in (name for name in profiles.member_names if name not in names):
        users = [each for each in profiles.profiles if profiles.weights(each)[gone] != 0]
        if users and not keeps_dormant:
            raise PolicyInUseError(
                f"policy {gone!r} has weight in {listed(users)}; change or delete these profiles "
                "first"
            )
        if profiles.default in users:
            raise PolicyInUseError(
                f"policy {gone!r} has weight in {profiles.default!r}, the default, which cannot be "
                "dormant; make another profile the default first"
            )
    live, dormant = dict[str, tuple[float, ...]](), dict[str, DormantProfile]()
    mixings, provenance = dict(profiles.mixings), dict(profiles.provenance)
    for name in profiles.profiles:
        weights = profiles.weights(name)
        if all(policy in names for policy, weight in weights.items() if weight != 0):
            live[name] = tuple(weights.get(policy, 0.0) for policy in names)
        else:
            dormant[name] = DormantProfile(
                weights={policy: weight for policy, weight in weights.items() if weight != 0},
                mixing=mixings.pop(name, None),
                provenance=provenance.pop(name, {}),
            )
    for name, profile in profiles.dormant.items():
        if profile.absent(names):
            dormant[name] = profile
            continue
        live[name] = profile_weights(name, profile.weights, whole)
        if profile.mixing is not None:
            mixings[name] = profile.mixing
        if profile.provenance:
            provenance[name] = profile.provenance
    return replace(
        profiles,
        member_names=names,
        added=added,
        profiles=live,
        dormant=dormant,
        mixings=mixings,
        provenance=provenance,
    )


def build_with_dormant(
    preferences: Mapping[Any, Any],
    spec: MixtureSpec,
    *,
    default: str | None = None,
    mixings: Mapping[str, object] | None = None,
) -> ProfileSet:
    """`build_profile_set`, where profiles that name absent policies are dormant ones.

    Raises: ProfileError, also for a default that would be dormant.
    """
    asleep = {
        check_profile_name(name): each
        for name, weights in preferences.items()
        if (each := dormant_profile(name, weights, spec)) is not None
    }
    ways = {name: way for name, way in (mixings or {}).items() if way is not None}
    dormant = {
        name: replace(each, mixing=profile_mixing(name, ways[name])) if name in ways else each
        for name, each in asleep.items()
    }
    found = build_profile_set(
        {name: weights for name, weights in preferences.items() if name not in dormant},
        spec,
        default=None if default in dormant else default,
        mixings={name: way for name, way in ways.items() if name not in dormant},
    )
    found = replace(found, dormant=dormant)
    check_awake(found, DEFAULT_PROFILE if default is None else default)
    return found


def dormant_profile(name: str, preferences: object, spec: MixtureSpec) -> DormantProfile | None:
    """A profile that gives weight to policies which a mixture has not; None for any other.

    Raises: ProfileError as for any profile.
    """
    if not isinstance(preferences, Mapping):
        return None
    absent = [each for each in preferences if each not in spec.member_names and _can_name(each)]
    if not absent:
        return None
    policies = (*spec.policies, *(Policy(name=each, model=each) for each in absent))
    whole = replace(spec, policies=policies)
    weights_M = profile_weights(name, preferences, whole)
    weights = {
        policy: weight
        for policy, weight in zip(whole.member_names, weights_M, strict=True)
        if weight != 0
    }
    return DormantProfile(weights=weights) if weights.keys() & set(absent) else None


def check_awake(profiles: ProfileSet, name: str) -> None:
    """Raises: ProfileError for a dormant profile, naming the policies that it waits for."""
    if name in profiles.dormant:
        raise ProfileError(
            f"profile {name!r} {said_dormant(profiles, name)}, and cannot be the "
            "default; add them first"
        )


def said_dormant(profiles: ProfileSet, name: str) -> str:
    """The end of a sentence about a dormant profile."""
    absent = profiles.dormant[name].absent(profiles.member_names)
    return f"is dormant: it gives weight to policies that are not there ({listed(absent)})"


def _can_name(name: Any) -> bool:
    try:
        check_name(name, what="policy")
    except SpecError:
        return False
    return True

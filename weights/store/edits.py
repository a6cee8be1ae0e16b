"""The edits of a set of profiles: pure functions from one set to the next.

Each edit checks its arguments and returns a set with the same version; the store numbers it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from prefmix.mixing.name_list import listed
from prefmix.mixing.spec import MixtureSpec, SpecError
from prefmix.weights.store.added import AddedPolicies, AddedPolicy, with_added
from prefmix.weights.store.errors import PolicyInUseError, UnknownEntryError
from prefmix.weights.store.format import check_provenance, for_mixture, spec_of_members
from prefmix.weights.store.profiles import (
    ProfileError,
    ProfileSet,
    check_profile_name,
    profile_mixing,
    profile_weights,
)


def with_profile(
    profiles: ProfileSet,
    name: str,
    preferences: object,
    *,
    spec: MixtureSpec | None = None,
    provenance: Mapping[str, Any] | None = None,
    mixing: object = None,
) -> ProfileSet:
    """Adds or replaces one profile.

    Args:
      profiles: the set to start from.
      name: the profile.
      preferences: `{member: number}`, ratios on the simplex.
      spec: the mixture of the configuration; None checks against the members of the set itself.
      provenance: the origin of the weights; None removes the one before.
      mixing: its way to mix; None leaves it to the server, and removes the one before.
    Raises: ProfileError, StoreFormatError.
    """
    if spec is None:
        spec = spec_of_members(profiles.member_names, profiles.weight_space)
    else:
        spec = with_added(spec, profiles.added)
    check_profile_name(name)
    check_provenance(dict(provenance or {}), where=f"profiles.{name}.provenance")
    origins = {key: value for key, value in profiles.provenance.items() if key != name}
    if provenance:
        origins[name] = dict(provenance)
    mixings = {key: value for key, value in profiles.mixings.items() if key != name}
    if mixing is not None:
        mixings[name] = profile_mixing(name, mixing)
    return replace(
        profiles,
        profiles={**profiles.profiles, name: profile_weights(name, preferences, spec)},
        provenance=origins,
        mixings=mixings,
    )


def without_profile(profiles: ProfileSet, name: str) -> ProfileSet:
    """Removes one profile. Raises: UnknownEntryError; ProfileError for the default."""
    check_exists(profiles, name)
    if name == profiles.default:
        raise ProfileError(
            f"profile {name!r} is the default and cannot be deleted; make another the default first"
        )
    return replace(
        profiles,
        profiles={key: value for key, value in profiles.profiles.items() if key != name},
        provenance={key: value for key, value in profiles.provenance.items() if key != name},
        mixings={key: value for key, value in profiles.mixings.items() if key != name},
    )


def with_default(profiles: ProfileSet, name: str) -> ProfileSet:
    """Makes another profile the default. Raises: UnknownEntryError."""
    check_exists(profiles, name)
    return replace(profiles, default=name)


def merged(
    profiles: ProfileSet,
    other: ProfileSet,
    *,
    source: str,
    spec: MixtureSpec | None = None,
    with_its_default: bool = False,
) -> ProfileSet:
    """Adds or replaces every profile of `other`; the default stays unless its own is asked for.

    Raises: StoreFormatError naming `source` if `other` was made for other policies.
    """
    other = _adapted(profiles, other, source=source, spec=spec)
    kept = {k: v for k, v in profiles.provenance.items() if k not in other.profiles}
    kept_mixings = {k: v for k, v in profiles.mixings.items() if k not in other.profiles}
    return replace(
        profiles,
        profiles={**profiles.profiles, **other.profiles},
        default=other.default if with_its_default else profiles.default,
        provenance={**kept, **other.provenance},
        mixings={**kept_mixings, **other.mixings},
    )


def replaced(
    profiles: ProfileSet, other: ProfileSet, *, source: str, spec: MixtureSpec | None = None
) -> ProfileSet:
    """Replaces all profiles and the default by those of `other`.

    Raises: StoreFormatError naming `source` if `other` was made for other policies.
    """
    other = _adapted(profiles, other, source=source, spec=spec)
    return replace(other, version=profiles.version, added=profiles.added)


def with_policy(
    profiles: ProfileSet, name: str, policy: AddedPolicy, *, spec: MixtureSpec
) -> ProfileSet:
    """Adds a policy, which has no weight in any profile yet, or replaces an added one.

    Args:
      spec: the mixture of the configuration.
    Raises: ProfileError for a name that the configuration has, or that no policy can have.
    """
    if name in spec.member_names:
        raise ProfileError(
            f"policy {name!r} is one of the configuration, which a running server keeps; choose "
            "another name"
        )
    return _with_members(profiles, {**profiles.added, name: policy}, spec)


def without_policy(profiles: ProfileSet, name: str, *, spec: MixtureSpec) -> ProfileSet:
    """Removes an added policy.

    Raises: UnknownEntryError; PolicyInUseError if a profile gives it weight.
    """
    if name not in profiles.added:
        what = "is one of the configuration" if name in spec.member_names else "does not exist"
        raise UnknownEntryError(
            f"policy {name!r:.80} {what}, and cannot be removed; those that can be are: "
            f"{listed(profiles.added) or 'none'}"
        )
    users = [each for each in profiles.profiles if profiles.weights(each)[name] != 0]
    if users:
        raise PolicyInUseError(
            f"policy {name!r} has weight in {listed(users)}; change or delete these profiles first"
        )
    added = {key: each for key, each in profiles.added.items() if key != name}
    return _with_members(profiles, added, spec)


def _with_members(profiles: ProfileSet, added: AddedPolicies, spec: MixtureSpec) -> ProfileSet:
    """The same weights by name, over other added policies."""
    try:
        names = with_added(spec, added).member_names
    except SpecError as error:
        raise ProfileError(str(error)) from None
    weights = {name: profiles.weights(name) for name in profiles.profiles}
    return replace(
        profiles,
        member_names=names,
        added=added,
        profiles={
            profile: tuple(of.get(name, 0.0) for name in names) for profile, of in weights.items()
        },
    )


def check_exists(profiles: ProfileSet, name: str) -> None:
    """Raises UnknownEntryError unless there is such a profile."""
    if name not in profiles.profiles:
        raise UnknownEntryError(
            f"profile {name!r:.80} does not exist; the profiles are: {listed(profiles.profiles)}"
        )


def _adapted(
    profiles: ProfileSet, other: ProfileSet, *, source: str, spec: MixtureSpec | None
) -> ProfileSet:
    """`other` in the member order of `profiles`."""
    own = spec_of_members(profiles.member_names, profiles.weight_space, profiles.prompts_sha256)
    whole = own if spec is None else with_added(spec, profiles.added)
    return for_mixture(replace(other, added={}), whole, source=source)

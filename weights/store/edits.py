"""The edits of a set of profiles: pure functions from one set to the next.

Each edit checks its arguments and returns a set with the same version; the store numbers it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from prefmix.mixing.name_list import listed
from prefmix.mixing.spec import MixtureSpec
from prefmix.weights.store.errors import UnknownEntryError
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
      spec: the mixture; None checks against the members of the set itself.
      provenance: the origin of the weights; None removes the one before.
      mixing: its way to mix; None leaves it to the server, and removes the one before.
    Raises: ProfileError, StoreFormatError.
    """
    spec = spec or spec_of_members(profiles.member_names, profiles.weight_space)
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
    return replace(other, version=profiles.version)


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
    return for_mixture(other, spec or own, source=source)

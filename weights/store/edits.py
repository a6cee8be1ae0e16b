"""The edits of a set of profiles: pure functions from one set to the next.

Each edit checks its arguments and returns a set with the same version; the store numbers it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from prefmix.mixing.name_list import listed
from prefmix.mixing.spec import MixtureSpec
from prefmix.weights.store.added import AddedPolicies, AddedPolicy, with_added
from prefmix.weights.store.errors import UnknownEntryError
from prefmix.weights.store.for_mixture import for_mixture
from prefmix.weights.store.format import check_provenance, spec_of_members
from prefmix.weights.store.profiles import (
    ProfileError,
    ProfileSet,
    check_profile_name,
    profile_mixing,
    profile_weights,
)
from prefmix.weights.store.sleep import check_awake, dormant_profile, over_policies


def with_profile(
    profiles: ProfileSet,
    name: str,
    preferences: object,
    *,
    spec: MixtureSpec | None = None,
    provenance: Mapping[str, Any] | None = None,
    mixing: object = None,
    keeps_dormant: bool = False,
) -> ProfileSet:
    """Adds or replaces one profile.

    Args:
      profiles: the set to start from.
      name: the profile.
      preferences: `{member: number}`, ratios on the simplex.
      spec: the mixture of the configuration; None checks against the members of the set itself.
      provenance: the origin of the weights; None removes the one before.
      mixing: its way to mix; None leaves it to the server, and removes the one before.
      keeps_dormant: makes a profile that names an absent policy a dormant one; false refuses it.
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
    dormant = {key: value for key, value in profiles.dormant.items() if key != name}
    asleep = dormant_profile(name, preferences, spec) if keeps_dormant else None
    if asleep is not None:
        live = {key: value for key, value in profiles.profiles.items() if key != name}
        dormant[name] = replace(
            asleep, mixing=mixings.pop(name, None), provenance=origins.pop(name, {})
        )
    else:
        live = {**profiles.profiles, name: profile_weights(name, preferences, spec)}
    found = replace(profiles, profiles=live, dormant=dormant, provenance=origins, mixings=mixings)
    check_awake(found, profiles.default)
    return found


def without_profile(profiles: ProfileSet, name: str) -> ProfileSet:
    """Removes one profile. Raises: UnknownEntryError; ProfileError for the default."""
    if name in profiles.dormant:
        kept = {key: value for key, value in profiles.dormant.items() if key != name}
        return replace(profiles, dormant=kept)
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
    """Makes another profile the default. Raises: UnknownEntryError; ProfileError if dormant."""
    check_awake(profiles, name)
    check_exists(profiles, name)
    return replace(profiles, default=name)


def merged(
    profiles: ProfileSet,
    other: ProfileSet,
    *,
    source: str,
    spec: MixtureSpec | None = None,
    with_its_default: bool = False,
    keeps_dormant: bool = False,
) -> ProfileSet:
    """Adds or replaces every profile of `other`; the default stays unless its own is asked for.

    Raises: StoreFormatError naming `source` if `other` was made for other policies.
    """
    other = _adapted(profiles, other, source=source, spec=spec, keeps_dormant=keeps_dormant)
    coming = {**other.profiles, **other.dormant}
    kept = {k: v for k, v in profiles.provenance.items() if k not in coming}
    kept_mixings = {k: v for k, v in profiles.mixings.items() if k not in coming}
    live = {k: v for k, v in profiles.profiles.items() if k not in other.dormant}
    dormant = {k: v for k, v in profiles.dormant.items() if k not in other.profiles}
    found = replace(
        profiles,
        profiles={**live, **other.profiles},
        dormant={**dormant, **other.dormant},
        default=other.default if with_its_default else profiles.default,
        provenance={**kept, **other.provenance},
        mixings={**kept_mixings, **other.mixings},
    )
    check_awake(found, found.default)
    return found


def replaced(
    profiles: ProfileSet,
    other: ProfileSet,
    *,
    source: str,
    spec: MixtureSpec | None = None,
    keeps_dormant: bool = False,
) -> ProfileSet:
    """Replaces all profiles and the default by those of `other`.

    Raises: StoreFormatError naming `source` if `other` was made for other policies.
    """
    other = _adapted(profiles, other, source=source, spec=spec, keeps_dormant=keeps_dormant)
    return replace(other, version=profiles.version, added=profiles.added)


def with_policy(
    profiles: ProfileSet,
    name: str,
    policy: AddedPolicy,
    *,
    spec: MixtureSpec,
    keeps_dormant: bool = False,
) -> ProfileSet:
    """Adds a policy, which has no weight in any profile yet, or replaces an added one.

    Args:
      spec: the mixture of the configuration.
    Raises: ProfileError for a name that the configuration has, or that no policy can have.
    """
    added = {**profiles.added, name: policy}
    return with_policies(profiles, added, spec=spec, keeps_dormant=keeps_dormant)


def with_policies(
    profiles: ProfileSet, added: AddedPolicies, *, spec: MixtureSpec, keeps_dormant: bool = False
) -> ProfileSet:
    """Makes these the added policies, and no others.

    Args:
      spec: the mixture of the configuration.
      keeps_dormant: makes profiles dormant whose policies go; false refuses that.
    Raises: ProfileError for a name that the configuration has, or that no policy can have;
      PolicyInUseError if a profile gives weight to a policy that is to go.
    """
    for name in added:
        if name in spec.member_names:
            raise ProfileError(
                f"policy {name!r} is one of the configuration, which a running server keeps; "
                "choose another name"
            )
    return over_policies(profiles, added, spec, keeps_dormant=keeps_dormant)


def without_policy(
    profiles: ProfileSet, name: str, *, spec: MixtureSpec, keeps_dormant: bool = False
) -> ProfileSet:
    """Removes an added policy.

    Raises: UnknownEntryError; PolicyInUseError as `with_policies`.
    """
    if name not in profiles.added:
        what = "is one of the configuration" if name in spec.member_names else "does not exist"
        raise UnknownEntryError(
            f"policy {name!r:.80} {what}, and cannot be removed; those that can be are: "
            f"{listed(profiles.added) or 'none'}"
        )
    added = {key: each for key, each in profiles.added.items() if key != name}
    return with_policies(profiles, added, spec=spec, keeps_dormant=keeps_dormant)


def check_exists(profiles: ProfileSet, name: str) -> None:
    """Raises UnknownEntryError unless there is such a profile."""
    if name not in profiles.profiles:
        raise UnknownEntryError(
            f"profile {name!r:.80} does not exist; the profiles are: {listed(profiles.profiles)}"
        )


def _adapted(
    profiles: ProfileSet,
    other: ProfileSet,
    *,
    source: str,
    spec: MixtureSpec | None,
    keeps_dormant: bool,
) -> ProfileSet:
    """`other` in the member order of `profiles`."""
    own = spec_of_members(profiles.member_names, profiles.weight_space, profiles.prompts_sha256)
    whole = own if spec is None else with_added(spec, profiles.added)
    return for_mixture(
        replace(other, added={}), whole, source=source, takes_dormant=keeps_dormant or spec is None
    )

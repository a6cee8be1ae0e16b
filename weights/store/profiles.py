"""The profiles in force: an immutable set, and the one reference to it.

A request reads `CurrentProfiles.current` once, at admission, and keeps that set to its last token.
A change builds a whole new `ProfileSet` and swaps the reference, so that no request sees half of
one.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from prefmix.mixing.name_list import listed
from prefmix.mixing.simplex import WeightsError, weights_from_preferences
from prefmix.mixing.spec import MixtureSpec, SpecError, WeightSpace, check_name
from prefmix.mixing.ways_to_mix import Mixing, MixingError, check_mixing
from prefmix.weights.store.added import AddedPolicies, added_document
from prefmix.weights.store.dormant import DormantProfile

MAX_PROFILES = 256
"""Default of the most profiles that a server takes."""

DEFAULT_PROFILE = "default"
"""Name of the profile that exists if none was given, with uniform weights."""

CUSTOM_PROFILE = "custom"
"""Profile that answers report for a request with weights of its own."""

NO_PROFILE = "none"
"""Profile that metrics report for a request that was refused before its weights were known."""

_RESERVED = {
    CUSTOM_PROFILE: "answers report that word for weights sent with the request",
    NO_PROFILE: "metrics report that word for requests refused before their weights were known",
}
"""Names that no profile can have, and why."""

_ROUNDING = 1e-12
"""Weights whose sum is this close to 1 stay as they are, so that reading back changes no bit."""


class ProfileError(ValueError):
    """Profiles that cannot be served: a bad name, bad weights, or a default that does not exist."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Signature:
    """The time and the author of one version."""

    version: int
    """The version that was signed; a file whose number was raised by hand is another one."""
    at: str
    """Time in UTC, ISO 8601 to the second: 2026-11-22T14:03:09Z."""
    by: str
    """A user of the machine or the name of an admin token."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ProfileSet:
    """Named weight vectors, and the default among them; never changed once built.

    Build it with `build_profile_set`, which checks everything.
    """

    member_names: tuple[str, ...]
    """The M members of the mixture, in weight order."""
    profiles: Mapping[str, tuple[float, ...]]
    """The M weights of each profile by name, in the given order."""
    default: str
    """The profile of requests that name none."""
    version: int
    """Number of the set; grows by one with every change of content."""
    provenance: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """The origin of each profile's weights by name, JSON-ready; only profiles that have one."""
    weight_space: WeightSpace = "simplex"
    """The set that the weight vectors lie in."""
    mixings: Mapping[str, Mixing] = field(default_factory=dict)
    """The way to mix of profiles that have one of their own, by name."""
    prompts_sha256: str | None = None
    """Hash of the prompts of the policies' own that the weights are for; None without any."""
    added: AddedPolicies = field(default_factory=dict)
    """The policies that are not the configuration's; they are among the members."""
    dormant: Mapping[str, DormantProfile] = field(default_factory=dict)
    """The profiles that wait for policies, by name; none of them is among `profiles`."""
    signature: Signature | None = field(default=None, compare=False)
    """Author and time of the version, if they are known; no part of the content."""
    _hashes: list[str] = field(default_factory=list, init=False, repr=False, compare=False)
    """The hash once it is computed: a set may hold megabytes, and every answer names its hash."""

    @property
    def sha256(self) -> str:
        """Hash of the content without the version: equal profiles have equal hashes."""
        if not self._hashes:
            content = {**self.content(), "policies": sorted(self.member_names)}
            canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
            self._hashes.append(hashlib.sha256(canonical.encode()).hexdigest())
        return self._hashes[0]

    @property
    def signed(self) -> Signature | None:
        """The signature, if it is this version's own."""
        signature = self.signature
        is_own = signature is not None and signature.version == self.version
        return signature if is_own else None

    def weights(self, name: str) -> dict[str, float]:
        """One profile's weights under their members' names."""
        return dict(zip(self.member_names, self.profiles[name], strict=True))

    def without_logits(self, weights_M: Sequence[float]) -> str | None:
        """The first policy with weight that has no KV cache, and so no logits; None if all have."""
        without = {name for name, policy in self.added.items() if not policy.kv_cache}
        if not without:
            return None
        named = zip(self.member_names, weights_M, strict=True)
        return next((name for name, weight in named if weight != 0 and name in without), None)

    def title(self, name: str) -> str:
        """One profile's name for a table: with its way to mix if it has one of its own."""
        return f"{name} ({self.mixings[name]})" if name in self.mixings else name

    def profile(self, name: str) -> dict[str, Any]:
        """One profile as a JSON-ready object; way to mix and provenance only if it has them."""
        mixing, provenance = self.mixings.get(name), self.provenance.get(name)
        own = {"mixing": mixing, "provenance": dict(provenance) if provenance else None}
        return {"weights": self.weights(name), **{key: own[key] for key in own if own[key]}}

    def waiting(self) -> dict[str, list[str]]:
        """The dormant profiles, each with the policies that it waits for."""
        return {name: each.absent(self.member_names) for name, each in self.dormant.items()}

    def content(self, *, with_texts: bool = False) -> dict[str, Any]:
        """The set as JSON-ready objects, each weight under its member's name.

        Args: with_texts: gives the texts of added policies' prompts; otherwise their hashes.
        """
        prompts = {} if self.prompts_sha256 is None else {"prompts_sha256": self.prompts_sha256}
        own = added_document(self.added, with_texts=with_texts)
        added = {"added_policies": own} if own else {}
        dormant = {name: each.document() for name, each in self.dormant.items()}
        return {
            "policies": list(self.member_names),
            **prompts,
            **added,
            "default_profile": self.default,
            "profiles": {name: self.profile(name) for name in self.profiles},
            **({"dormant_profiles": dormant} if dormant else {}),
        }


class CurrentProfiles:
    """Holds the profile set in force."""

    def __init__(self, profiles: ProfileSet) -> None:
        self._current = profiles

    @property
    def current(self) -> ProfileSet:
        """The set in force now; read once per request."""
        return self._current

    def swap(self, profiles: ProfileSet) -> None:
        """Puts another set in force: one assignment, atomic for every reader."""
        self._current = profiles


def build_profile_set(
    preferences: Mapping[Any, Any],
    spec: MixtureSpec,
    *,
    default: str | None = None,
    version: int = 1,
    provenance: Mapping[str, Mapping[str, Any]] | None = None,
    mixings: Mapping[str, object] | None = None,
) -> ProfileSet:
    """Checks every profile and the default, and builds the set.

    Args:
      preferences: profile name to `{member: number}`; empty means one uniform profile, `default`.
      spec: the mixture the profiles are for.
      default: the default profile's name; None takes `default` if there is one, else the first.
      version: number of the set.
      provenance: the origin of each profile's weights by name; empty ones are dropped.
      mixings: the way to mix of each profile by name; None for those without.
    Raises: ProfileError naming the profile, what came and what is allowed.
    """
    if not preferences:
        profiles = {DEFAULT_PROFILE: spec.uniform_weights}
    else:
        profiles = {
            check_profile_name(name): profile_weights(name, value, spec)
            for name, value in preferences.items()
        }
    if default is None:
        default = DEFAULT_PROFILE if DEFAULT_PROFILE in profiles else next(iter(profiles))
    if default not in profiles:
        raise ProfileError(
            f"default_profile is {default!r:.80}, which does not exist; "
            f"the profiles are: {listed(profiles)}"
        )
    return ProfileSet(
        member_names=spec.member_names,
        profiles=profiles,
        default=default,
        version=version,
        provenance={name: origin for name, origin in (provenance or {}).items() if origin},
        weight_space=spec.weight_space,
        prompts_sha256=spec.prompts_sha256,
        mixings={
            name: profile_mixing(name, mixing)
            for name, mixing in (mixings or {}).items()
            if mixing is not None
        },
    )


def check_num_profiles(num: int, max_profiles: int | None) -> None:
    """Raises ProfileError if there are too many profiles. Args: max_profiles: None has no limit."""
    if max_profiles is not None and num > max_profiles:
        raise ProfileError(
            f"there are {num} profiles, and this server takes {max_profiles} at most: delete some, "
            "or start it with a higher --max-profiles"
        )


def check_profile_name(name: object) -> str:
    """Returns `name` if it can name a profile; raises ProfileError otherwise."""
    if isinstance(name, str) and name in _RESERVED:
        raise ProfileError(
            f"a profile cannot be named {name!r}: {_RESERVED[name]}; choose another name"
        )
    try:
        return check_name(name, what="profile")
    except SpecError as error:
        raise ProfileError(str(error)) from None


def profile_mixing(name: str, mixing: object, *, has_base: bool = True) -> Mixing:
    """A profile's way to mix.

    Args:
      has_base: true if the policies are adapters of one base; by default nothing is asked of them.
    Raises: ProfileError naming the profile, what came and what is allowed.
    """
    try:
        return check_mixing(mixing, has_base=has_base)
    except MixingError as error:
        raise ProfileError(f"profile {name!r}: mixing: {error}") from None


def check_mixings(profiles: ProfileSet, spec: MixtureSpec) -> None:
    """Raises: ProfileError naming a profile whose way to mix a mixture does not have, or a policy
    of it does not."""
    for name, mixing in profiles.mixings.items():
        profile_mixing(name, mixing, has_base=spec.base is not None)
    for name in profiles.profiles:
        if profiles.mixings.get(name, spec.mixing) == "logits":
            weights_M = profiles.profiles[name]
            if (policy := profiles.without_logits(weights_M)) is not None:
                raise ProfileError(
                    f"profile {name!r} mixes logits and gives policy {policy!r} weight, which has "
                    "no KV cache and no logits; give the profile the mixing 'parameters', or add "
                    "the policy with a KV cache"
                )


def profile_weights(name: str, preferences: object, spec: MixtureSpec) -> tuple[float, ...]:
    """A profile's M weights from `{member: number}`, by the rules of a request's.

    Raises: ProfileError naming the profile, what came and what is allowed.
    """
    try:
        weights_M = weights_from_preferences(preferences, spec)
    except WeightsError as error:
        raise ProfileError(f"profile {name!r}: {error}") from None
    assert isinstance(preferences, Mapping), "weights_from_preferences() accepts nothing else"
    given_M = tuple(float(preferences.get(member, 0.0)) for member in spec.member_names)
    return given_M if abs(math.fsum(given_M) - 1) <= _ROUNDING else weights_M

"""The profiles in force: an immutable set, and the one reference that points at it.

A request reads `CurrentProfiles.current` once, at admission, and keeps what it read to its last
token. A change builds a whole new `ProfileSet` aside and swaps the reference, so nobody ever sees
half of one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mixing.simplex import WeightsError, weights_from_preferences
from mixing.spec import MixtureSpec, SpecError, check_name

DEFAULT_PROFILE = "default"
"""The profile that exists when none was given: uniform weights."""

CUSTOM_PROFILE = "custom"
"""What answers report as profile when the request brought its own weights."""


class ProfileError(ValueError):
    """Profiles that cannot be served: a bad name, bad weights or a default that does not exist."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ProfileSet:
    """Named weight vectors and which of them is the default; never changed once built.

    Build it with `build_profile_set`, which checks everything.
    """

    member_names: tuple[str, ...]
    """The M members the vectors are for, in weight order."""
    profiles: Mapping[str, tuple[float, ...]]
    """Profile name to its M weights, in the order given."""
    default: str
    """The profile used when a request names nothing."""
    version: int
    """Grows by one with every change of content."""

    @property
    def sha256(self) -> str:
        """Hash of the content, without the version: equal profiles have equal hashes."""
        canonical = json.dumps(self.content(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def content(self) -> dict[str, Any]:
        """The set as JSON-ready objects, each weight under its member's name."""
        return {
            "policies": list(self.member_names),
            "default_profile": self.default,
            "profiles": {
                name: {"weights": dict(zip(self.member_names, weights_M, strict=True))}
                for name, weights_M in self.profiles.items()
            },
        }


class CurrentProfiles:
    """Holds the profile set in force."""

    def __init__(self, profiles: ProfileSet) -> None:
        self._current = profiles

    @property
    def current(self) -> ProfileSet:
        """The set in force now. Read it once per request."""
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
) -> ProfileSet:
    """Checks every profile and the default, and builds the set.

    Args:
      preferences: profile name to `{member: number}`; empty means one uniform profile, `default`.
      spec: the mixture the profiles are for.
      default: the default profile's name; None takes `default` if there is one, else the first.
      version: number of this set.
    Raises: ProfileError naming the profile, what came and what is allowed.
    """
    if not preferences:
        profiles = {DEFAULT_PROFILE: spec.uniform_weights}
    else:
        profiles = {
            _profile_name(name): _profile_weights(name, value, spec)
            for name, value in preferences.items()
        }
    if default is None:
        default = DEFAULT_PROFILE if DEFAULT_PROFILE in profiles else next(iter(profiles))
    if default not in profiles:
        raise ProfileError(
            f"default_profile is {default!r}, which does not exist; "
            f"the profiles are: {', '.join(profiles)}"
        )
    return ProfileSet(
        member_names=spec.member_names, profiles=profiles, default=default, version=version
    )


def _profile_name(name: object) -> str:
    if name == CUSTOM_PROFILE:
        raise ProfileError(
            f"a profile cannot be named {CUSTOM_PROFILE!r}: answers report that word for weights "
            "sent with the request; choose another name"
        )
    try:
        return check_name(name, what="profile")
    except SpecError as error:
        raise ProfileError(str(error)) from None


def _profile_weights(name: str, preferences: object, spec: MixtureSpec) -> tuple[float, ...]:
    try:
        return weights_from_preferences(preferences, spec)
    except WeightsError as error:
        raise ProfileError(f"profile {name!r}: {error}") from None

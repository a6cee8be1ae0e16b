"""The format of a store file: one JSON object, read strictly and written canonically.

    {"format": 1, "version": 3, "policies": ["helpful", "harmless"], "default_profile": "even",
     "profiles": {"even": {"weights": {"helpful": 0.5, "harmless": 0.5}, "provenance": {...}}},
     "changed": {"version": 3, "at": "2026-11-22T14:03:09Z", "by": "ops"}}

`policies` are the members in weight order, the reference last. Weights sum to 1; a member without
an entry has weight 0. `provenance` is optional and kept as it is; so is `mixing`, the profile's way
to mix. `changed` is optional, too: it says who made the version that it names, and counts for no
other. A set in the affine space has the
key `"weight_space": "affine"`; without that key weights are on the simplex. `sha256` may stand in a
file, as `prefmix weights show --json` prints it, and is not read. A set for policies that
have prompts of their own has the key `prompts_sha256`, a hash of these. `added_policies` has those
of the policies that no configuration names (prefmix.weights.store.added), and `dormant_profiles`,
in the form of `profiles`, those that wait for policies that are not there.

The same object without the texts of prompts is the document that a server's answers show.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from prefmix.mixing.shown_value import shown
from prefmix.mixing.simplex import SUM_TOLERANCE
from prefmix.mixing.spec import WEIGHT_SPACES, MixtureSpec, Policy, SpecError, WeightSpace
from prefmix.weights.store.added import AddedPolicies, parsed_added
from prefmix.weights.store.dormant import DormantProfile
from prefmix.weights.store.errors import StoreFormatError
from prefmix.weights.store.profiles import (
    ProfileError,
    ProfileSet,
    Signature,
    build_profile_set,
    check_num_profiles,
    check_profile_name,
    profile_mixing,
)
from prefmix.weights.store.sleep import dormant_profile

FORMAT = 1
"""Value of the key `format`."""

MAX_BYTES = 16 * 2**20
"""Largest store file; thousands of profiles fit."""

MAX_POLICIES = 1000
"""Most policies of a store: each profile in memory has a number for each of them."""

MAX_VERSION = 10**15
"""Highest version number: every reader of JSON and every metric holds it exactly, and the next."""

_KEYS = ("format", "version", "policies", "default_profile", "profiles")
_OPTIONAL_KEYS = (
    *("weight_space", "prompts_sha256", "added_policies", "dormant_profiles", "changed", "sha256"),
)
_SHA256 = re.compile("[0-9a-f]{64}")
_SIGNATURE_KEYS = ("version", "at", "by")

MAX_AUTHOR_CHARS = 128
"""Longest name of an author, and longest time."""


def spec_of_members(
    member_names: Sequence[str],
    weight_space: WeightSpace = "simplex",
    prompts_sha256: str | None = None,
) -> MixtureSpec:
    """A spec for checking weights if only the members' names are known, not their models."""
    policies = tuple(Policy(name=name, model=name) for name in member_names)
    return MixtureSpec(policies=policies, weight_space=weight_space, prompts_sha256=prompts_sha256)


def dump(profiles: ProfileSet) -> str:
    """The set as the text of a store file."""
    whole = document(profiles, with_texts=True)
    return json.dumps(whole, indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def document(profiles: ProfileSet, *, with_texts: bool = False) -> dict[str, Any]:
    """The set as the JSON object of a store file.

    Args: with_texts: gives the texts of added policies' prompts; otherwise their hashes.
    """
    space = {} if profiles.weight_space == "simplex" else {"weight_space": profiles.weight_space}
    signed = profiles.signed
    changed = {} if signed is None else {"changed": asdict(signed)}
    content = profiles.content(with_texts=with_texts)
    return {"format": FORMAT, "version": profiles.version, **space, **content, **changed}


def parse(text: str | bytes, *, source: str, max_profiles: int | None = None) -> ProfileSet:
    """Reads the text of a store file.

    Args:
      text: the file's content.
      source: the file's name, for messages.
      max_profiles: the most profiles it may have; None has no limit.
    Raises: StoreFormatError naming source, field and value; for broken JSON line and column.
    """
    if len(text) > MAX_BYTES:
        raise StoreFormatError(
            f"{source}: more than {MAX_BYTES // 2**20} MiB, which no set of profiles needs"
        )
    return from_document(_load(text, source), source=source, max_profiles=max_profiles)


def from_document(data: object, *, source: str, max_profiles: int | None = None) -> ProfileSet:
    """The set from the JSON object of a store file. Raises: StoreFormatError.

    Args: as `parse`.
    """
    try:
        return _profile_set(data, max_profiles)
    except (ProfileError, SpecError, StoreFormatError) as error:
        raise StoreFormatError(f"{source}: {error}") from None


def _load(text: str | bytes, source: str) -> object:
    try:
        # NaN and Infinity pass here; the check of their field refuses them with its name.
        return json.loads(text, object_pairs_hook=_unique_keys)
    except json.JSONDecodeError as error:
        raise StoreFormatError(
            f"{source} line {error.lineno} column {error.colno}: not JSON: {error.msg}"
        ) from None
    except UnicodeDecodeError:
        raise StoreFormatError(f"{source}: not a text file in UTF-8") from None
    except RecursionError:
        raise StoreFormatError(f"{source}: objects are nested too deeply") from None
    except ValueError as error:
        raise StoreFormatError(f"{source}: {error}") from None


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {shown(key)} is given twice in one object")
        found[key] = value
    return found


def _profile_set(data: object, max_profiles: int | None) -> ProfileSet:
    if not isinstance(data, dict):
        raise StoreFormatError(f"the file holds {shown(data)}, expected one JSON object")
    # Another format may have other keys, so its number is reported first.
    if "format" in data and (data["format"] != FORMAT or isinstance(data["format"], bool)):
        raise StoreFormatError(
            f"format is {shown(data['format'])}; this version of prefmix reads format {FORMAT}"
        )
    _check_keys(data, required=_KEYS, optional=_OPTIONAL_KEYS, where="")
    version = data["version"]
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise StoreFormatError(f"version is {shown(version)}, expected a whole number from 1")
    if version > MAX_VERSION:
        raise StoreFormatError(f"version is {shown(version)}, expected {MAX_VERSION} at most")
    _hash("sha256", data.get("sha256"))
    prompts_sha256 = _hash("prompts_sha256", data.get("prompts_sha256"))
    spec = _spec(data["policies"], data.get("weight_space", "simplex"), prompts_sha256)
    profiles = data["profiles"]
    if not isinstance(profiles, dict) or not profiles:
        raise StoreFormatError(
            f"profiles is {shown(profiles)}, expected an object with at least one profile"
        )
    dormant = data.get("dormant_profiles", {})
    if not isinstance(dormant, dict):
        raise StoreFormatError(f"dormant_profiles is {shown(dormant)}, expected an object")
    check_num_profiles(len(profiles) + len(dormant), max_profiles)  # before each of them costs time
    default = data["default_profile"]
    if not isinstance(default, str):
        raise StoreFormatError(f"default_profile is {shown(default)}, expected a profile's name")
    found = build_profile_set(
        {name: _weights(name, value) for name, value in profiles.items()},
        spec,
        default=default,
        version=version,
        provenance={name: value.get("provenance", {}) for name, value in profiles.items()},
        mixings={name: value["mixing"] for name, value in profiles.items() if "mixing" in value},
    )
    found = replace(found, added=_added(data.get("added_policies", {}), found.member_names))
    found = replace(
        found, dormant={name: _dormant(name, each, found, spec) for name, each in dormant.items()}
    )
    return replace(found, signature=_signature(data["changed"])) if "changed" in data else found


def _dormant(name: str, value: Any, found: ProfileSet, spec: MixtureSpec) -> DormantProfile:
    where = f"dormant_profiles.{name:.64}"
    if name in found.profiles:
        raise StoreFormatError(f"{where} is among profiles, too; leave one of them out")
    profile = dormant_profile(name, _weights(name, value, table="dormant_profiles"), spec)
    if profile is None:
        raise StoreFormatError(f"{where} waits for no policy; put it among profiles")
    mixing = profile_mixing(name, value["mixing"]) if "mixing" in value else None
    return replace(profile, mixing=mixing, provenance=value.get("provenance", {}))


def _added(value: object, member_names: Sequence[str]) -> AddedPolicies:
    added = parsed_added(value)
    for name in added:
        if name not in member_names:
            raise StoreFormatError(f"added_policies names {shown(name)}, which policies does not")
    return added


def _hash(key: str, value: object) -> str | None:
    if value is None or (isinstance(value, str) and _SHA256.fullmatch(value)):
        return value
    raise StoreFormatError(
        f"{key} is {shown(value)}, expected 64 digits of 0-9 and a-f, or no such key"
    )


def _signature(changed: object) -> Signature:
    if not isinstance(changed, dict):
        raise StoreFormatError(f"changed is {shown(changed)}, expected an object")
    _check_keys(changed, required=_SIGNATURE_KEYS, optional=(), where="changed")
    version = changed["version"]
    if isinstance(version, bool) or not isinstance(version, int):
        raise StoreFormatError(f"changed.version is {shown(version)}, expected a whole number")
    for key in ("at", "by"):
        value = changed[key]
        is_text = isinstance(value, str) and value.isprintable()
        if not is_text or len(value) > MAX_AUTHOR_CHARS:
            raise StoreFormatError(
                f"changed.{key} is {shown(value)}, expected one line of {MAX_AUTHOR_CHARS} "
                "characters at most"
            )
    return Signature(**changed)


def _spec(policies: object, weight_space: object, prompts_sha256: str | None) -> MixtureSpec:
    if not isinstance(policies, list) or not all(isinstance(name, str) for name in policies):
        raise StoreFormatError(f"policies is {shown(policies)}, expected a list of names")
    if len(policies) > MAX_POLICIES:
        raise StoreFormatError(
            f"policies has {len(policies)} names, expected {MAX_POLICIES} at most"
        )
    if weight_space not in WEIGHT_SPACES:
        raise StoreFormatError(
            f"weight_space is {shown(weight_space)}; allowed: {', '.join(WEIGHT_SPACES)}"
        )
    return spec_of_members(policies, weight_space, prompts_sha256)  # type: ignore[arg-type]


def _weights(name: str, profile: object, *, table: str = "profiles") -> dict[str, Any]:
    """The weights of one profile, checked for errors that `build_profile_set` would repair."""
    where = f"{table}.{check_profile_name(name)}"
    if not isinstance(profile, dict):
        raise StoreFormatError(f'{where} is {shown(profile)}, expected {{"weights": {{...}}}}')
    _check_keys(profile, required=("weights",), optional=("mixing", "provenance"), where=where)
    check_provenance(profile.get("provenance", {}), where=f"{where}.provenance")
    weights = profile["weights"]
    if not isinstance(weights, dict):
        raise StoreFormatError(f"{where}.weights is {shown(weights)}, expected {{policy: number}}")
    numbers = [value for value in weights.values() if isinstance(value, (int, float))]
    if len(numbers) == len(weights) and _is_off_one(numbers):
        raise StoreFormatError(
            f"{where}.weights sum to {math.fsum(numbers):g}, expected 1 within {SUM_TOLERANCE:g}; "
            "'prefmix weights set' takes ratios and divides them by their sum"
        )
    return weights


def _is_off_one(numbers: Sequence[float]) -> bool:
    """True if the sum of finite, non-negative numbers is not 1; other faults are found later."""
    try:
        if not all(math.isfinite(number) and number >= 0 for number in numbers):
            return False
        return bool(numbers) and abs(math.fsum(numbers) - 1) > SUM_TOLERANCE
    except OverflowError:
        return False


def check_provenance(provenance: object, *, where: str) -> None:
    """Checks that a provenance is an object that JSON can carry. Raises: StoreFormatError."""
    if not isinstance(provenance, dict):
        raise StoreFormatError(f"{where} is {shown(provenance)}, expected an object")
    try:
        json.dumps(provenance, allow_nan=False, ensure_ascii=False).encode()
    except (TypeError, ValueError, RecursionError):
        raise StoreFormatError(
            f"{where} holds NaN, Infinity, half a surrogate pair, too many levels or another value "
            "that JSON in UTF-8 cannot carry"
        ) from None


def _check_keys(
    data: Mapping[str, Any], *, required: Sequence[str], optional: Sequence[str], where: str
) -> None:
    prefix = f"{where}: " if where else ""
    allowed = (*required, *optional)
    for key in data:
        if key not in allowed:
            close = difflib.get_close_matches(key, allowed, n=1)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            raise StoreFormatError(
                f"{prefix}unknown key {shown(key)}{hint}; allowed: {', '.join(allowed)}"
            )
    for key in required:
        if key not in data:
            raise StoreFormatError(f"{prefix}{key} is missing")

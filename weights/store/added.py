"""The policies that were added to a running server: a part of each version of the profiles.

The configuration names the policies of a start. What is added later is an adapter of their base. It
is kept with the profiles, so that a version has the policies that its weights are for, and a server
that starts again, or goes back to a version, has them too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from prefmix.mixing.shown_value import shown
from prefmix.mixing.spec import MixtureSpec, Policy, SpecError

MAX_FOLDER_CHARS = 512
"""Longest name of an adapter's folder."""

_SHA256 = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True, slots=True)
class AddedPolicy:
    """An adapter of the base, as it was when it was added."""

    adapter: str
    """Its folder, relative to the server's folder of policies."""
    sha256: str
    """Hash of its files."""


AddedPolicies = Mapping[str, AddedPolicy]
"""The added policies by name, in weight order."""


def with_added(spec: MixtureSpec, added: AddedPolicies) -> MixtureSpec:
    """The mixture of a configuration's policies and the added ones, which follow them.

    Raises: SpecError for a name that no policy can have, or that the configuration has.
    """
    if not added:
        return spec
    if spec.base is None:
        raise SpecError(
            f"policy {next(iter(added))!r} was added to a base, and this mixture has full "
            "checkpoints"
        )
    policies = tuple(Policy(name=name, model=each.adapter) for name, each in added.items())
    return replace(spec, policies=(*spec.policies, *policies))


def added_document(added: AddedPolicies) -> dict[str, Any]:
    """The added policies as JSON-ready objects."""
    return {name: asdict(each) for name, each in added.items()}


def parsed_added(value: object) -> dict[str, AddedPolicy]:
    """Reads `added_document`'s form. Raises: SpecError naming the field and what came."""
    if not isinstance(value, dict):
        raise SpecError(f"added_policies is {shown(value)}, expected an object")
    return {name: _parsed(name, entry) for name, entry in value.items()}


def _parsed(name: str, entry: object) -> AddedPolicy:
    where = f"added_policies.{name:.64}"
    if not isinstance(entry, dict) or entry.keys() != {"adapter", "sha256"}:
        raise SpecError(f"{where} is {shown(entry)}, expected an object with adapter and sha256")
    folder, sha256 = entry["adapter"], entry["sha256"]
    if not (isinstance(folder, str) and 0 < len(folder) <= MAX_FOLDER_CHARS):
        raise SpecError(f"{where}.adapter is {shown(folder)}, expected the name of a folder")
    if not (isinstance(sha256, str) and _SHA256.fullmatch(sha256)):
        raise SpecError(f"{where}.sha256 is {shown(sha256)}, expected 64 digits of 0-9 and a-f")
    return AddedPolicy(adapter=folder, sha256=sha256)

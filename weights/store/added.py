"""The policies that were added to a running server: a part of each version of the profiles.

The configuration names the policies of a start. What is added later is an adapter of their base, or
the base itself under a prompt. It is kept with the profiles, so that a version has the policies
that its weights are for, and a server that starts again, or goes back to a version, has them too.

The store's file has the texts of prompts; everybody else is told their hashes.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from prefmix.mixing.shown_value import shown
from prefmix.mixing.spec import MixtureSpec, Policy, SpecError
from prefmix.mixing.system_texts import system_text

MAX_FOLDER_CHARS = 512
"""Longest name of an adapter's folder."""

_SLOT_NAME = re.compile(r"adapter-slot-\d+")
"""Names of the engine's members that are slots, by which metrics know them (mixing/spec)."""

_SHA256 = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True, slots=True)
class AddedPolicy:
    """An adapter of the base as it was when it was added, a prompt, or both."""

    adapter: str | None = None
    """Its folder, relative to the server's folder of policies; None for the base itself."""
    sha256: str | None = None
    """Hash of the adapter's files; None without an adapter."""
    system: str | None = field(default=None, repr=False)
    """The system message that it alone reads before every conversation."""
    system_sha256: str | None = None
    """Hash of `system`; without a text, that of one which is not told here."""
    kv_cache: bool = True
    """False for an adapter whose slot has no KV cache: it has weight only where parameters are
    mixed."""

    @classmethod
    def of(
        cls,
        *,
        adapter: str | None = None,
        sha256: str | None = None,
        system: str | None = None,
        kv_cache: bool = True,
    ) -> AddedPolicy:
        """Builds a policy with the hash of its text."""
        text_sha256 = None if system is None else hashlib.sha256(system.encode()).hexdigest()
        return cls(
            adapter=adapter,
            sha256=sha256,
            system=system,
            system_sha256=text_sha256,
            kv_cache=kv_cache,
        )

    @property
    def is_told(self) -> bool:
        """False if the policy has a text that is not known here."""
        return self.system_sha256 is None or self.system is not None


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
    if name := next((name for name in added if _SLOT_NAME.fullmatch(name)), None):
        raise SpecError(f"policy {name!r} has the name of a slot; choose another name")
    base = {"model": spec.base, "revision": spec.base_revision}
    policies = tuple(
        Policy(name=name, **(base if each.adapter is None else {"model": each.adapter}))
        for name, each in added.items()
    )
    return replace(spec, policies=(*spec.policies, *policies))


def added_document(added: AddedPolicies, *, with_texts: bool = False) -> dict[str, Any]:
    """The added policies as JSON-ready objects; `kv_cache` only where it is false.

    Args: with_texts: gives the texts of prompts, for the store's file; otherwise their hashes.
    """
    hidden = "system_sha256" if with_texts else "system"
    names = [name for name in ("adapter", "sha256", "system", "system_sha256") if name != hidden]
    return {
        name: {
            **{key: getattr(each, key) for key in names if getattr(each, key) is not None},
            **({} if each.kv_cache else {"kv_cache": False}),
        }
        for name, each in added.items()
    }


def lacking_slots(added: AddedPolicies, engine: MixtureSpec) -> str | None:
    """The flags of a server with slots for all added policies; None if this engine has them."""
    without = sum(not each.kv_cache for each in added.values())
    has_without = engine.slots_without_kv
    has_kv = engine.adapter_slots - has_without
    if without <= has_without and len(added) - without <= has_kv:
        return None
    without_kv = max(without, has_without)
    flags = f"--adapter-slots {without_kv + max(len(added) - without, has_kv)}"
    return f"{flags} --adapter-slots-without-kv {without_kv}" if without_kv else flags


def parsed_added(value: object) -> dict[str, AddedPolicy]:
    """Reads both forms of `added_document`. Raises: SpecError naming the field and what came."""
    if not isinstance(value, dict):
        raise SpecError(f"added_policies is {shown(value)}, expected an object")
    return {name: _parsed(name, entry) for name, entry in value.items()}


_ADAPTER, _TEXT, _HASH = {"adapter", "sha256"}, {"system"}, {"system_sha256"}
_KIND = {"kv_cache"}


def _parsed(name: str, entry: object) -> AddedPolicy:
    where = f"added_policies.{name:.64}"
    allowed = (_ADAPTER, _ADAPTER | _KIND, _TEXT, _HASH, _ADAPTER | _TEXT, _ADAPTER | _HASH)
    if not isinstance(entry, dict) or entry.keys() not in allowed:
        came = sorted(entry) if isinstance(entry, dict) else entry  # no text of a prompt
        raise SpecError(
            f"{where} is {shown(came)}, expected an object with adapter and sha256, with system, "
            "or with all three; kv_cache may stand beside adapter and sha256"
        )
    if not isinstance(entry.get("kv_cache", True), bool):
        raise SpecError(f"{where}.kv_cache is {shown(entry['kv_cache'])}, expected true or false")
    folder, text = entry.get("adapter"), entry.get("system")
    if "adapter" in entry and not (isinstance(folder, str) and 0 < len(folder) <= MAX_FOLDER_CHARS):
        raise SpecError(f"{where}.adapter is {shown(folder)}, expected the name of a folder")
    for key in entry.keys() & {"sha256", "system_sha256"}:
        if not (isinstance(entry[key], str) and _SHA256.fullmatch(entry[key])):
            raise SpecError(
                f"{where}.{key} is {shown(entry[key])}, expected 64 digits of 0-9 and a-f"
            )
    if "system" not in entry:
        return AddedPolicy(**entry)
    try:
        system_text(text)
    except ValueError as error:
        raise SpecError(f"{where}.system is {error}") from None
    return AddedPolicy.of(**entry)

"""Metrics of policies that come and go while the server runs."""

from __future__ import annotations

from typing import Literal

from prometheus_client import Counter

from prefmix.server.telemetry.metrics import gauge

Trigger = Literal["put", "delete", "manifest"]
"""The cause of a change: a request to the admin API, or the manifest of policies."""

Result = Literal["ok", "unchanged", "refused", "conflict"]
"""The end of a change; a conflict is with another change or with requests under way."""

_CHANGES = Counter(
    "prefmix_policy_changes",
    "Changes of the policies of the running server, by cause (put, delete, manifest) and result: "
    "ok, unchanged, refused, or conflict with another change or with requests under way.",
    ["trigger", "result"],
)
_MANIFEST = gauge(
    "prefmix_policies_manifest_successful",
    "0 while the policies of the manifest are not those in force; 1 otherwise, and without one.",
)


def set_up() -> None:
    """Makes all series exist."""
    triggers: tuple[Trigger, ...] = ("put", "delete", "manifest")
    results: tuple[Result, ...] = ("ok", "unchanged", "refused", "conflict")
    for trigger in triggers:
        for result in results:
            _CHANGES.labels(trigger, result)
    _MANIFEST.set(1)


def count_change(trigger: Trigger, result: Result) -> None:
    """Counts a change that was tried; dry runs are none."""
    _CHANGES.labels(trigger, result).inc()


def manifest_in_force(is_in_force: bool) -> None:
    """Shows if the policies of the manifest are those in force."""
    _MANIFEST.set(is_in_force)

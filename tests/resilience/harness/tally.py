"""Counts of the hostile inputs that a run of the suite has sent to prefmix."""

from __future__ import annotations

from collections import Counter

HOSTILE: Counter[str] = Counter()
"""The number of inputs by the part of prefmix that they were sent to."""

REPORTS: list[str] = []
"""Tables to show when the run ends."""


def hostile(where: str, count: int = 1) -> None:
    """Counts inputs that were made to do harm."""
    HOSTILE[where] += count


def table() -> list[str]:
    """One line for each part of prefmix, and the sum."""
    rows = [*sorted(HOSTILE.items()), ("together", HOSTILE.total())]
    return [f"{where:<40}{count:>8,}" for where, count in rows]

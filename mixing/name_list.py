"""Lists of names in messages, which stay short however many names there are."""

from __future__ import annotations

from collections.abc import Collection

MAX_NAMES = 20
"""Names that a message lists."""


def listed(names: Collection[object]) -> str:
    """The names with commas between them: all of them, or the first few and their number."""
    shown = [str(name)[:80] for _, name in zip(range(MAX_NAMES), names, strict=False)]
    if len(names) > MAX_NAMES:
        shown.append(f"... ({len(names)} in all)")
    return ", ".join(shown)

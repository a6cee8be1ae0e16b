"""The size of the suite: `PREFMIX_RESILIENCE=short` (the default) or `full`."""

from __future__ import annotations

import os

VARIABLE = "PREFMIX_RESILIENCE"
IS_FULL = os.environ.get(VARIABLE, "short") == "full"


def scaled(*, short: int, full: int) -> int:
    """The number for the size that was chosen."""
    return full if IS_FULL else short

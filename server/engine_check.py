"""The engines' check of themselves (prefmix.mixing.engine.self_check), asked for before requests.

Every API process asks every engine. An engine checks itself once, and answers whoever asks later
with what it found then. The launcher prints it in the ready table.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from prefmix.mixing.wire import SELF_CHECK_METHOD

_FILE = "self-check.json"


class EngineCheckError(ValueError):
    """An engine that cannot serve the mixture; the text is one sentence."""


async def check_engines(engine_client: Any, folder: Path | None) -> None:
    """Waits for the check of all engines, and notes how long it took.

    Args:
      engine_client: vLLM's.
      folder: the private folder of this server's processes, for `checked_as`; None notes nothing.
    Raises: EngineCheckError.
    """
    found = await engine_client.engine_core.call_utility_all_async(SELF_CHECK_METHOD)
    for each in found:
        if each["failure"] is not None:
            raise EngineCheckError(each["failure"])
    if folder is not None:
        slowest = max(found, key=lambda each: float(each["seconds"]))
        aside = folder / f".{_FILE}.{os.getpid()}"
        aside.write_text(json.dumps(slowest), encoding="utf-8")
        aside.rename(folder / _FILE)


def slots_as(folder: Path) -> str | None:
    """A phrase for the ready table about the cost of a slot; None without slots."""
    found = _noted(folder)
    if found is None or "slot_bytes" not in found:
        return None
    parameters = f"each takes {found['slot_bytes']:,} bytes of parameters on a rank"
    cache = f"{found['slot_kv_bytes']:,} bytes of KV cache for each token"
    without = found["slots_without_kv"]
    if not without:
        return f"{parameters}, and {cache}"
    if not found["slots_with_kv"]:
        return f"{parameters}, and no KV cache: they mix parameters only"
    return (
        f"{parameters}, and {found['slots_with_kv']} of them {cache}; {without} without KV cache "
        "mix parameters only"
    )


def _noted(folder: Path) -> dict[str, Any] | None:
    try:
        return dict(json.loads((folder / _FILE).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None


def checked_as(folder: Path) -> str | None:
    """A phrase for the ready table; None if no process has noted a check."""
    found = _noted(folder)
    if found is None:
        return None
    return (
        f"each policy and their mixture drew {found['tokens']} tokens in {found['seconds']:.1f} s"
    )

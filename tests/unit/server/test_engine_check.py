"""The engines' check of themselves, as an API process asks for it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from prefmix.mixing.wire import SELF_CHECK_METHOD
from prefmix.server.engine_check import EngineCheckError, check_engines, checked_as, slots_as


def client(*found: dict[str, Any]) -> Any:
    """An engine client whose engines answer so."""

    async def call_utility_all_async(method: str) -> list[dict[str, Any]]:
        assert method == SELF_CHECK_METHOD
        return list(found)

    return SimpleNamespace(
        engine_core=SimpleNamespace(call_utility_all_async=call_utility_all_async)
    )


def result(failure: str | None = None, *, seconds: float = 0.2) -> dict[str, Any]:
    return {"failure": failure, "tokens": 8, "seconds": seconds}


def test_the_slowest_engine_is_noted_for_the_ready_table(tmp_path: Path) -> None:
    assert checked_as(tmp_path) is None
    for _ in range(2):  # every API process notes the same
        asyncio.run(check_engines(client(result(), result(seconds=1.52)), tmp_path))
    assert checked_as(tmp_path) == "each policy and their mixture drew 8 tokens in 1.5 s"
    assert [file.name for file in tmp_path.iterdir()] == ["self-check.json"]


@pytest.mark.parametrize(
    ("has_kv", "without", "phrase"),
    [
        (2, 0, "on a rank, and 256 bytes of KV cache for each token"),
        (0, 2, "on a rank, and no KV cache: they mix parameters only"),
        (
            3,
            2,
            "on a rank, and 3 of them 256 bytes of KV cache for each token; 2 without KV cache "
            "mix parameters only",
        ),
    ],
)
def test_the_ready_table_says_what_slots_cost(
    tmp_path: Path, has_kv: int, without: int, phrase: str
) -> None:
    cost = {"slot_bytes": 1024, "slot_kv_bytes": 256 * bool(has_kv)}
    counts = {"slots_with_kv": has_kv, "slots_without_kv": without}
    asyncio.run(check_engines(client({**result(), **cost, **counts}), tmp_path))
    assert slots_as(tmp_path) == f"each takes 1,024 bytes of parameters {phrase}"


def test_one_engine_that_fails_ends_the_start(tmp_path: Path) -> None:
    with pytest.raises(EngineCheckError, match="policy 'b' computes NaN"):
        asyncio.run(check_engines(client(result(), result("policy 'b' computes NaN")), tmp_path))
    assert checked_as(tmp_path) is None


def test_nothing_is_noted_without_a_folder(tmp_path: Path) -> None:
    asyncio.run(check_engines(client(result()), None))

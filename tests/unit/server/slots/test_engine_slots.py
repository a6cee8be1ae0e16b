"""An adapter is in the slots of all engines of a data-parallel group, or of none."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from prefmix.mixing import wire
from prefmix.mixing.spec import MixtureSpec, Policy
from prefmix.server.slots.engine_slots import EngineSlots, PolicyRefusedError

pytestmark = pytest.mark.usefixtures("vllm")

SPEC = MixtureSpec(
    policies=(Policy(name="a", model="org/a"),),
    base="org/base",
    adapter_slots=2,
    max_adapter_rank=8,
)


class Engines:
    """Two engines behind vLLM's client; the second may refuse a verb, or draw NaN."""

    def __init__(self, *, refuses: str | None = None, draws_nan: bool = False) -> None:
        self.told: list[str] = []
        self.drawn: list[tuple[int, Any]] = []
        self._refuses, self._draws_nan = refuses, draws_nan
        self.content = ["old", "old"]
        model_config = SimpleNamespace(get_vocab_size=lambda: 320)
        self.vllm_config = SimpleNamespace(model_config=model_config)
        self.engine_core = SimpleNamespace(
            engine_ranks_managed=[0, 1], call_utility_all_async=self._call
        )

    async def _call(self, method: str, verb: str, values: list[Any]) -> list[dict[str, Any]]:
        assert method == wire.SLOT_METHOD
        self.told.append(verb)
        answers: list[dict[str, Any]] = []
        for rank in (0, 1):
            is_refused = rank == 1 and verb == self._refuses
            if verb in ("put", "empty") and not is_refused:
                self.content[rank] = values[1] if verb == "put" else "base"
            failure = f"engine 1 cannot {verb}" if is_refused else None
            answers.append({"failure": failure, "done": True, "seconds": 0.1 * (rank + 1)})
        return answers

    async def generate(self, prompt: Any, params: Any, request_id: str, **more: Any) -> Any:
        self.drawn.append((more["data_parallel_rank"], params.extra_args))
        is_broken = self._draws_nan and more["data_parallel_rank"] == 1
        reason = wire.FAILED_REASON if is_broken else "length"
        stop = wire.to_stop_reason(["adapter-slot-0"]) if is_broken else None
        yield SimpleNamespace(outputs=[SimpleNamespace(finish_reason=reason, stop_reason=stop)])


def put(engines: Engines) -> float:
    return asyncio.run(EngineSlots(engines, SPEC).put(0, "new", "/new", key="key"))


def test_all_engines_have_it_and_each_has_drawn_with_it() -> None:
    engines = Engines()
    assert put(engines) == 0.2, "the longest time"
    assert engines.content == ["key", "key"]
    assert [rank for rank, _ in engines.drawn] == [0, 1]
    assert all(args == wire.to_extra_args((0.0, 1.0, 0.0), "logits") for _, args in engines.drawn)


@pytest.mark.parametrize("verb", ["read", "outcome"])
def test_what_an_engine_cannot_read_is_put_into_none(verb: str) -> None:
    engines = Engines(refuses=verb)
    with pytest.raises(PolicyRefusedError, match=f"engine 1 cannot {verb}"):
        put(engines)
    assert engines.content == ["old", "old"]


def test_what_an_engine_cannot_hold_leaves_all() -> None:
    engines = Engines(refuses="put")
    with pytest.raises(PolicyRefusedError, match="engine 1 cannot put"):
        put(engines)
    assert engines.content == ["base", "base"]
    assert not engines.drawn


def test_what_computes_nan_in_an_engine_leaves_all() -> None:
    engines = Engines(draws_nan=True)
    with pytest.raises(PolicyRefusedError, match="policy 'new' computes NaN or infinity"):
        put(engines)
    assert engines.content == ["base", "base"]

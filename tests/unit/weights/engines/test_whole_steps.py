"""Calls that end early: signals wait for the end of a step, and a step that raised leaves nothing.

`tests/engine/test_python_api.py` has the same with real steps.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from prefmix.weights.engines.errors import EngineError
from prefmix.weights.engines.whole_steps import nothing_left_behind

REQUEST = "7-x"


class FakeEngine:
    """The part of `vllm.LLM` that the code under test uses, and of its engine."""

    def __init__(self, within: Callable[[], Any] = lambda: None) -> None:
        self.llm_engine = self.output_processor = self
        self.request_states = {REQUEST: object()}
        self.within = within
        self.done: list[str] = []
        self.can_reset = True

    def step(self) -> str:
        self.done.append("begin")
        self.within()
        self.done.append("end")
        return "outputs"

    def add_request(self, request_id: str) -> str:
        self.within()
        return request_id

    def abort_request(self, ids: list[str], internal: bool) -> None:
        assert internal
        self.done.append(f"abort {' '.join(ids)}")

    def collective_rpc(self, method: str) -> list[None]:
        self.done.append(method)
        return [None]

    def reset_prefix_cache(self) -> bool:
        self.done.append("reset")
        return self.can_reset


@pytest.fixture
def heard() -> Iterator[list[int]]:
    """The signals that the user's handlers have had; SIGUSR2 raises."""
    numbers: list[int] = []

    def note(number: int, _frame: object) -> None:
        numbers.append(number)

    def raises(number: int, _frame: object) -> None:
        numbers.append(number)
        raise TimeoutError

    kept = {
        signal.SIGUSR1: signal.signal(signal.SIGUSR1, note),
        signal.SIGUSR2: signal.signal(signal.SIGUSR2, raises),
    }
    before = [signal.getsignal(number) for number in kept]
    yield numbers
    assert [signal.getsignal(number) for number in kept] == before
    for number, handler in kept.items():
        signal.signal(number, handler)


def call(llm: FakeEngine, method: str = "step", *words: Any) -> Any:
    with nothing_left_behind(llm):
        return getattr(llm.llm_engine, method)(*words)


def test_a_signal_waits_for_the_end_of_a_step(heard: list[int]) -> None:
    llm = FakeEngine(lambda: signal.raise_signal(signal.SIGUSR2))
    with pytest.raises(TimeoutError):
        call(llm)
    assert llm.done == ["begin", "end", f"abort {REQUEST}"], "and the prefix cache is kept"
    assert heard == [signal.SIGUSR2]
    with pytest.raises(TimeoutError):
        call(llm, "add_request", "8-x")


def test_a_handler_that_does_not_raise_disturbs_no_call(heard: list[int]) -> None:
    llm = FakeEngine(lambda: signal.raise_signal(signal.SIGUSR1))
    assert call(llm) == "outputs"
    assert heard == [signal.SIGUSR1]
    assert "step" not in vars(llm)


def test_a_second_signal_waits_for_nothing(heard: list[int]) -> None:
    def twice() -> None:
        signal.raise_signal(signal.SIGUSR2)
        signal.raise_signal(signal.SIGUSR2)

    llm = FakeEngine(twice)
    with pytest.raises(TimeoutError):
        call(llm)
    assert "end" not in llm.done
    assert llm.done[-2:] == ["prefmix_forget_step", "reset"]


def test_outside_a_step_a_signal_is_handled_at_once(heard: list[int]) -> None:
    with nothing_left_behind(FakeEngine()):
        signal.raise_signal(signal.SIGUSR1)
        assert heard == [signal.SIGUSR1]


def test_a_handler_that_a_call_sets_stays(heard: list[int]) -> None:
    before = signal.getsignal(signal.SIGUSR1)
    with nothing_left_behind(FakeEngine()):
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_IGN
    signal.signal(signal.SIGUSR1, before)


def test_what_a_step_that_raised_has_left_is_dropped() -> None:
    def fails() -> None:
        raise MemoryError

    llm = FakeEngine(fails)
    with pytest.raises(MemoryError):
        call(llm)
    assert llm.done[1:] == [f"abort {REQUEST}"] * 2 + ["prefmix_forget_step", "reset"]
    llm.within = lambda: None
    llm.done.clear()
    assert call(llm) == "outputs"
    assert llm.done == ["begin", "end"]


def test_an_engine_that_keeps_what_a_step_left_answers_no_more() -> None:
    def fails() -> None:
        raise MemoryError

    llm = FakeEngine(fails)
    llm.can_reset = False
    with pytest.raises(MemoryError):
        call(llm)
    for _ in range(2):
        with pytest.raises(EngineError, match="cannot be dropped; close this engine"):
            call(llm)
    llm.can_reset, llm.within = True, lambda: None
    assert call(llm) == "outputs"


def test_threads_other_than_the_main_one_change_no_handlers(heard: list[int]) -> None:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(call(FakeEngine())))
    thread.start()
    thread.join()
    assert found == ["outputs"]

"""Calls of vLLM in this process that end early, such as by Ctrl-C, and leave nothing in its engine.

vLLM registers blocks in its prefix cache before their step has computed them, and its runner
refuses steps after one that has not drawn its tokens (vLLM 0.32). So an exception in the middle of
a step would spoil later answers in silence, or end the engine. Two things keep this from
happening. Handlers of signals run between steps, never inside one. If a step itself raises, what
it left is dropped, the prefix cache included.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import weakref
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from prefmix.weights.engines.errors import EngineError

_unsound = weakref.WeakSet[Any]()
"""Engines (`vllm.LLM`) in which a step has raised, until what it left is dropped."""


@contextlib.contextmanager
def nothing_left_behind(llm: Any) -> Iterator[None]:
    """Takes the requests back that a call leaves in the engine if it raises.

    The next call would otherwise return these answers as its own (vLLM 0.32).

    Raises: EngineError if what an earlier call left cannot be dropped.
    """
    if llm in _unsound:
        _drop(llm)
    engine = llm.llm_engine
    with _Signals().waiting() as signals:
        engine.step = signals.held_during(engine.step, on_error=lambda: _unsound.add(llm))
        engine.add_request = signals.held_during(engine.add_request)
        try:
            yield
        except BaseException:
            with signals.held():
                engine.abort_request(list(engine.output_processor.request_states), internal=True)
                if llm in _unsound:
                    with contextlib.suppress(Exception):  # the next call tries again
                        _drop(llm)
            raise
        finally:
            del engine.step, engine.add_request


def _drop(llm: Any) -> None:
    """Drops what an unfinished step has left in the engine."""
    engine = llm.llm_engine
    engine.abort_request(list(engine.output_processor.request_states), internal=True)
    llm.collective_rpc("prefmix_forget_step")
    if not llm.reset_prefix_cache():
        raise EngineError(
            "an earlier call failed in the middle of a step, and what it left in the engine "
            "cannot be dropped; close this engine and start another"
        )
    _unsound.discard(llm)


class _Signals:
    """Python's signal handlers, held while an engine is in the middle of something."""

    def __init__(self) -> None:
        self._handlers: dict[int, Callable[[int, FrameType | None], Any]] = {}
        self._depth = 0
        self._pending: list[int] = []

    @contextlib.contextmanager
    def waiting(self) -> Iterator[_Signals]:
        """Puts itself before the handlers. Only the main thread runs and changes handlers."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        for each in signal.valid_signals():
            handler = signal.getsignal(each)
            if callable(handler):
                self._handlers[each] = handler
        try:
            for number in self._handlers:
                signal.signal(number, self._handle)
            yield self
        finally:
            for number, handler in self._handlers.items():
                if signal.getsignal(number) == self._handle:
                    signal.signal(number, handler)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Signals that arrive in the block are handled at its end; a second one at once."""
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            while self._pending and not self._depth:
                number = self._pending.pop(0)
                self._handlers[number](number, None)

    def held_during(
        self, method: Callable[..., Any], *, on_error: Callable[[], None] = lambda: None
    ) -> Callable[..., Any]:
        """The method with signals held; `on_error` is called if it raises."""

        def whole(*args: Any, **kwargs: Any) -> Any:
            with self.held():
                try:
                    return method(*args, **kwargs)
                except BaseException:
                    on_error()
                    raise

        return whole

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._depth and number not in self._pending:
            self._pending.append(number)
        else:
            self._handlers[number](number, frame)

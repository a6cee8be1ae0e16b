"""The engine of this process, started on a described mixture. A process has one engine at a time.

vLLM keeps its distributed state in globals of the process, and an engine that ends removes them.
So a second mixture beside an open one is refused.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import warnings
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from prefmix.mixture_keywords import Described, engine_arguments
from prefmix.server.config.errors import ConfigError
from prefmix.server.launch.in_process import check_models, start_on

if TYPE_CHECKING:
    from argparse import Namespace

    from prefmix.weights.engines.local import LocalEngine

_starting = threading.Lock()
_open: weakref.finalize[..., Any] | None = None
"""The finaliser of the latest engine; it is alive while that engine runs."""


class ProcessEngine:
    """A running engine and its arguments."""

    def __init__(self, described: Described, keywords: Mapping[str, Any], *, owner: object) -> None:
        """Starts vLLM in this process.

        Args:
          described: the mixture.
          keywords: arguments of vLLM's engine.
          owner: the engine ends with this object, if not before.
        Raises: ConfigError, CompatibilityError, CheckpointFilesError, TypeError for an unknown
          keyword, RuntimeError for a second engine.
        """
        global _open
        self._lock = threading.RLock()
        self._is_busy = False
        self._pid = os.getpid()
        arguments, objects = engine_arguments(described, keywords)
        checked = check_models(
            described.config, described.spec, trust_remote_code=arguments.trust_remote_code
        )
        for warning in (*checked.warnings, checked.vocabulary_note):
            if warning is not None:
                warnings.warn(warning, stacklevel=4)
        with _starting:
            if _open is not None and _open.alive:
                raise RuntimeError(
                    "another Mixture is open in this process, and vLLM runs one engine in each; "
                    "close that one first, by its close() or with a `with` block"
                )
            systems = described.config.prompts().systems
            systems_M = [systems.get(name) for name in described.spec.member_names]
            self._local: LocalEngine | None = _start(arguments, objects, systems_M)
            self._end = _open = weakref.finalize(owner, _end, self._local, self._pid)

    @property
    def is_open(self) -> bool:
        """True until `close`."""
        return self._end.alive

    @property
    def local(self) -> LocalEngine:
        """The engine that draws and scores. Raises: ValueError once closed."""
        if self._local is None or not self.is_open:
            raise ValueError("this Mixture is closed; make another one")
        return self._local

    @contextlib.contextmanager
    def turn(self) -> Iterator[LocalEngine]:
        """The engine for one call; calls of other threads wait.

        Raises: ValueError once closed; RuntimeError inside another call of this thread, which is
          how a progress bar or a signal's handler can come here, or in a fork of the process.
        """
        if os.getpid() != self._pid:
            raise RuntimeError(
                f"this Mixture's engine runs in process {self._pid}, and this is a fork of it, "
                "which has none of its threads; make a Mixture in a process of its own, started "
                'by multiprocessing\'s "spawn"'
            )
        with self._lock:
            if self._is_busy:
                raise RuntimeError(
                    "this Mixture is in the middle of a call; it can be neither used nor closed "
                    "from inside that, such as by a progress bar or a signal's handler: raise "
                    "an exception there, and go on where the call has ended"
                )
            self._is_busy = True
            try:
                yield self.local
            finally:
                self._is_busy = False

    def chat_options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """A chat's options on top of the configuration's options of the chat template."""
        defaults = self.local.chat_options
        own = given.get("chat_template_kwargs") or {}
        kwargs = {**defaults["chat_template_kwargs"], **own}
        return {**defaults, **given, "chat_template_kwargs": kwargs}

    def close(self) -> None:
        """Ends the engine and frees its memory. May be called again."""
        if self.is_open and os.getpid() == self._pid:
            with self.turn():
                self._local = None
                self._end()


def _start(
    arguments: Namespace, objects: Mapping[str, Any], systems_M: Sequence[str | None]
) -> LocalEngine:
    from pydantic import ValidationError

    from prefmix.server.launch.terminal.failure_message import describe

    shown_by = sys.excepthook
    try:
        return start_on(arguments, objects, systems_M=systems_M)
    except BaseException as error:
        _clean_up()
        if isinstance(error, ValidationError):  # pydantic's dump of vLLM's checks
            raise ConfigError(describe(error)) from error
        raise
    finally:
        sys.excepthook = shown_by  # torch puts "[rank0]: " before each line of a traceback


def _end(engine: LocalEngine, pid: int) -> None:
    if os.getpid() != pid:  # a fork has nothing to free, and would wait for threads
        return
    engine.llm.llm_engine.engine_core.shutdown()
    _clean_up()


def _clean_up() -> None:
    from vllm.distributed import cleanup_dist_env_and_memory

    cleanup_dist_env_and_memory()

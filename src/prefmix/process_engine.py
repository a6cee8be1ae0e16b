"""The engine of this process, started on a described mixture. A process has one engine at a time.

vLLM keeps its distributed state in globals of the process, and an engine that ends removes them.
So a second mixture beside an open one is refused.
"""

from __future__ import annotations

import threading
import warnings
import weakref
from collections.abc import Mapping
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
        arguments, objects = engine_arguments(described, keywords)
        self._arguments = arguments
        for warning in check_models(
            described.config, described.spec, trust_remote_code=arguments.trust_remote_code
        ):
            warnings.warn(warning, stacklevel=4)
        with _starting:
            if _open is not None and _open.alive:
                raise RuntimeError(
                    "another Mixture is open in this process, and vLLM runs one engine in each; "
                    "close that one first, by its close() or with a `with` block"
                )
            self._local: LocalEngine | None = _start(arguments, objects)
            self._end = _open = weakref.finalize(owner, _end, self._local)

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

    def chat_options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """A chat's options on top of the configuration's options of the chat template."""
        defaults = self._arguments.default_chat_template_kwargs or {}
        return {
            "chat_template_content_format": self._arguments.chat_template_content_format,
            **given,
            "chat_template_kwargs": {**defaults, **(given.get("chat_template_kwargs") or {})},
        }

    def close(self) -> None:
        """Ends the engine and frees its memory. May be called again."""
        self._local = None
        self._end()


def _start(arguments: Namespace, objects: Mapping[str, Any]) -> LocalEngine:
    from pydantic import ValidationError

    from prefmix.server.launch.terminal.failure_message import describe

    try:
        return start_on(arguments, objects)
    except BaseException as error:
        _clean_up()
        if isinstance(error, ValidationError):  # pydantic's dump of vLLM's checks
            raise ConfigError(describe(error)) from error
        raise


def _end(engine: LocalEngine) -> None:
    engine.llm.llm_engine.engine_core.shutdown()
    _clean_up()


def _clean_up() -> None:
    from vllm.distributed import cleanup_dist_env_and_memory

    cleanup_dist_env_and_memory()

"""Engines of the tests: real vLLM, in the test's process, on tiny random policies.

PREFMIX_TEST_RUNNER=v2 runs them on vLLM's V2 model runner: on a CPU in Triton's interpreter
(slower), on a GPU compiled.
"""

from __future__ import annotations

import contextlib
import gc
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from prefmix.mixing.spec import MixtureSpec, Policy, hf_overrides
from support.preloaded_server import inspect_models_here, replace_kernels_once

RUNNER = os.environ.get("PREFMIX_TEST_RUNNER", "v1")

INTERPRETED = RUNNER == "v2" and not torch.cuda.is_available()
"""Triton's interpreter runs every kernel: slow, and not all of vLLM's can be."""

KV_CACHE_BYTES = 2**26
"""The cache of an engine whose number of blocks is not given: room for every test's batch."""


def spec_of_folders(folders: Sequence[Path], **settings: Any) -> MixtureSpec:
    """A spec whose members are named after their folders."""
    policies = tuple(Policy(name=folder.name, model=str(folder)) for folder in folders)
    return MixtureSpec(policies=policies, **settings)


@dataclass(frozen=True)
class AdaptedBase:
    """A base, its adapters, and the base merged with each adapter as a full checkpoint."""

    base: Path
    adapters: list[Path]
    merged: list[Path]

    def spec(self, **settings: Any) -> MixtureSpec:
        """A shared trunk; keywords are further fields of the spec."""
        policies = tuple(Policy(name=each.name, model=str(each)) for each in self.adapters)
        return MixtureSpec(policies=policies, base=str(self.base), **settings)

    def reference(self) -> Policy:
        """The base as a policy."""
        return Policy(name="reference", model=str(self.base))


class EngineFactory:
    """engine(spec or folder, **options of vLLM) -> vllm.LLM

    Up to `max_alive` engines live beside each other; a second call with the same arguments returns
    the same engine.
    """

    def __init__(self, *, max_alive: int) -> None:
        self._max_alive = max_alive
        self._alive: dict[tuple[str, str], Any] = {}

    def __call__(self, served: MixtureSpec | Path, **options: Any) -> Any:
        key = (repr(served), repr(sorted(options.items())))
        if self._alive and not _have_groups():  # with another engine of this process
            self.end()
        if key in self._alive:
            self._alive[key] = self._alive.pop(key)  # now the latest used
            return self._alive[key]
        if len(self._alive) == self._max_alive:
            end_engine(self._alive.pop(next(iter(self._alive))))
        self._alive[key] = _start(served, options)
        return self._alive[key]

    def end(self) -> None:
        """Ends all engines of this factory."""
        while self._alive:
            end_engine(self._alive.popitem()[1])


def schedule_ahead(patch: pytest.MonkeyPatch) -> None:
    """Undoes that vLLM plans no step ahead on CPUs."""
    from vllm.platforms import current_platform

    platform = type(current_platform)
    update: Callable[[Any], None] = platform.check_and_update_config

    def keep(vllm_config: Any) -> None:
        update(vllm_config)
        vllm_config.scheduler_config.async_scheduling = True

    patch.setattr(platform, "check_and_update_config", staticmethod(keep))


def _have_groups() -> bool:
    from vllm.distributed import model_parallel_is_initialized

    return bool(model_parallel_is_initialized())


def _start(served: MixtureSpec | Path, options: dict[str, Any]) -> Any:
    settings: dict[str, Any] = {
        "dtype": "float32",
        "enforce_eager": True,
        "max_model_len": 256,
        "max_num_seqs": 48,
        "disable_log_stats": False,
        "kv_cache_memory_bytes": KV_CACHE_BYTES,
        **options,
    }
    if isinstance(served, MixtureSpec):
        settings["model"] = served.checkpoints[0].model
        settings["hf_overrides"] = {**options.get("hf_overrides", {}), **hf_overrides(served)}
    else:
        settings |= {"model": str(served)}
    from vllm import LLM

    inspect_models_here()
    replace_kernels_once()
    # Whoever started an engine before may have set it, and vLLM prefers it to the bytes above.
    os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)
    with _modules_left_out_of_collection():
        llm = LLM(**settings)
    uses_v2 = llm.llm_engine.vllm_config.use_v2_model_runner
    assert uses_v2 == (RUNNER == "v2"), "the engine runs on the other model runner"
    return llm


def end_engine(llm: Any) -> None:
    """Frees what an engine holds, and ends the process groups that all engines here share."""
    with _modules_left_out_of_collection():
        llm.llm_engine.engine_core.shutdown()
        del llm
        gc.collect()


def end_process_groups() -> None:
    """A model with experts needs groups that an engine of another model has not made."""
    if "vllm" in sys.modules and _have_groups():
        from vllm.distributed import cleanup_dist_env_and_memory

        with _modules_left_out_of_collection():
            cleanup_dist_env_and_memory()


@contextlib.contextmanager
def _modules_left_out_of_collection() -> Iterator[None]:
    """Exempts modules from garbage collection, which vLLM runs nine times in each start."""
    if not gc.get_freeze_count():
        gc.collect()
        gc.freeze()
    with mock.patch.multiple(gc, freeze=lambda: None, unfreeze=lambda: None):
        yield


def model_of(llm: Any) -> Any:
    """The model inside an engine of this process."""
    return worker_of(llm).model_runner.model


def worker_of(llm: Any) -> Any:
    """vLLM's worker inside an engine of this process."""
    return llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker


def metric(llm: Any, name: str) -> float:
    """The value of one of vLLM's own counters."""
    values = [sample.value for sample in llm.get_metrics() if sample.name == name]
    assert values, f"vLLM has no metric {name}"
    return float(sum(values))

"""Engines of the tests: real vLLM, in the test's process, on tiny random policies.

PREFMIX_TEST_RUNNER=v2 runs them on vLLM's V2 model runner in Triton's interpreter (slower).
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefmix.mixing.spec import MixtureSpec, Policy, hf_overrides

RUNNER = os.environ.get("PREFMIX_TEST_RUNNER", "v1")

EngineFactory = Callable[..., Any]
"""engine(spec or folder, **options of vLLM) -> vllm.LLM"""


def spec_of_folders(folders: Sequence[Path], **settings: Any) -> MixtureSpec:
    """A spec whose members are named after their folders."""
    policies = tuple(Policy(name=folder.name, model=str(folder)) for folder in folders)
    return MixtureSpec(policies=policies, **settings)


@dataclass(frozen=True)
class AdaptedBase:
    """One base, adapters of it, and the full checkpoint that each adapter makes of it."""

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


def build_engine(served: MixtureSpec | Path, **options: Any) -> Any:
    """A new engine: of a mixture, or of one folder as vLLM serves it by itself."""
    settings: dict[str, Any] = {
        "dtype": "float32",
        "enforce_eager": True,
        "max_model_len": 256,
        "max_num_seqs": 48,
        "disable_log_stats": False,
        **options,
    }
    if isinstance(served, MixtureSpec):
        settings |= {"model": served.checkpoints[0].model, "hf_overrides": hf_overrides(served)}
    else:
        settings |= {"model": str(served)}
    from vllm import LLM

    llm = LLM(**settings)
    uses_v2 = llm.llm_engine.vllm_config.use_v2_model_runner
    assert uses_v2 == (RUNNER == "v2"), "the engine runs on the other model runner"
    return llm


def shut_down(alive: list[Any]) -> None:
    """Ends the engines of this process, so that the next one starts from nothing."""
    if not alive:
        return
    from vllm.distributed import cleanup_dist_env_and_memory

    while alive:
        alive.pop().llm_engine.engine_core.shutdown()
    gc.collect()
    cleanup_dist_env_and_memory()


def model_of(llm: Any) -> Any:
    """The model inside an engine of this process."""
    worker = llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker
    return worker.model_runner.model


def metric(llm: Any, name: str) -> float:
    """The value of one of vLLM's own counters."""
    values = [sample.value for sample in llm.get_metrics() if sample.name == name]
    assert values, f"vLLM has no metric {name}"
    return float(sum(values))

"""Engines for the tests of this folder: real vLLM, in this process, on tiny random policies.

PREFMIX_TEST_RUNNER=v2 runs them on vLLM's V2 model runner in Triton's interpreter (slower).
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
RUNNER = os.environ.get("PREFMIX_TEST_RUNNER", "v1")
if RUNNER == "v2":
    from support import triton_interpreter

    triton_interpreter.install()

from prefmix.mixing.spec import MixtureSpec, Policy, hf_overrides  # noqa: E402
from support.tiny_adapters import save_adapter, save_merged  # noqa: E402
from support.tiny_policies import save_policy  # noqa: E402

EngineFactory = Callable[..., Any]


def spec_of_folders(folders: Sequence[Path], **settings: Any) -> MixtureSpec:
    """A spec whose members are named after their folders."""
    policies = tuple(Policy(name=folder.name, model=str(folder)) for folder in folders)
    return MixtureSpec(policies=policies, **settings)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/engine" in str(item.path):
            item.add_marker(pytest.mark.engine)


@pytest.fixture(scope="session")
def policies(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three policies of one shape."""
    root = tmp_path_factory.mktemp("policies")
    return [
        save_policy(root / name, seed=seed) for seed, name in enumerate(("one", "two", "three"))
    ]


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


@pytest.fixture(scope="session")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> AdaptedBase:
    """Three adapters: of all linear layers, rsLoRA of two kinds, and ranks and alphas by module."""
    root = tmp_path_factory.mktemp("adapted")
    base = save_policy(root / "base", seed=0, kv_heads=1)
    adapters = [
        save_adapter(root / "plain", base, seed=1),
        save_adapter(
            root / "rs", base, seed=2, rank=8, use_rslora=True, targets=("q_proj", "v_proj")
        ),
        save_adapter(
            root / "patterns",
            base,
            seed=3,
            rank_pattern={"k_proj": 2, r"mlp\.(up|down)_proj": 6},
            alpha_pattern={r"layers\.\d+\.self_attn\.o_proj": 3.0},
            layers=[1],
        ),
    ]
    merged = [save_merged(root / f"{each.name}_merged", base, each) for each in adapters]
    return AdaptedBase(base=base, adapters=adapters, merged=merged)


@pytest.fixture(scope="module", params=["full checkpoints", "shared trunk"])
def mixture(
    request: pytest.FixtureRequest, policies: list[Path], adapted: AdaptedBase
) -> tuple[MixtureSpec, list[Path]]:
    """Both layouts: what is served, and the full checkpoints that it must equal."""
    if request.param == "shared trunk":
        return adapted.spec(), adapted.merged
    return spec_of_folders(policies), policies


@pytest.fixture(scope="module")
def engine() -> Iterator[EngineFactory]:
    """engine(spec or folder, **options) -> vllm.LLM; a new one ends the one before."""
    alive: list[Any] = []

    def build(served: MixtureSpec | Path, **options: Any) -> Any:
        shut_down(alive)
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

        alive.append(LLM(**settings))
        uses_v2 = alive[-1].llm_engine.vllm_config.use_v2_model_runner
        assert uses_v2 == (RUNNER == "v2"), "the engine runs on the other model runner"
        return alive[-1]

    yield build
    shut_down(alive)


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

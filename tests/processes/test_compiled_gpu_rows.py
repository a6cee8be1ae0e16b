"""A GPU's rows, products and operator of attention, compiled by Inductor for a CPU."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.checkpoints.tiny_policies import VOCAB_SIZE
from support.engines import AdaptedBase, EngineFactory, model_of
from support.exactness import TOLERANCE_NATS, Oracle, generate, random_jobs

pytestmark = pytest.mark.engine


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """vLLM's compiler of GPUs, which cuts a pass into pieces and keeps them for the next start."""
    from torch._inductor import config as inductor
    from vllm import envs
    from vllm.config import CompilationMode
    from vllm.platforms.cpu import CpuPlatform

    original = CpuPlatform.check_and_update_config

    def check(config: Any) -> None:
        compilation = config.compilation_config
        mode, compilation.mode = compilation.mode, CompilationMode.NONE
        original(config)
        compilation.mode, compilation.compile_sizes = mode, []

    monkeypatch.setattr(CpuPlatform, "check_and_update_config", staticmethod(check))
    monkeypatch.setattr(  # it names operators that only GPUs have
        "vllm.compilation.passes.utility.fix_functionalization.FixFunctionalizationPass.__call__",
        lambda self, graph: None,
    )
    monkeypatch.setenv("VLLM_USE_AOT_COMPILE", "1")
    for name in ("VLLM_CACHE_ROOT", "TORCHINDUCTOR_CACHE_DIR"):  # vLLM sets the second one
        monkeypatch.setenv(name, str(tmp_path))
    envs.disable_envs_cache()  # an engine has filled it
    with inductor.patch(compile_threads=1):  # others would stay
        yield
    envs.disable_envs_cache()


def test_the_rows_of_a_gpu_are_exact_in_a_compiled_graph(
    engine: EngineFactory, adapted: AdaptedBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prefmix.mixing.models.base.takes_any_rows", lambda device: False)
    llm = engine(adapted.spec(reference=adapted.reference()), enforce_eager=False)
    assert not model_of(llm).trunk.do_not_compile
    batch = random_jobs(12, num_members=4, vocab_size=VOCAB_SIZE, seed=11)
    oracle = Oracle([*adapted.merged, adapted.base])
    assert oracle.worst_error(batch, generate(llm, batch)) < TOLERANCE_NATS


@pytest.mark.usefixtures("as_on_a_gpu")
def test_what_a_gpu_compiles_is_exact_and_kept_for_the_next_start(
    engine: EngineFactory, adapted: AdaptedBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each piece takes as many rows as the members have together."""
    monkeypatch.setattr("prefmix.mixing.models.base.takes_any_rows", lambda device: False)
    spec = adapted.spec(reference=adapted.reference())
    batch = random_jobs(12, num_members=4, vocab_size=VOCAB_SIZE, seed=11)
    oracle = Oracle([*adapted.merged, adapted.base])
    for is_kept in (False, True):
        llm = engine(spec, enforce_eager=False)
        trunk = model_of(llm).trunk
        assert trunk.aot_compiled_fn is not None
        assert trunk.was_aot_compile_fn_loaded_from_disk is is_kept
        assert oracle.worst_error(batch, generate(llm, batch)) < TOLERANCE_NATS
        del llm, trunk
        engine.end()

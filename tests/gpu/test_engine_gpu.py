"""The whole engine on a CUDA device: V2 model runner, CUDA graphs, default attention backend."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

from prefmix.mixing.spec import MixtureSpec, hf_overrides
from support.checkpoints.tiny_adapters import save_adapter, save_merged
from support.checkpoints.tiny_policies import VOCAB_SIZE, save_policy
from support.engines import AdaptedBase, spec_of_folders
from support.exactness import generate, random_jobs, rounding_errors

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


BACKENDS = {"heads of other sizes": "TRITON_ATTN", "attention apart": "FLASHINFER"}
"""Kinds of attention by layout, where it is not the device's first choice."""


def mixture_of(layout: str, root: Path) -> tuple[MixtureSpec, list[Path]]:
    """The spec, and the full checkpoints that it must equal."""
    heads = (2, 1, 4) if layout == "heads of other sizes" else (2, 2, 2)
    base, *others = (
        save_policy(root / f"p{seed}", seed=seed, hidden=128, heads=heads[seed])
        for seed in range(3)
    )
    if layout in ("full checkpoints", "heads of other sizes"):
        return spec_of_folders([base, *others]), [base, *others]
    adapters = [save_adapter(root / f"a{seed}", base, seed=seed) for seed in range(2)]
    merged = [save_merged(root / f"m{each.name}", base, each) for each in adapters]
    served = AdaptedBase(base=base, adapters=adapters, merged=merged)
    return served.spec(reference=served.reference()), [*merged, base]


def engine_of(spec: MixtureSpec, layout: str, *, enforce_eager: bool) -> Any:
    """vLLM on the mixture, in bfloat16."""
    vllm = pytest.importorskip("vllm")
    backend = BACKENDS.get(layout)
    if backend == "FLASHINFER":
        pytest.importorskip("flashinfer")
    return vllm.LLM(
        model=spec.checkpoints[0].model,
        hf_overrides=hf_overrides(spec),
        dtype="bfloat16",
        enforce_eager=enforce_eager,
        max_model_len=256,
        max_num_batched_tokens=256,
        gpu_memory_utilization=0.3,
        **({} if backend is None else {"attention_backend": backend}),
    )


@pytest.mark.parametrize(
    ("enforce_eager", "layout"),
    [
        *itertools.product([True, False], ["full checkpoints", "shared trunk"]),
        (False, "heads of other sizes"),
        (False, "attention apart"),
    ],
)
def test_engine_errs_no_more_than_transformers_in_the_same_dtype(
    tmp_path: Path, enforce_eager: bool, layout: str
) -> None:
    """Errors in bfloat16 are judged as on CPU, by those of transformers' own bfloat16."""
    spec, folders = mixture_of(layout, tmp_path)
    llm = engine_of(spec, layout, enforce_eager=enforce_eager)
    jobs = random_jobs(40, num_members=3, vocab_size=VOCAB_SIZE, seed=0)
    outputs = generate(llm, jobs)
    engine_rms, own_rms = rounding_errors(folders, jobs, outputs, dtype=torch.bfloat16)
    assert 0 < engine_rms < 1.5 * own_rms


@pytest.mark.parametrize("layout", ["full checkpoints", "shared trunk"])
def test_the_next_start_loads_what_this_one_has_compiled(
    tmp_path: Path, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path / "cache"))
    spec, folders = mixture_of(layout, tmp_path)
    jobs = random_jobs(40, num_members=3, vocab_size=VOCAB_SIZE, seed=0)
    for may_compile in (True, False):
        # Without a cache to load from, a start that must load ends with an error.
        monkeypatch.setenv("VLLM_FORCE_AOT_LOAD", str(int(not may_compile)))
        llm = engine_of(spec, layout, enforce_eager=False)
        outputs = generate(llm, jobs)
        llm.llm_engine.engine_core.shutdown()
        engine_rms, own_rms = rounding_errors(folders, jobs, outputs, dtype=torch.bfloat16)
        assert 0 < engine_rms < 1.5 * own_rms

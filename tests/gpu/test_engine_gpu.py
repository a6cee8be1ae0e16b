"""The whole engine on a CUDA device: V2 model runner, CUDA graphs, default attention backend."""

from __future__ import annotations

from pathlib import Path

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


def mixture_of(layout: str, root: Path) -> tuple[MixtureSpec, list[Path]]:
    """The spec, and the full checkpoints that it must equal."""
    base, *others = (
        save_policy(root / f"p{seed}", seed=seed, hidden=128, heads=2) for seed in range(3)
    )
    if layout == "full checkpoints":
        return spec_of_folders([base, *others]), [base, *others]
    adapters = [save_adapter(root / f"a{seed}", base, seed=seed) for seed in range(2)]
    merged = [save_merged(root / f"m{each.name}", base, each) for each in adapters]
    served = AdaptedBase(base=base, adapters=adapters, merged=merged)
    return served.spec(reference=served.reference()), [*merged, base]


@pytest.mark.parametrize("layout", ["full checkpoints", "shared trunk"])
@pytest.mark.parametrize("enforce_eager", [True, False])
def test_engine_errs_no_more_than_transformers_in_the_same_dtype(
    tmp_path: Path, enforce_eager: bool, layout: str
) -> None:
    """Errors in bfloat16 are judged as on CPU, by those of transformers' own bfloat16."""
    vllm = pytest.importorskip("vllm")
    spec, folders = mixture_of(layout, tmp_path)
    llm = vllm.LLM(
        model=spec.checkpoints[0].model,
        hf_overrides=hf_overrides(spec),
        dtype="bfloat16",
        enforce_eager=enforce_eager,
        max_model_len=256,
        max_num_batched_tokens=256,
        gpu_memory_utilization=0.3,
    )
    jobs = random_jobs(40, num_members=3, vocab_size=VOCAB_SIZE, seed=0)
    outputs = generate(llm, jobs)
    engine_rms, own_rms = rounding_errors(folders, jobs, outputs, dtype=torch.bfloat16)
    assert 0 < engine_rms < 1.5 * own_rms

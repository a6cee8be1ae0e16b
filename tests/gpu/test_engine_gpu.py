"""The whole engine on a CUDA device: V2 model runner, CUDA graphs, default attention backend."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from prefmix.mixing.spec import MixtureSpec, Policy, hf_overrides
from support.checkpoints.tiny_policies import VOCAB_SIZE, save_policy
from support.exactness import generate, random_jobs, rounding_errors

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.mark.parametrize("enforce_eager", [True, False])
def test_engine_errs_no_more_than_transformers_in_the_same_dtype(
    tmp_path: Path, enforce_eager: bool
) -> None:
    """Errors in bfloat16 are judged as on CPU, by those of transformers' own bfloat16."""
    vllm = pytest.importorskip("vllm")
    folders = [
        save_policy(tmp_path / f"p{seed}", seed=seed, hidden=128, heads=2) for seed in range(3)
    ]
    policies = tuple(Policy(name=folder.name, model=str(folder)) for folder in folders)
    llm = vllm.LLM(
        model=str(folders[0]),
        hf_overrides=hf_overrides(MixtureSpec(policies=policies)),
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

"""Linear heads are told from others by trial: mixed hidden states must make mixed logits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from prefmix.mixing.models.lm_heads import Logits, is_linear
from support.checkpoints.tiny_policies import VOCAB_SIZE, save_policy
from support.engines import AdaptedBase, EngineFactory, model_of, spec_of_folders
from support.exactness import TOLERANCE_NATS, Oracle, generate, random_jobs

WIDTH, VOCAB = 2048, 1003


def looks_linear(compute_logits: Logits, dtype: torch.dtype) -> bool:
    return is_linear(compute_logits, WIDTH, dtype=dtype, device=torch.device("cpu"))


def matrix(dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(VOCAB, WIDTH).mul(WIDTH**-0.5).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_rounding_is_no_nonlinearity(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    weight_VD, bias_V = matrix(dtype), torch.randn(VOCAB).to(dtype)
    banned_V = torch.zeros(VOCAB, dtype=dtype)
    banned_V[7] = -torch.inf
    assert looks_linear(lambda rows: rows @ weight_VD.T, dtype)
    assert looks_linear(lambda rows: 0.25 * (rows @ weight_VD.T + bias_V), dtype)
    assert looks_linear(lambda rows: rows @ weight_VD.T + banned_V, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_norms_caps_and_broken_heads_are_told(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    weight_VD = matrix(dtype)

    def normed(rows: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.rms_norm(rows, (WIDTH,)) @ weight_VD.T

    assert not looks_linear(normed, dtype)
    assert not looks_linear(lambda rows: 30 * torch.tanh(rows @ weight_VD.T / 30), dtype)
    assert not looks_linear(lambda rows: rows @ weight_VD.T * torch.nan, dtype)
    assert not looks_linear(lambda rows: None, dtype)


def test_a_trunk_whose_head_begins_with_a_norm_is_exact(
    own_engine: EngineFactory, adapted: AdaptedBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MiMo and Step3p5 have such heads in vLLM. A norm after the mixing would be another model.

    Gains are 1 here: a second norm then changes nothing for one policy, but a mixture a lot.
    """
    from vllm.model_executor.models.llama import LlamaForCausalLM

    plain = LlamaForCausalLM.compute_logits
    monkeypatch.setattr(
        LlamaForCausalLM, "compute_logits", lambda self, rows: plain(self, self.model.norm(rows))
    )
    llm = own_engine(adapted.spec(reference=adapted.reference()))
    model = model_of(llm)
    assert (model.trunk.base.model.norm.weight == 1).all()
    assert not model.is_head_linear
    batch = random_jobs(10, num_members=4, vocab_size=VOCAB_SIZE, seed=3)
    oracle = Oracle([*adapted.merged, adapted.base])
    assert oracle.worst_error(batch, generate(llm, batch)) < TOLERANCE_NATS


def test_a_head_in_the_files_counts_whatever_the_config_says(
    engine: EngineFactory, tmp_path: Path
) -> None:
    """As in transformers and in vLLM: a config may wrongly call the head the embeddings."""
    folders = [save_policy(tmp_path / f"headed{seed}", seed=seed) for seed in (1, 2)]
    for folder in folders:
        config = json.loads((folder / "config.json").read_text())
        tied = {**config, "tie_word_embeddings": True}
        (folder / "config.json").write_text(json.dumps(tied))
    jobs = random_jobs(6, num_members=2, vocab_size=VOCAB_SIZE, seed=2, longest=40)
    outputs = generate(engine(spec_of_folders(folders)), jobs)
    assert Oracle(folders).worst_error(jobs, outputs) < TOLERANCE_NATS

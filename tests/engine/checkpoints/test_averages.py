"""Parameter averages on disk: plain vLLM loads them, and answers as transformers does.

One engine with adapters takes the exact export, whose layers differ in rank, and a cut one; another
takes the merged checkpoint, in several files.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from prefmix.mixing.spec import Policy
from prefmix.weights.averages import checkpoint_files
from prefmix.weights.averages.adapter_sum import write_adapter_average
from prefmix.weights.averages.checkpoint_average import write_average
from prefmix.weights.averages.merged_checkpoint import write_merged
from support.engines import AdaptedBase, EngineFactory
from support.exactness import TOLERANCE_NATS, Job, Oracle, served

WEIGHTS = (0.75, 0.5, -0.25)
JOB = Job(prompt=tuple(range(5, 45)), weights=(1.0,), max_tokens=24)


def _errors(llm: object, folder: Path, adapter: Path | None = None) -> float:
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest

    params = SamplingParams(
        temperature=1.0, logprobs=0, ignore_eos=True, max_tokens=JOB.max_tokens, seed=1
    )
    request = None
    if adapter is not None:
        request = LoRARequest(adapter.name, 1 + sum(adapter.name.encode()), str(adapter))
    (output,) = llm.generate(  # type: ignore[attr-defined]
        [{"prompt_token_ids": list(JOB.prompt)}], params, lora_request=request, use_tqdm=False
    )
    errors = Oracle([folder]).errors(JOB, *served(output.outputs[0]))
    return float(abs(errors).max())


def test_plain_vllm_takes_exported_adapters(
    own_engine: EngineFactory, adapted: AdaptedBase, tmp_path: Path
) -> None:
    """Two exports of one average: exact, of ranks up to 16, and cut to rank 5."""
    shares = dict(zip(adapted.spec().policies, WEIGHTS, strict=True))
    base = Policy(name="base", model=str(adapted.base))
    llm = own_engine(adapted.base, enable_lora=True, max_lora_rank=32)
    for rank in (None, 5):
        adapter, merged = tmp_path / f"adapter-{rank}", tmp_path / f"merged-{rank}"
        adapter.mkdir()
        merged.mkdir()
        written = write_adapter_average(adapter, shares, base=str(adapted.base), rank=rank)
        assert written.rank == (rank or 16)
        write_merged(merged, base, {Policy(name="sum", model=str(adapter)): 1.0})
        assert _errors(llm, merged, adapter) < TOLERANCE_NATS
        assert _errors(llm, adapted.base, adapter) > 0.1, "the adapter does nothing"


def test_plain_vllm_takes_averaged_checkpoints(
    own_engine: EngineFactory,
    policies: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(checkpoint_files, "FILE_BYTES", 2**17)
    shares = zip(policies[:2], (0.25, 0.75), strict=True)
    write_average(tmp_path, {Policy(name=each.name, model=str(each)): s for each, s in shares})
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    llm = own_engine(tmp_path)
    assert _errors(llm, tmp_path) < TOLERANCE_NATS
    assert _errors(llm, policies[0]) > 0.1, "the average is one of its policies"

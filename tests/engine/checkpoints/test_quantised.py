"""Quantised members answer as plain vLLM does with the same files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from support.checkpoints.tiny_adapters import save_adapter
from support.checkpoints.tiny_policies import save_policy
from support.checkpoints.tiny_quantised import quantise
from support.engines import AdaptedBase, EngineFactory, spec_of_folders
from support.exactness import TOLERANCE_NATS, Job, generate, served

UNQUANTISED = ("model.layers.0.mlp.down_proj", "model.layers.1.self_attn.o_proj")
"""Layers that the checkpoints keep in floating point, named exactly as exporters name them."""


@pytest.fixture(scope="module")
def quantised(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("quantised")
    return [
        quantise(save_policy(root / name, seed=seed), ignore=UNQUANTISED)
        for seed, name in enumerate(("one", "two"))
    ]


def test_layers_left_unquantised_by_name_stay_so_in_each_member(
    engine: EngineFactory, quantised: list[Path]
) -> None:
    from vllm import SamplingParams

    prompts = [(2, 3, 5 + index) for index in range(4)]
    llm = engine(spec_of_folders(quantised), dtype="bfloat16")
    for index, folder in enumerate(quantised):
        weights = tuple(float(index == other) for other in range(2))
        batch = [Job(prompt=prompt, weights=weights, max_tokens=8) for prompt in prompts]
        mixed = [served(each.outputs[0]) for each in generate(llm, batch, temperature=0.0)]
        alone = engine(folder, dtype="bfloat16").generate(
            [{"prompt_token_ids": list(prompt)} for prompt in prompts],
            SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, logprobs=0),
            use_tqdm=False,
        )
        for (tokens, logprobs), plain in zip(mixed, alone, strict=True):
            own_tokens, own_logprobs = served(plain.outputs[0])
            assert tokens == own_tokens
            assert logprobs == pytest.approx(own_logprobs, abs=TOLERANCE_NATS)


@pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "AVX2"),
    reason="vLLM has a cache of eight bits only on CPUs with AVX-512",
)
def test_a_trunk_has_the_scales_of_its_base_for_a_cache_of_eight_bits(
    own_engine: EngineFactory, tmp_path: Path
) -> None:
    """The scale is so small that keys and values are cut off, which no other scale would do."""
    from vllm import SamplingParams

    plain = save_policy(tmp_path / "plain", seed=3)
    adapters = [save_adapter(tmp_path / name, plain, seed=4) for name in ("a", "b")]
    base = quantise(plain, cache_scale=5e-4)
    spec = AdaptedBase(base=base, adapters=adapters, merged=[])
    jobs = [Job(prompt=(2, 3, 5, 7 + index) * 6, weights=(0.0, 0.0, 1.0)) for index in range(3)]
    options = {"dtype": "bfloat16", "kv_cache_dtype": "fp8"}
    llm = own_engine(spec.spec(reference=spec.reference()), **options)
    answers = [served(each.outputs[0]) for each in generate(llm, jobs, temperature=0.0)]
    params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, logprobs=0)
    prompts = [{"prompt_token_ids": list(job.prompt)} for job in jobs]
    alone = own_engine(base, **options).generate(prompts, params, use_tqdm=False)
    for (tokens, logprobs), own in zip(answers, alone, strict=True):
        own_tokens, own_logprobs = served(own.outputs[0])
        assert tokens == own_tokens
        assert logprobs == pytest.approx(own_logprobs, abs=TOLERANCE_NATS)

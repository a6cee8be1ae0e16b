"""Quantised members answer as plain vLLM does with the same files."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.checkpoints.tiny_policies import save_policy
from support.checkpoints.tiny_quantised import quantise
from support.engines import EngineFactory, spec_of_folders
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

"""Flags that change how vLLM computes do the same to a mixture as to a model of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from vllm.model_executor.models.llama import LlamaForCausalLM
from vllm.v1.sample.logits_processor import LogitsProcessor

from prefmix.mixing.spec import hf_overrides
from support.checkpoints.tiny_policies import save_policy
from support.engines import RUNNER, AdaptedBase, EngineFactory, model_of, spec_of_folders
from support.exactness import TOLERANCE_NATS, Job, Oracle, generate, served

PROMPTS = [tuple(range(2, 60)), (5, 6, 7)]

SCHEDULING: dict[str, Any] = {
    "block_size": 32,
    "max_num_batched_tokens": 48,
    "long_prefill_token_threshold": 16,
    "scheduling_policy": "priority",
    "async_scheduling": True,
    "enable_prefix_caching": False,
    "disable_cascade_attn": True,
    "use_fp64_gumbel": True,
    "optimization_level": 1,
    "watermark": 0.05,
}
"""Flags that change the order and the size of what is computed, but no result."""


class OnlyEvenTokens(LogitsProcessor):
    """A processor of a user's own."""

    def __init__(self, *_: Any) -> None:
        """It keeps no state."""

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: Any) -> None:
        """Nothing to do: all requests are alike."""

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        logits[:, 1::2] = -torch.inf
        return logits


@pytest.fixture(scope="module")
def windowed(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two policies with a window, and one without."""
    root = tmp_path_factory.mktemp("windowed")
    return [
        save_policy(root / "window", seed=0, model_type="mistral", sliding_window=32),
        save_policy(root / "other", seed=1, model_type="mistral", sliding_window=32),
        save_policy(root / "full", seed=2),
    ]


@pytest.mark.parametrize(
    "flags",
    [
        {"disable_hybrid_kv_cache_manager": True},
        {"kv_cache_dtype": "fp8", "dtype": "bfloat16"},
        {"kv_cache_dtype_skip_layers": ["1"], "kv_cache_dtype": "fp8", "dtype": "bfloat16"},
        {"logprobs_mode": "processed_logprobs"},
        SCHEDULING,
        {"logits_processors": [OnlyEvenTokens], "dtype": "float16", "seed": 7},
    ],
    ids=str,
)
def test_one_hot_answers_are_those_of_plain_vllm_with_the_same_flags(
    own_engine: EngineFactory, windowed: list[Path], flags: dict[str, Any]
) -> None:
    """Three policies of which one answers; as a rule the engine's rounding is the same, too."""
    if RUNNER == "v2" and "logits_processors" in flags:
        pytest.skip("the processor is written for the V1 runner")
    mixed = []
    llm = own_engine(spec_of_folders(windowed), **flags)
    for index in range(3):
        weights = tuple(float(index == other) for other in range(3))
        batch = [Job(prompt=prompt, weights=weights, max_tokens=8) for prompt in PROMPTS]
        mixed.append([served(each.outputs[0]) for each in generate(llm, batch, temperature=0.7)])
    for folder, answers in zip(windowed, mixed, strict=True):
        batch = [Job(prompt=prompt, weights=(1.0,), max_tokens=8) for prompt in PROMPTS]
        alone = generate(own_engine(folder, **flags), batch, temperature=0.7)
        for (tokens, logprobs), plain in zip(answers, alone, strict=True):
            own_tokens, own_logprobs = served(plain.outputs[0])
            assert tokens == own_tokens
            if "logits_processors" in flags:
                assert not any(token % 2 for token in tokens)
            assert logprobs == pytest.approx(own_logprobs, abs=TOLERANCE_NATS)


class TokensFromTheEnd(LlamaForCausalLM):
    """A class of a user's own in the place of vLLM's."""

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor | None:
        logits: torch.Tensor | None = super().compute_logits(hidden_states)
        return None if logits is None else logits.flip(-1)


@pytest.fixture
def replaced() -> Iterator[dict[str, str]]:
    """The value of --model-class-overrides; the registry is as it was afterwards."""
    from vllm.config import model
    from vllm.model_executor.model_loader.utils import _MODEL_ARCH_BY_HASH
    from vllm.model_executor.models import ModelRegistry

    done = set(model._REGISTERED_MODEL_CLASS_OVERRIDES)
    registries = mock.patch.dict(ModelRegistry.models), mock.patch.dict(_MODEL_ARCH_BY_HASH)
    with registries[0], registries[1]:
        _MODEL_ARCH_BY_HASH.clear()
        yield {"LlamaForCausalLM": f"{__name__}:{TokensFromTheEnd.__name__}"}
    model._REGISTERED_MODEL_CLASS_OVERRIDES.clear()
    model._REGISTERED_MODEL_CLASS_OVERRIDES.update(done)


def test_another_class_for_an_architecture_is_that_of_every_policy(
    own_engine: EngineFactory, windowed: list[Path], replaced: dict[str, str]
) -> None:
    """The policies of other architectures keep theirs."""
    llm = own_engine(spec_of_folders(windowed), model_class_overrides=replaced)
    kinds = [type(each).__name__ for each in model_of(llm).members.values()]
    assert kinds == ["MistralForCausalLM", "MistralForCausalLM", "TokensFromTheEnd"]
    batch = [Job(prompt=(5, 6, 7), weights=weights) for weights in ((0.5, 0.5, 0.0), (0, 0, 1.0))]
    outputs = generate(llm, batch)
    oracle = Oracle(windowed)
    assert oracle.worst_error(batch[:1], outputs[:1]) < TOLERANCE_NATS
    assert oracle.worst_error(batch[1:], outputs[1:]) > 100 * TOLERANCE_NATS


def test_no_class_takes_the_place_of_the_mixture(
    adapted: AdaptedBase, windowed: list[Path], replaced: dict[str, str]
) -> None:
    from vllm.engine.arg_utils import EngineArgs

    (path,) = replaced.values()
    for spec in (adapted.spec(), spec_of_folders(windowed)):
        given = hf_overrides(spec)
        arguments = EngineArgs(
            model=spec.checkpoints[0].model,
            hf_overrides=given,
            model_class_overrides={given["architectures"][0]: path},
        )
        with pytest.raises(ValueError, match="name the architectures of policies"):
            arguments.create_engine_config()

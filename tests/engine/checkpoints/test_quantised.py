"""Quantised members answer as plain vLLM does with the same files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from prefmix.mixing.models.stacked_attention import StackedAttention
from prefmix.mixing.spec import MixtureSpec
from support.checkpoints.tiny_adapters import save_adapter
from support.checkpoints.tiny_policies import save_policy
from support.checkpoints.tiny_quantised import quantise, quantise_to_float8
from support.engines import AdaptedBase, EngineFactory, model_of, spec_of_folders
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
    assert_as_plain_vllm(engine, spec_of_folders(quantised), quantised)


def assert_as_plain_vllm(
    engine: EngineFactory, spec: MixtureSpec, folders: list[Path], *, places: Sequence[int] = ()
) -> None:
    """One-hot answers of a mixture equal those of vLLM on the same files.

    Args:
      folders: what the members at `places` must equal; by default all members in order.
    """
    from vllm import SamplingParams

    prompts = [(2, 3, 5 + index) for index in range(4)]
    mixed = []
    for index in places or range(len(folders)):
        weights = tuple(float(index == other) for other in range(spec.num_members))
        batch = [Job(prompt=prompt, weights=weights, max_tokens=8) for prompt in prompts]
        outputs = generate(engine(spec, dtype="bfloat16"), batch, temperature=0.0)
        mixed.append([served(each.outputs[0]) for each in outputs])
    for folder, answers in zip(folders, mixed, strict=True):
        alone = engine(folder, dtype="bfloat16").generate(
            [{"prompt_token_ids": list(prompt)} for prompt in prompts],
            SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, logprobs=0),
            use_tqdm=False,
        )
        for (tokens, logprobs), plain in zip(answers, alone, strict=True):
            own_tokens, own_logprobs = served(plain.outputs[0])
            assert tokens == own_tokens
            assert logprobs == pytest.approx(own_logprobs, abs=TOLERANCE_NATS)


@pytest.mark.skipif(
    not torch.cpu._is_amx_tile_supported(), reason="vLLM multiplies 8-bit floats by AMX tiles"
)
@pytest.mark.parametrize("exporter", ["fp8", "compressed-tensors"])
@pytest.mark.parametrize("layout", ["full checkpoints", "shared trunk"])
def test_members_of_eight_bit_floats_are_those_of_plain_vllm(
    own_engine: EngineFactory, tmp_path: Path, exporter: str, layout: str
) -> None:
    folders = [
        quantise_to_float8(
            save_policy(tmp_path / name, seed=seed, hidden=128, heads=4),
            ignore=UNQUANTISED,
            exporter=exporter,
        )
        for seed, name in enumerate(("one", "two"))
    ]
    if layout == "full checkpoints":
        assert_as_plain_vllm(own_engine, spec_of_folders(folders), folders)
        return
    plain = save_policy(tmp_path / "plain", seed=0, hidden=128, heads=4)
    served = AdaptedBase(folders[0], [save_adapter(tmp_path / "moved", plain, seed=1)], [])
    spec = served.spec(reference=served.reference())
    assert_as_plain_vllm(own_engine, spec, [folders[0]], places=(1,))


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
    layers = [
        layer
        for module in model_of(llm).modules()
        if isinstance(module, StackedAttention)
        for layer in module.layers
    ]
    scales = [float(layer._k_scale) for layer in layers]
    assert scales == pytest.approx([5e-4] * 6), "a GPU calls every member's own layer"
    answers = [served(each.outputs[0]) for each in generate(llm, jobs, temperature=0.0)]
    params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, logprobs=0)
    prompts = [{"prompt_token_ids": list(job.prompt)} for job in jobs]
    alone = own_engine(base, **options).generate(prompts, params, use_tqdm=False)
    for (tokens, logprobs), own in zip(answers, alone, strict=True):
        own_tokens, own_logprobs = served(own.outputs[0])
        assert tokens == own_tokens
        assert logprobs == pytest.approx(own_logprobs, abs=TOLERANCE_NATS)

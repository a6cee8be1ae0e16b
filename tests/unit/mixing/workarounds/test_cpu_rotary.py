"""Queries of several heads are rotated alike whatever their shape, on a CPU too."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
import torch

pytestmark = pytest.mark.usefixtures("vllm")

POSITIONS = torch.tensor([0, 1, 7, 300, 5])
HEAD_SIZE = 16


@pytest.fixture
def base(monkeypatch: pytest.MonkeyPatch) -> Any:
    """vLLM's module of rotary embeddings, as it is after the test."""
    module = importlib.import_module("vllm.model_executor.layers.rotary_embedding.base")
    monkeypatch.setattr(
        module.RotaryEmbedding, "forward_cpu", plain(module.RotaryEmbedding.forward_cpu)
    )
    return module


def plain(method: Any) -> Any:
    return getattr(method, "__wrapped__", method)


@pytest.fixture
def rotary(base: Any) -> Iterator[Any]:
    """rotary(is_neox_style) makes a layer that has vLLM's kernel in use."""
    config = importlib.import_module("vllm.config")

    def make(is_neox_style: bool) -> Any:
        return base.RotaryEmbedding(
            head_size=HEAD_SIZE,
            rotary_dim=HEAD_SIZE,
            max_position_embeddings=512,
            base=10000.0,
            is_neox_style=is_neox_style,
            dtype=torch.float32,
        )

    with mock.patch.dict(os.environ):  # vLLM's platform writes into it
        engine = config.VllmConfig(compilation_config={"custom_ops": ["all"]})
        with config.set_current_vllm_config(engine):
            yield make


def rotated(layer: Any, num_heads: int) -> list[torch.Tensor]:
    """Queries and keys of several heads: flat, by head, and as a part of wider heads."""
    generator = torch.Generator().manual_seed(0)
    wide = torch.randn((2, len(POSITIONS), num_heads, 2 * HEAD_SIZE), generator=generator)
    parts = wide[..., HEAD_SIZE:]
    flat = [each.reshape(len(POSITIONS), -1).clone() for each in parts]
    by_head = [each.contiguous() for each in parts]
    return [
        torch.stack(layer.forward_cpu(POSITIONS, *pair)).reshape(parts.shape)
        for pair in (flat, by_head, list(parts.clone()), list(wide.clone()[..., HEAD_SIZE:]))
    ]


@pytest.mark.parametrize("is_neox_style", [True, False])
def test_shapes_make_no_difference(rotary: Any, is_neox_style: bool) -> None:
    from prefmix.mixing.workarounds.cpu_rotary import rotate_heads_by_torch

    layer = rotary(is_neox_style)
    flat, by_head, *_ = rotated(layer, 3)
    assert (flat - by_head).abs().max() > 0.1, "the workaround can go"
    for _ in range(2):
        rotate_heads_by_torch()
    flat, *others = rotated(layer, 3)
    for other in others:
        assert torch.allclose(flat, other, atol=1e-6)


def test_a_layer_without_keys_is_rotated_too(rotary: Any) -> None:
    from prefmix.mixing.workarounds.cpu_rotary import rotate_heads_by_torch

    rotate_heads_by_torch()
    query = torch.randn(len(POSITIONS), 2, HEAD_SIZE)
    layer = rotary(True)
    alone, none = layer.forward_cpu(POSITIONS, query.clone())
    beside, _ = layer.forward_cpu(POSITIONS, query.clone(), query.clone())
    assert none is None
    assert torch.equal(alone, beside)

"""Layers whose members' caches become one, and the reasons for which they stay apart."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.usefixtures("vllm")

BLOCKS, HEADS, SIZE = 5, 2, 16


class Layer:
    """A StackedAttention, as far as joining goes."""

    def __init__(self, name: str, caches: list[torch.Tensor], backend: str) -> None:
        kind = SimpleNamespace(get_name=lambda: backend)
        self.layers = [
            SimpleNamespace(layer_name=f"{member}.{name}", kv_cache=cache, attn_backend=kind)
            for member, cache in enumerate(caches)
        ]
        self.joined_blocks: tuple[int, int] | None = (7, 7)  # of other caches

    def join(self) -> None:
        self.joined_blocks = (0, 0)


def engine(**changes: Any) -> Any:
    from vllm.config import CUDAGraphMode

    of_model = {"rswa_window": None, "is_mm_prefix_lm": False}
    return SimpleNamespace(
        kv_transfer_config=changes.get("connector"),
        compilation_config=SimpleNamespace(
            cudagraph_mode=CUDAGraphMode[changes.get("mode", "FULL_AND_PIECEWISE")]
        ),
        model_config=SimpleNamespace(**{k: changes.get(k, v) for k, v in of_model.items()}),
    )


def layers(memory: torch.Tensor, backend: str = "FLASH_ATTN") -> list[Any]:
    """Three layers of two members, member after member in memory."""
    num_layers = len(memory) // 2
    return [
        Layer(f"layers.{at}", [memory[at], memory[num_layers + at]], backend)
        for at in range(num_layers)
    ]


def cache_config(*groups: list[str], block_size: int = SIZE) -> Any:
    spec = SimpleNamespace(block_size=block_size)
    found = [SimpleNamespace(layer_names=names, kv_cache_spec=spec) for names in groups]
    return SimpleNamespace(kv_cache_groups=found)


def memory_of(num_layers: int = 6, *, size: int = SIZE) -> torch.Tensor:
    return torch.zeros(num_layers, BLOCKS, HEADS, size, 8)


NAMES = [f"{member}.layers.{at}" for member in range(2) for at in range(3)]


def test_layers_of_one_group_read_one_list() -> None:
    from prefmix.mixing.models.joined_attention import join_for_runner_v2

    stacked = layers(memory_of())
    [found] = join_for_runner_v2(stacked, cache_config(NAMES), engine())
    assert found.names == ["0.layers.0", "0.layers.1", "0.layers.2"]
    assert (found.groups_M, found.first_blocks_M) == ([0, 0], [0, 3 * BLOCKS])
    assert all(each.joined_blocks == (0, 0) for each in stacked)


def test_members_in_other_groups_have_lists_of_their_own() -> None:
    """Layers with windows and without may be dealt out to groups in any order."""
    from prefmix.mixing.models.joined_attention import join_for_runner_v2

    first = ["0.layers.0", "0.layers.1", "1.layers.0"]
    config = cache_config(first, [name for name in NAMES if name not in first])
    found = join_for_runner_v2(layers(memory_of()), config, engine())
    assert [(each.names, each.groups_M) for each in found] == [
        (["0.layers.0"], [0, 0]),
        (["0.layers.1"], [0, 1]),
        (["0.layers.2"], [1, 1]),
    ]


def test_tables_number_the_engines_blocks_where_kernels_cut_them() -> None:
    from prefmix.mixing.models.joined_attention import join_for_runner_v2

    [found] = join_for_runner_v2(
        layers(torch.zeros(6, 2 * BLOCKS, HEADS, SIZE, 8)),
        cache_config(NAMES, block_size=2 * SIZE),
        engine(),
    )
    assert found.first_blocks_M == [0, 3 * BLOCKS]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"backend": "FLASHINFER"}, "FLASHINFER takes one policy's requests"),
        ({"connector": object()}, "a KV connector knows the caches layer by layer"),
        ({"mode": "FULL"}, "full CUDA graphs of prompts"),
        ({"rswa_window": 32}, "its windows go by the requests of one policy"),
        ({"is_mm_prefix_lm": True}, "its prefixes go by the requests of one policy"),
        ({"memory": torch.zeros(BLOCKS, 6, HEADS, SIZE, 8).transpose(0, 1)}, "whole blocks apart"),
    ],
)
def test_others_stay_apart_and_the_log_says_why(
    change: dict[str, Any], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefmix.mixing.models import joined_attention

    said: list[str] = []
    monkeypatch.setattr(
        joined_attention.logger, "info", lambda text, *values: said.append(text % values)
    )
    stacked = layers(change.get("memory", memory_of()), change.get("backend", "FLASH_ATTN"))
    found = joined_attention.join_for_runner_v2(stacked, cache_config(NAMES), engine(**change))
    assert found == []
    assert all(each.joined_blocks is None for each in stacked)
    [line] = said
    assert line.startswith("Attention is called once for each policy of the trunk: ")
    assert reason in line

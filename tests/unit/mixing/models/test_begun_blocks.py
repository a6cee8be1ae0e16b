"""Cache blocks are cleared where a member begins them and leaves a rest."""

from __future__ import annotations

import importlib
from types import SimpleNamespace

import pytest
import torch

pytestmark = pytest.mark.usefixtures("vllm")
MODULE = "prefmix.mixing.models.begun_blocks"


@pytest.mark.parametrize(
    ("slots", "blocks"),
    [
        ([8, 9, 10], [2]),
        ([8, 9, 10, 11], []),  # a prompt fills the block
        ([8, 9, 10, 11, 20, 21], [5]),
        ([11, 20], [5]),  # one ends a block that began before, the other begins one
        ([9, 10], []),
        ([4, 20, 8], [1, 2, 5]),
        ([-1, -1], []),  # not stored
        ([], []),
    ],
)
def test_blocks_with_a_rest_are_those_begun_and_not_ended(
    slots: list[int], blocks: list[int]
) -> None:
    unfinished_blocks = importlib.import_module(MODULE).unfinished_blocks
    assert unfinished_blocks(torch.tensor(slots, dtype=torch.int64), 4) == blocks


def test_members_that_run_clear_their_own_caches_for_their_own_tokens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Three members, one without a cache of blocks; the second runs the last request only."""
    slots = torch.tensor([4, 5, 20])
    names = ["layers.0", "layers.1", "members.p1.layers.0", "members.p2.layers.0", "mamba"]
    layers = {name: SimpleNamespace(kv_cache=torch.ones(6, 2, 4, 8)) for name in names}
    layers["mamba"].kv_cache = [torch.ones(6)]
    context = SimpleNamespace(
        attn_metadata={"layers.0": object()},
        slot_mapping=dict.fromkeys(names, slots),
        no_compile_layers=layers,
    )
    module = importlib.import_module(MODULE)
    monkeypatch.setattr(module, "get_forward_context", lambda: context)

    def cleared(name: str) -> list[int]:
        is_zero = layers[name].kv_cache.eq(0).flatten(1)
        return [block for block in range(6) if is_zero[block].all()]

    begun = module.BegunBlocks()
    begun.clear({0: None, 1: torch.tensor([2])})
    assert [cleared(name) for name in names[:4]] == [[1, 5], [1, 5], [5], []]
    context.slot_mapping = dict.fromkeys(names, torch.tensor([6, 7, 12]))
    begun.clear({2: None})
    assert [cleared(name) for name in names[:4]] == [[1, 5], [1, 5], [5], [3]]
    context.attn_metadata = None
    begun.clear({1: None})  # a warm-up has no requests
    assert cleared(names[2]) == [5]

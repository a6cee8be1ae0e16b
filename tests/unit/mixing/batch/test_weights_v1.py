"""The weight table follows V1's persistent batch as the simplest possible model of it does."""

from __future__ import annotations

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from prefmix.mixing import wire
from prefmix.mixing.batch.request_mixing import RequestMixing, active_members
from prefmix.mixing.batch.weights_v1 import RowWeights, WeightTable, apply_batch_update
from prefmix.mixing.spec import MixtureSpec, Policy

SPEC = MixtureSpec(policies=tuple(Policy(name=name, model=name) for name in "abc"))
CPU = torch.device("cpu")


def extra_args(rng: random.Random) -> dict[str, object]:
    weights = [rng.random() for _ in range(3)]
    return wire.to_extra_args([weight / sum(weights) for weight in weights])


def row_of(table: WeightTable, row: int) -> list[float]:
    return table.device_SC[row].tolist()


def test_a_weight_that_float32_cannot_tell_from_zero_is_zero_for_cache_and_engine() -> None:
    table = WeightTable(SPEC, num_rows=1, device=CPU)
    for small in (1e-50, 1e-40, 2e-38, 1e-7):
        sent = wire.to_extra_args([1.0 - 2 * small, small, small])
        weights_M = RequestMixing.of_request(sent, SPEC).weights_M
        table.write(0, sent)
        table.flush(1)
        runs = [weight != 0 for weight in weights_M]
        assert list(table.active_members()) == runs == [value != 0 for value in row_of(table, 0)]
        assert runs == [True, small > 1.2e-38, small > 1.2e-38]


def test_table_follows_random_batch_changes() -> None:
    """Adds over old rows, one-way moves and swaps, in vLLM's order, 300 steps."""
    rng = random.Random(1)
    table = WeightTable(SPEC, num_rows=8, device=CPU)
    rows: list[dict[str, object] | None] = [None] * 8
    for _ in range(300):
        added = [(row, extra_args(rng)) for row in rng.sample(range(8), rng.randint(0, 3))]
        moved = [(*rng.sample(range(8), 2), rng.random() < 0.5) for _ in range(rng.randint(0, 3))]
        for row, args in added:
            rows[row] = args
        for source, target, is_swap in moved:
            if is_swap:
                rows[source], rows[target] = rows[target], rows[source]
            else:
                rows[target] = rows[source]
        apply_batch_update(table, batch_size=8, added=added, moved=moved)
        for row, args in enumerate(rows):
            expected = np.float32(RequestMixing.of_request(args, SPEC).weights_M)
            np.testing.assert_array_equal(table.device_SC[row].numpy(), expected)


def test_a_recycled_row_never_shows_its_predecessor() -> None:
    table = WeightTable(SPEC, num_rows=2, device=CPU)
    apply_batch_update(table, batch_size=1, added=[(0, wire.to_extra_args([1, 0, 0]))], moved=[])
    apply_batch_update(table, batch_size=1, added=[(0, None)], moved=[])
    np.testing.assert_allclose(row_of(table, 0), SPEC.uniform_weights, rtol=1e-6)


def test_active_members_look_at_running_rows_only() -> None:
    table = WeightTable(SPEC, num_rows=4, device=CPU)
    one, two = wire.to_extra_args([1, 0, 0]), wire.to_extra_args([0, 0.5, 0.5])
    apply_batch_update(table, batch_size=2, added=[(0, one), (1, two)], moved=[])
    assert table.active_members() == [True, True, True]
    apply_batch_update(table, batch_size=1, added=[], moved=[])
    assert table.active_members() == [True, False, False]
    assert active_members(np.zeros((0, 3), dtype=np.float32)) == [True, True, True]


def test_token_coefficients_repeat_rows_over_their_tokens() -> None:
    table = WeightTable(SPEC, num_rows=4, device=CPU)
    one, two = wire.to_extra_args([1, 0, 0]), wire.to_extra_args([0, 1, 0])
    apply_batch_update(table, batch_size=2, added=[(0, one), (1, two)], moved=[])
    weights_TM = table.token_coefficients(torch.tensor([0, 2, 3], dtype=torch.int32), 3)
    assert weights_TM.tolist() == [[1, 0, 0], [1, 0, 0], [0, 1, 0]]


def test_a_layer_that_attends_in_chunks_does_not_say_whose_a_token_is(
    vllm: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its metadata has a request for each chunk; here the first of two requests has three."""
    table = WeightTable(SPEC, num_rows=4, device=torch.device("cpu"))
    for row, weights in enumerate(([1.0, 0.0, 0.0], [0.0, 0.5, 0.5])):
        table.write(row, wire.to_extra_args(weights))
    table.flush(2)
    chunks = SimpleNamespace(
        query_start_loc=torch.tensor([0, 2, 4, 6, 7], dtype=torch.int32),
        make_virtual_batches_block_table=lambda table: table,
    )
    whole = SimpleNamespace(query_start_loc=torch.tensor([0, 6, 7], dtype=torch.int32))
    context = SimpleNamespace(attn_metadata={"layers.0.attn": chunks, "layers.1.attn": whole})
    monkeypatch.setattr("vllm.forward_context.get_forward_context", lambda: context)
    coefficients_TC = RowWeights(table).token_coefficients(7)
    assert torch.equal(coefficients_TC, table.device_SC[[0, 0, 0, 0, 0, 0, 1]])

"""Rows of a checkpoint's matrices, followed into a loaded matrix that a loader has rearranged."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch

from prefmix.mixing.parameters.row_placement import (
    PlacementError,
    Rows,
    RowSamples,
    place_rows,
    row_hashes,
    sampled_inputs,
)

NUM_INPUTS = 40


def matrix(rows: int, *, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, NUM_INPUTS, generator=torch.Generator().manual_seed(seed))


def placed(
    loaded: torch.Tensor,
    file: Mapping[str, torch.Tensor],
    expected: Mapping[str, Rows],
    *,
    has_all: bool = True,
) -> dict[str, Rows]:
    inputs = sampled_inputs(NUM_INPUTS)
    samples = RowSamples(dict.fromkeys(file, inputs), dict.fromkeys(file, NUM_INPUTS))
    list(samples.watch((f"{name}.weight", tensor) for name, tensor in file.items()))
    loaded_P = row_hashes(loaded[:, inputs])
    found = {name: samples.rows_of(name, loaded_P, loaded.dtype) for name in file}
    return place_rows(loaded_P, found, expected, has_all=has_all)


def in_order(start: int, size: int) -> Rows:
    return Rows(here=torch.arange(start, start + size), there=torch.arange(size))


def updated(loaded: torch.Tensor, rows: Mapping[str, Rows], update: torch.Tensor) -> torch.Tensor:
    """The loaded matrix with an update of the checkpoint's one matrix."""
    (own,) = rows.values()
    return loaded.index_add(0, own.here, update[own.there])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_update_goes_where_the_loader_puts_the_rows(dtype: torch.dtype) -> None:
    """Loading the updated matrix equals updating the loaded one, whatever the loader does."""
    file, update = matrix(24), matrix(24, seed=1)
    loaders = [
        lambda rows: rows,
        lambda rows: rows.view(4, 2, 3, -1).transpose(0, 2).reshape(24, -1),
        lambda rows: torch.cat([rows, rows[8:16]]),
        lambda rows: torch.cat([matrix(5, seed=9).to(rows.dtype), rows]),
    ]
    starts = [0, 0, 0, 5]
    for load, start in zip(loaders, starts, strict=True):
        loaded = load(file.to(dtype))
        rows = placed(loaded, {"qkv": file}, {"qkv": in_order(start, 24)})
        truth = load(file.to(dtype) + update.to(dtype))
        assert torch.equal(updated(loaded, rows, update.to(dtype)), truth)


def test_parts_of_a_fused_layer_keep_apart() -> None:
    file = {"q": matrix(8), "k": matrix(4, seed=1), "v": matrix(4, seed=2)}
    loaded = torch.cat(list(file.values()))
    expected = {"q": in_order(0, 8), "k": in_order(8, 4), "v": in_order(12, 4)}
    for name, rows in placed(loaded, file, expected).items():
        assert torch.equal(rows.here, expected[name].here)
        assert torch.equal(rows.there, expected[name].there)
    two = {name: file[name] for name in ("q", "v")}
    found = placed(loaded, two, {name: expected[name] for name in two})
    assert torch.equal(found["v"].here, expected["v"].here)


def test_a_matrix_that_is_stored_transposed_is_followed() -> None:
    file = torch.randn(NUM_INPUTS, NUM_INPUTS)
    rows = placed(file.T.contiguous(), {"c_attn": file}, {"c_attn": in_order(0, NUM_INPUTS)})
    assert torch.equal(rows["c_attn"].there, torch.arange(NUM_INPUTS))


def test_a_share_of_the_rows_is_enough_for_one_of_several_ranks() -> None:
    file = matrix(8)
    expected = Rows(here=torch.arange(4), there=torch.arange(4, 8))
    rows = placed(file[4:], {"q": file}, {"q": expected}, has_all=False)
    assert torch.equal(rows["q"].there, torch.arange(4, 8))


def test_rows_of_zeros_and_equal_rows_stay_where_they_are_expected() -> None:
    file = matrix(8)
    file[2] = 0
    file[5] = file[4]
    loaded = torch.cat([file, torch.zeros(3, NUM_INPUTS)])
    rows = placed(loaded, {"q": file}, {"q": in_order(0, 8)})
    assert torch.equal(rows["q"].here, torch.arange(8))


def moved_twins() -> torch.Tensor:
    file = matrix(8)
    file[5] = file[4]
    return file


@pytest.mark.parametrize(
    ("file", "loaded", "why"),
    [
        (matrix(8), matrix(8) * 2, "changes its values"),
        (moved_twins(), moved_twins().flip(0), "some of them are equal"),
        (matrix(8), matrix(8)[[0, 1, 2, 3, 4, 5, 6, 6]], "leaves out"),
    ],
)
def test_rows_that_cannot_be_followed_are_refused(
    file: torch.Tensor, loaded: torch.Tensor, why: str
) -> None:
    with pytest.raises(PlacementError, match=why):
        placed(loaded, {"q": file}, {"q": in_order(0, 8)})


def test_a_matrix_of_another_name_is_refused() -> None:
    samples = RowSamples({"model.q": sampled_inputs(NUM_INPUTS)}, {"model.q": NUM_INPUTS})
    list(samples.watch([("other.weight", matrix(8))]))
    with pytest.raises(PlacementError, match="no matrix of that name"):
        samples.rows_of("model.q", torch.zeros(8, dtype=torch.int64), torch.float32)
    list(samples.watch([("q.weight", matrix(8))]))  # the file of a model without its head
    assert len(samples.rows_of("model.q", torch.zeros(8, dtype=torch.int64), torch.float32)) == 8

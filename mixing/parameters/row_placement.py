"""Rows of the base's linear layers, followed from the checkpoint into the loaded model.

A row of lora_B belongs to the output that the same row of the base's matrix makes. vLLM's loaders
fuse, permute and repeat rows, each model class in its own way. So the places are read from the
loaded values and not from rules: rows are told apart by some of their columns.

Shapes: I inputs and O outputs of a layer of the checkpoint, P outputs of the layer that holds it on
this rank, S sampled inputs, C rows of all the layers of the checkpoint that are held together.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

NUM_INPUTS = 16
"""The most that S may be; enough for columns of eight bits to tell a million rows apart."""


class PlacementError(ValueError):
    """Rows of the base that cannot be followed; the text is a clause about them."""


@dataclass(frozen=True)
class Rows:
    """The outputs on this rank that a layer of the checkpoint makes; in the CPU's memory."""

    here: torch.Tensor
    """int64 [n], rows of the loaded layer."""
    there: torch.Tensor
    """int64 [n], the rows of the checkpoint's layer that they hold."""


class RowSamples:
    """Samples of matrices of a checkpoint, kept while they pass by on their way into a model."""

    def __init__(self, inputs: Mapping[str, torch.Tensor], num_inputs: Mapping[str, int]) -> None:
        """Args:
        inputs: int64 [S], the inputs to sample, by the name of a linear layer.
        num_inputs: I by the same names.
        """
        self._inputs = inputs
        self._num_inputs = num_inputs
        # A checkpoint of a model without its head leaves out the first word of the names.
        self._names = {name.partition(".")[2]: name for name in inputs}
        self._names |= {name: name for name in inputs}
        self._samples: dict[str, list[torch.Tensor]] = {}

    def watch(self, weights: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, Any]]:
        """Yields (name, tensor) pairs of a checkpoint unchanged."""
        for name, tensor in weights:
            stem, _, last = name.rpartition(".")
            if last == "weight" and stem in self._names and tensor.dim() == 2:
                layer = self._names[stem]
                self._samples[layer] = self._sampled(layer, tensor)
            yield name, tensor

    def _sampled(self, layer: str, tensor: torch.Tensor) -> list[torch.Tensor]:
        """One sample [O, S] for each way in which the tensor can be a matrix of the layer."""
        inputs, num_inputs = self._inputs[layer], self._num_inputs[layer]
        ways = [each for each in (tensor, tensor.T) if each.shape[1] == num_inputs]
        return [each[:, inputs.to(each.device)].clone() for each in ways]

    def rows_of(self, layer: str, loaded_P: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """int64 [O], the hashes of a layer's rows as they are, or would be, in a loaded matrix.

        Raises: PlacementError if the checkpoint has no such matrix.
        """
        ways = [
            row_hashes(each.to(loaded_P.device, dtype)) for each in self._samples.get(layer, [])
        ]
        if not ways:
            raise PlacementError("the checkpoint has no matrix of that name")
        return max(ways, key=lambda rows_O: int(torch.isin(rows_O, loaded_P).sum()))


def sampled_inputs(num_inputs: int, *, start: int = 0) -> torch.Tensor:
    """int64 [S], some of the inputs from `start` to `start + num_inputs`."""
    return start + torch.arange(min(NUM_INPUTS, num_inputs)) * max(1, num_inputs // NUM_INPUTS)


def place_rows(
    loaded_P: torch.Tensor,
    checkpoint: Mapping[str, torch.Tensor],
    expected: Mapping[str, Rows],
    *,
    has_all: bool,
) -> dict[str, Rows]:
    """Finds the rows of the checkpoint's layers in a loaded layer.

    Args:
      loaded_P: hashes of the rows of the loaded layer on this rank.
      checkpoint: hashes [O] of the rows of each layer of the checkpoint, by name.
      expected: where the rows are if the loader only fuses and shards, by the same names.
      has_all: true if this rank holds every row.
    Raises: PlacementError if a row is not where it is expected and cannot be found.
    """
    checkpoint_C = torch.cat(list(checkpoint.values()))
    found_P = torch.full_like(loaded_P, -1)
    offsets, total = {}, 0
    for name, rows_O in checkpoint.items():
        offsets[name] = total
        total += len(rows_O)
        here, there = (
            each.to(loaded_P.device) for each in (expected[name].here, expected[name].there)
        )
        found_P[here] = there + offsets[name]
    is_expected_P = found_P >= 0
    is_there_P = is_expected_P & (checkpoint_C[found_P.clamp(min=0)] == loaded_P)
    # Rows of zeros outside of the expected places are other layers': nothing tells them apart.
    others = (~is_there_P & (is_expected_P | (loaded_P != 0))).nonzero().flatten()
    found_P[others] = _look_up(loaded_P[others], checkpoint_C)
    if (found_P[is_expected_P] < 0).any():
        raise PlacementError("vLLM changes its values while loading")
    if has_all and len(torch.unique(found_P[found_P >= 0])) < total:
        raise PlacementError("vLLM leaves out some of its rows")
    placed = {}
    for name, rows_O in checkpoint.items():
        own_P = found_P - offsets[name]
        here = ((own_P >= 0) & (own_P < len(rows_O))).nonzero().flatten()
        placed[name] = Rows(here=here.cpu(), there=own_P[here].cpu())
    return placed


def _look_up(wanted_N: torch.Tensor, rows_C: torch.Tensor) -> torch.Tensor:
    """int64 [N], the place of each wanted row; -1 for a row that is not there."""
    sorted_C, order_C = rows_C.sort()
    first_N = torch.searchsorted(sorted_C, wanted_N)
    number_N = torch.searchsorted(sorted_C, wanted_N, right=True) - first_N
    if (number_N > 1).any():
        raise PlacementError("vLLM moves its rows, and some of them are equal")
    return torch.where(number_N == 1, order_C[first_N.clamp(max=len(order_C) - 1)], -1)


def row_hashes(rows_NS: torch.Tensor) -> torch.Tensor:
    """int64 [N], a number for each row; 0 for a row of zeros."""
    bits_NS = rows_NS.float().contiguous().view(torch.int32).long()
    generator = torch.Generator().manual_seed(0)
    factors_S = torch.randint(1 << 62, (NUM_INPUTS,), generator=generator) | 1
    return (bits_NS * factors_S[: rows_NS.shape[1]].to(bits_NS.device)).sum(dim=1)

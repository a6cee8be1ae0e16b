"""Stores layers once that several checkpoints have in common, such as frozen embeddings.

Fine-tuning often leaves part of a base unchanged. Layers whose parameters are all equal become one
layer that several members use. Each member keeps its own attention and KV cache.
"""

from __future__ import annotations

from collections.abc import Container, Sequence

import torch
from torch import nn


def deduplicate_layers(
    member: nn.Module, earlier: Sequence[nn.Module], *, keep: Container[nn.Module] = ()
) -> int:
    """Replaces layers of `member` by equal ones of an earlier member.

    A layer is a module without children. Two layers at the same place of two members are equal if
    they have one class and the same parameters, bit by bit. Call this when all parameters are
    loaded and before they are repacked for the hardware.

    Args:
      member: the model to change in place.
      earlier: loaded models whose layers may be reused.
      keep: layers that must stay the member's own, whatever their parameters.
    Returns: bytes of parameters that are no longer stored twice.
    """
    places = [dict(model.named_modules(remove_duplicate=False)) for model in earlier]
    replaced: dict[nn.Module, nn.Module] = {}
    for path, layer in list(member.named_modules(remove_duplicate=False)):
        if layer in keep or list(layer.children()) or not list(layer.parameters()):
            continue
        equal = replaced.get(layer)
        if equal is None:
            candidates = (place[path] for place in places if path in place)
            equal = next((each for each in candidates if _are_equal(layer, each)), None)
        if equal is not None and equal is not layer:
            parent, _, name = path.rpartition(".")
            setattr(member.get_submodule(parent), name, equal)
            replaced[layer] = equal
    return sum(
        parameter.numel() * parameter.element_size()
        for layer in replaced
        for parameter in layer.parameters()
    )


def _are_equal(layer: nn.Module, other: nn.Module) -> bool:
    ours, theirs = dict(layer.named_parameters()), dict(other.named_parameters())
    return (
        type(layer) is type(other)
        and layer.extra_repr() == other.extra_repr()
        and ours.keys() == theirs.keys()
        and all(
            one.dtype == theirs[name].dtype and torch.equal(one, theirs[name])
            for name, one in ours.items()
        )
    )

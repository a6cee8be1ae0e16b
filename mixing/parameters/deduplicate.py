"""Stores layers once that several checkpoints have in common, such as frozen embeddings.

Fine-tuning often leaves part of a base unchanged. Layers whose parameters are all equal become one
layer that several members use. Each member keeps its own attention and KV cache.
"""

from __future__ import annotations

import re
from collections.abc import Container, Sequence
from typing import Any

import torch
from torch import nn

_MEMBER = re.compile(r"\bmembers\.p\d+\b")
"""Part of the names that layers keep of themselves, in which members always differ."""

_PLAIN = (bool, int, float, str, type(None), torch.dtype)


def deduplicate_layers(
    member: nn.Module, earlier: Sequence[nn.Module], *, keep: Container[nn.Module] = ()
) -> int:
    """Replaces layers of `member` by equal ones of an earlier member.

    A layer is a module without children. Two layers at the same place of two members are equal if
    they have one class, the same settings (a norm's epsilon is no parameter) and the same
    parameters and buffers, bit by bit. Call this when all parameters are loaded and before they are
    repacked for the hardware.

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
    return (
        type(layer) is type(other)
        and layer.extra_repr() == other.extra_repr()
        and _settings(layer) == _settings(other)
        and _have_equal_tensors(dict(layer.named_parameters()), dict(other.named_parameters()))
        and _have_equal_tensors(dict(layer.named_buffers()), dict(other.named_buffers()))
    )


def _settings(layer: nn.Module) -> dict[str, Any]:
    """A layer's attributes that are plain values. Few layers of vLLM tell all of them in their
    text form: Gemma's norms leave out the epsilon."""
    plain = {name: value for name, value in vars(layer).items() if _is_plain(value)}
    return {
        name: _MEMBER.sub("", value) if isinstance(value, str) else value
        for name, value in plain.items()
    }


def _is_plain(value: object) -> bool:
    if isinstance(value, tuple | list):
        return all(_is_plain(each) for each in value)
    return isinstance(value, _PLAIN)


def _have_equal_tensors(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(
        one.dtype == theirs[name].dtype and torch.equal(one, theirs[name])
        for name, one in ours.items()
    )

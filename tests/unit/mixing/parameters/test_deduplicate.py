"""Layers that checkpoints have in common are stored once; all others stay apart."""

from __future__ import annotations

import copy

import torch
from torch import nn

from prefmix.mixing.parameters.deduplicate import deduplicate_layers


class Model(nn.Module):
    """Embedding, two layers, and a head tied to the embedding."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embed = nn.Embedding(7, 4)
        self.layers = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
        self.head = self.embed


def num_bytes(*models: nn.Module) -> int:
    return sum(
        parameter.numel() * parameter.element_size()
        for parameter in nn.ModuleList(models).parameters()
    )


def test_only_equal_layers_become_one() -> None:
    first, second = Model(0), Model(0)
    with torch.no_grad():
        second.layers[1].weight[0, 0] += 1e-6
    before = num_bytes(first, second)
    spared = deduplicate_layers(second, [first])
    assert second.embed is first.embed
    assert second.head is first.embed, "a tied head follows its embedding"
    assert second.layers[0] is first.layers[0]
    assert second.layers[1] is not first.layers[1]
    assert spared == before - num_bytes(first, second) > 0


def test_any_earlier_member_will_do_and_none_is_changed() -> None:
    first, second, third = Model(0), Model(1), Model(1)
    expected = copy.deepcopy(third)
    assert deduplicate_layers(second, [first]) == 0
    deduplicate_layers(third, [first, second])
    assert third.layers[0] is second.layers[0]
    for name, parameter in third.named_parameters():
        assert torch.equal(parameter, expected.get_parameter(name))


def test_kept_layers_and_other_kinds_stay_apart() -> None:
    first, second = Model(0), Model(0)
    deduplicate_layers(second, [first], keep={second.layers[0]})
    assert second.layers[0] is not first.layers[0]
    half = Model(0).to(torch.float16)
    same_numbers = Model(0).to(torch.float16).to(torch.float32)
    assert deduplicate_layers(half, [same_numbers]) == 0


def test_nan_is_not_equal_to_itself() -> None:
    first, second = Model(0), Model(0)
    for model in (first, second):
        with torch.no_grad():
            model.embed.weight[0, 0] = float("nan")
    deduplicate_layers(second, [first])
    assert second.embed is not first.embed


class Norm(nn.Module):
    """A norm whose text form does not tell its epsilon, as Gemma's and Cohere's in vLLM."""

    def __init__(self, *, eps: float = 1e-6, name: str = "norm", shift: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))
        self.register_buffer("shift", torch.tensor([shift]))
        self.variance_epsilon = eps
        self.prefix = name


def test_layers_of_equal_parameters_and_other_settings_stay_apart() -> None:
    first = nn.Sequential(Norm(name="members.p0.norm"))
    for norm, is_equal in (
        (Norm(name="members.p1.norm"), True),
        (Norm(name="members.p1.norm", eps=1e-5), False),
        (Norm(name="members.p1.norm", shift=1.0), False),
    ):
        second = nn.Sequential(norm)
        assert (deduplicate_layers(second, [first]) > 0) == is_equal
        assert (second[0] is first[0]) == is_equal

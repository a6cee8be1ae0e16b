"""A worker answers a slot's command in any case, and leaves no layer with a part of an adapter."""

from __future__ import annotations

import importlib
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from prefmix.mixing.slots.held import HeldAdapters

pytestmark = pytest.mark.usefixtures("vllm")


class Layer:
    """A layer's method: what its slot holds."""

    def __init__(self) -> None:
        self.held: Any = None
        self.fails = False

    def changes(self, adapter: Any) -> bool:
        return True

    def put(self, place: int, factors: Any) -> None:
        if self.fails and factors is not None:
            raise MemoryError("no room")
        self.held = factors


def trunk(*layers: Layer) -> Any:
    """A trunk of one slot."""
    named = {f"layer-{number}": layer for number, layer in enumerate(layers)}
    return SimpleNamespace(spec=SimpleNamespace(adapters=()), adapters=[None], adapted=named)


def test_a_copy_that_fails_half_way_leaves_nothing() -> None:
    """The next adapter may not change the layers that were written."""
    layers = [Layer(), Layer(), Layer()]
    model = trunk(*layers)
    held = HeldAdapters(model, check=lambda *_: None)
    factors = {name: (torch.ones(1), torch.ones(1)) for name in model.adapted}
    held._reading = SimpleNamespace(adapter="first", factors=factors)  # type: ignore[assignment]
    assert held.run("put", [0])["failure"] is None
    assert all(layer.held is not None for layer in layers)
    layers[2].fails = True
    held._reading = SimpleNamespace(adapter="second", factors=factors)  # type: ignore[assignment]
    with pytest.raises(MemoryError):
        held.run("put", [0])
    assert [layer.held for layer in layers] == [None, None, None]
    assert model.adapters == [None]


def test_a_worker_that_cannot_says_so_and_does_not_raise(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception would reach the client as an error 500, and could end the engine."""
    module = importlib.import_module("prefmix.mixing.engine.worker_extension")
    worker = module.MixtureWorker()
    worker.model_runner = SimpleNamespace(model=trunk(Layer()))

    def no_thread(*_: Any, **__: Any) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("prefmix.mixing.slots.held.threading.Thread", no_thread)
    refused = worker.prefmix_slot("read", ["new", "/folder"])
    cause = "the engine cannot read an adapter now: can't start new thread"
    assert refused == {"failure": f"policy 'new': {cause}"}
    assert worker.prefmix_slot("outcome", []) == {"failure": None, "done": False}

"""Graphs of shared trunks that differ are compiled apart."""

from __future__ import annotations

import importlib
import os
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest

from prefmix.mixing.spec import MixtureSpec, Policy

pytestmark = pytest.mark.usefixtures("vllm")

POLICIES = tuple(Policy(name=name, model=f"org/{name}") for name in ("a", "b"))
BASE = Policy(name="base", model="org/base")


def spec(**settings: Any) -> MixtureSpec:
    return MixtureSpec(policies=POLICIES, base="org/base", **settings)


def adapters(*ranks: int) -> list[Any]:
    layer = "model.layers.0.self_attn.q_proj"
    return [SimpleNamespace(name=f"of{rank}", ranks={layer: rank}) for rank in ranks]


def test_graphs_that_differ_have_keys_of_their_own() -> None:
    """A reference adds rows to the stack, and has no ranks."""
    trunk = importlib.import_module("prefmix.mixing.models.shared_trunk")
    config = importlib.import_module("vllm.config").VllmConfig

    @mock.patch.dict(os.environ)  # vLLM sets variables for its processes
    def key(mixture: MixtureSpec, *ranks: int) -> str:
        added = {"prefmix_trunk": trunk.graph_key(mixture, adapters(*ranks))}
        return str(config(additional_config=added).compute_hash())

    plain, with_reference, other_ranks = (
        key(spec(), 4, 4),
        key(spec(reference=BASE), 4, 4),
        key(spec(), 4, 8),
    )
    assert len({plain, with_reference, other_ranks}) == 3
    assert key(spec(), 4, 4) == plain

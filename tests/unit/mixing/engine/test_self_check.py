"""The answers that the engine's check of itself draws."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from prefmix.mixing.engine import self_check
from prefmix.mixing.spec import MixtureSpec, Policy

BASE = Policy(name="plain", model="org/base")
SPEC = MixtureSpec(
    policies=(Policy(name="a", model="org/a"), BASE),
    base="org/base",
    adapter_slots=2,
    max_adapter_rank=8,
)


def test_members_without_a_kv_cache_have_weight_where_parameters_are_mixed_only() -> None:
    alone = [([1.0, 0.0, 0.0, 0.0], "logits"), ([0.0, 1.0, 0.0, 0.0], "logits")]
    third, fourth = ([0.0, 0.0, 1.0, 0.0], "logits"), ([0.0, 0.0, 0.0, 1.0], "logits")
    averaged = [([0.25] * 4, "parameters"), ([1.0, 0.0, 0.0, 0.0], "parameters")]

    def drawn(slots_without_kv: int) -> list[tuple[list[float], str]]:
        spec = replace(SPEC, slots_without_kv=slots_without_kv)
        return [*self_check._mixtures(spec, mixes_parameters=True)]

    assert drawn(0) == [*alone, third, fourth, ([0.25] * 4, "logits"), *averaged]
    assert drawn(1) == [*alone, third, ([1 / 3] * 3 + [0.0], "logits"), *averaged]
    assert drawn(2) == [*alone, ([0.5, 0.5, 0.0, 0.0], "logits"), *averaged]


def test_a_base_with_slots_alone_is_compared_with_an_empty_slot() -> None:
    spec = replace(SPEC, policies=(BASE,), slots_without_kv=2)
    assert self_check._mixtures(spec, mixes_parameters=True) == [
        ([1.0, 0.0, 0.0], "logits"),
        ([1 / 3] * 3, "parameters"),
        ([0.0, 0.0, 1.0], "parameters"),
    ]


@pytest.mark.parametrize("fails", [False, True])
def test_kernels_may_be_compiled_during_the_check_alone(
    fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM's monitor of late compilation would warn of each, or end the engine."""
    calls: list[Any] = []

    def check(core: Any, spec: MixtureSpec) -> int:
        calls.append("check")
        if fails:
            raise self_check.SelfCheckError("policy 'a' computes NaN")
        return 7

    monkeypatch.setattr(self_check, "_check", check)
    monkeypatch.setattr(
        self_check, "spec_of", lambda config: replace(SPEC, adapter_slots=0, max_adapter_rank=0)
    )
    core = SimpleNamespace(
        vllm_config=None, collective_rpc=lambda name, args: calls.append((name, *args))
    )
    found = self_check.run(core)
    name = "prefmix_expect_compilation"
    assert calls == [(name, True), "check", (name, False)]
    assert (found["failure"] is not None) == fails
    assert self_check.run(core) is found, "an engine checks itself once"

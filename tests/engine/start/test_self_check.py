"""The engine checks itself: what it cannot serve is found, and no trace is left of the check."""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prefmix import Mixture
from prefmix.mixing import wire
from prefmix.mixing.engine import member_checks
from prefmix.mixing.models.adapter_linears import AdapterLinearMethod
from prefmix.mixing.models.stack import Stack
from prefmix.mixing.spec import MixtureSpec
from prefmix.weights.engines.errors import EngineError
from support.checkpoints.tiny_adapters import save_adapter
from support.checkpoints.tiny_faults import with_nan_logit, with_overflow
from support.checkpoints.tiny_policies import save_policy
from support.engines import (
    AdaptedBase,
    EngineFactory,
    metric,
    spec_of_folders,
)


def core_of(llm: Any) -> Any:
    return llm.llm_engine.engine_core.engine_core


def checked(llm: Any) -> dict[str, Any]:
    found: dict[str, Any] = getattr(core_of(llm), wire.SELF_CHECK_METHOD)()
    return found


def test_a_sound_engine_passes_once_and_keeps_no_trace(
    own_engine: EngineFactory, mixture: tuple[MixtureSpec, list[Path]]
) -> None:
    from vllm import SamplingParams

    spec, _ = mixture
    llm = own_engine(spec, enable_prefix_caching=True, block_size=32)
    core, steps = core_of(llm), []
    step = core.step_fn
    core.step_fn = lambda: steps.append(1) or step()
    found = checked(llm)
    assert found["failure"] is None
    # Each policy and the mixture; by parameters the mixture and one policy.
    num_answers = spec.num_members + (3 if spec.adapters else 1)
    assert found["tokens"] == 2 * num_answers
    assert len(steps) <= 4 * num_answers, "it costs a few steps of a few tokens"
    assert checked(llm) is found, "it runs once"
    assert not core.scheduler.has_requests()
    assert core.collective_rpc("prefmix_take_request", args=("prefmix-self-check",)) == [{}]
    names = ["vllm:prefix_cache_queries", "vllm:generation_tokens", "vllm:prompt_tokens"]
    prompt = {"prompt_token_ids": list(range(2, 40))}
    llm.generate([prompt], SamplingParams(max_tokens=3, ignore_eos=True), use_tqdm=False)
    assert [metric(llm, name) for name in names] == [38, 3, 38], "one request of the user's"
    assert metric(llm, "vllm:prefix_cache_hits") == 0


@pytest.mark.parametrize("layout", ["full checkpoints", "shared trunk"])
def test_a_policy_of_nan_is_named(
    own_engine: EngineFactory,
    policies: list[Path],
    adapted: AdaptedBase,
    tmp_path: Path,
    layout: str,
) -> None:
    if layout == "full checkpoints":
        bad = with_nan_logit(tmp_path / "bad", policies[1], token=11)
        llm = own_engine(spec_of_folders([policies[0], bad]))
    else:
        bad = with_overflow(tmp_path / "bad", adapted.adapters[1])
        llm = own_engine(replace(adapted, adapters=[*adapted.adapters[::2], bad]).spec())
    failure = checked(llm)["failure"]
    assert failure.startswith("policy 'bad' computes NaN or infinity")


def spoil(monkeypatch: pytest.MonkeyPatch, part: str, index: int, factor: float) -> None:
    """Multiplies an adapter's lora_B of one layer once it is loaded."""
    put = AdapterLinearMethod.put

    def put_and_spoil(self: AdapterLinearMethod, place: int, factors: Any) -> None:
        put(self, place, factors)
        if place == index and part in self.parts:
            self.layer.adapters_b.data[index] *= factor

    monkeypatch.setattr(AdapterLinearMethod, "put", put_and_spoil)


@pytest.mark.parametrize("factor", [0.0, 0.3, -1.0])
@pytest.mark.parametrize("apart", [False, True])
def test_an_adapter_that_a_layer_loses_or_changes_is_named(
    own_engine: EngineFactory,
    adapted: AdaptedBase,
    monkeypatch: pytest.MonkeyPatch,
    apart: bool,
    factor: float,
) -> None:
    if apart:
        monkeypatch.setattr("prefmix.mixing.models.adapter_linears.join_factors", lambda *_: None)
    layer = "model.layers.1.mlp.down_proj"  # the first that the third adapter has
    spoil(monkeypatch, layer, 2, factor)
    failure = checked(own_engine(adapted.spec()))["failure"]
    assert "'patterns'" in failure
    assert repr(layer) in failure


def test_scales_that_the_first_members_rows_lose_are_found(
    own_engine: EngineFactory, adapted: AdaptedBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mixed logits do not need them, so only mixed parameters would be wrong."""
    run = Stack.run
    monkeypatch.setattr(
        Stack, "run", lambda self, members, lengths, _=None: run(self, members, lengths)
    )
    failure = checked(own_engine(adapted.spec()))["failure"]
    assert "policy 'patterns' gives a token the log-probability" in failure
    assert "as a mean of parameters" in failure


@pytest.mark.usefixtures("own_engine")
def test_a_mixture_of_python_is_checked_too_and_another_may_follow(
    policies: list[Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    settings: dict[str, Any] = {"dtype": "float32", "enforce_eager": True, "max_model_len": 64}
    bad = with_nan_logit(tmp_path / "bad", policies[1], token=11)
    with pytest.raises(EngineError, match="policy 'bad' computes NaN or infinity"):
        Mixture(policies={"good": policies[0], "bad": bad}, **settings)
    assert capfd.readouterr().err == "", "one sentence"
    with Mixture(policies={"good": policies[0], "other": policies[1]}, **settings) as mix:
        gc.collect()  # what the first one has left
        assert mix.generate(["hi"], {"max_tokens": 3})[0].outputs[0].token_ids


def test_small_updates_are_no_false_alarm_in_bfloat16(
    own_engine: EngineFactory, tmp_path: Path
) -> None:
    base = save_policy(tmp_path / "base", seed=0, kv_heads=1)
    adapters = [
        save_adapter(tmp_path / f"of{size}", base, seed=3, size=size, alpha=1.0)
        for size in (0.1, 0.01, 0.001)
    ]
    spec = AdaptedBase(base, adapters, []).spec()
    assert checked(own_engine(spec, dtype="bfloat16"))["failure"] is None


def test_heads_that_attention_cannot_compute_are_refused_by_name(
    own_engine: EngineFactory,
    policies: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    narrow = save_policy(tmp_path / "narrow", seed=4, hidden=32, heads=2)
    with pytest.raises(ValueError, match=r"policy 'narrow' has heads of 16 .* 32, 64"):
        own_engine(spec_of_folders([policies[0], narrow]))
    monkeypatch.setattr(member_checks, "_check_head_sizes", lambda *_: None)
    failure = checked(own_engine(spec_of_folders([policies[0], narrow])))["failure"]
    assert "one, narrow cannot draw a token on this machine: Unsupported CPU attention" in failure
    assert "head_dim=16" in failure
    assert "\n" not in failure

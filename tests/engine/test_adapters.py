"""Adapters that turn out unfit for a shared trunk only when they are loaded; the other faults are
tested in tests/unit/mixing/checkpoints/test_lora.py."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors.torch import load_file, save_file

from architectures.checkpoints import save_adapter as save_any_adapter
from prefmix.mixing.checkpoints.lora import AdapterError
from prefmix.mixing.spec import MixtureSpec, Policy
from support.checkpoints.tiny_adapters import save_adapter
from support.checkpoints.tiny_policies import save_policy
from support.engines import AdaptedBase, EngineFactory


@pytest.mark.parametrize("value", [float("nan"), 3e38])
def test_an_adapter_with_nan_or_too_large_numbers_is_refused(
    own_engine: EngineFactory, adapted: AdaptedBase, tmp_path: Path, value: float
) -> None:
    """The larger value, doubled by its alpha, is infinite and would spoil other adapters' rows."""
    tensors = load_file(adapted.adapters[0] / "adapter_model.safetensors")
    next(tensors[key] for key in tensors if "lora_B" in key)[0, 0] = value
    broken = tmp_path / "broken"
    broken.mkdir()
    save_file(tensors, broken / "adapter_model.safetensors")
    shutil.copy(adapted.adapters[0] / "adapter_config.json", broken)
    spec = MixtureSpec(policies=(Policy(name="x", model=str(broken)),), base=str(adapted.base))
    with pytest.raises(AdapterError, match=r"policy 'x'.*holds NaN or infinite numbers"):
        own_engine(spec)


def test_an_adapter_of_another_model_is_refused_by_name(
    own_engine: EngineFactory, adapted: AdaptedBase, tmp_path: Path
) -> None:
    wide = save_policy(tmp_path / "wide", seed=5, hidden=128)
    deep = save_policy(tmp_path / "deep", seed=5, layers=3)
    for other, words in ((wide, "inputs and .* but the base"), (deep, "model.layers.2")):
        foreign = save_adapter(tmp_path / f"of_{other.name}", other, seed=1)
        spec = MixtureSpec(
            policies=(Policy(name="foreign", model=str(foreign)),), base=str(adapted.base)
        )
        with pytest.raises(Exception, match=f"'foreign'.*{words}"):
            own_engine(spec)


def test_an_adapter_of_a_router_is_refused_where_vllm_has_a_kernel_for_routers(
    own_engine: EngineFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU the kernel reads the router's own matrix, and an adapter would do nothing."""
    base = save_policy(
        tmp_path / "base",
        seed=0,
        model_type="qwen3_moe",
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=64,
    )
    left_out = [f"model.layers.N.self_attn.{name}_proj" for name in "qkvo"]
    assert save_any_adapter(tmp_path / "a", base, seed=1, left_out=left_out) == [
        "model.layers.N.mlp.gate"
    ]
    policy = Policy(name="routed", model=str(tmp_path / "a" / "adapter"))
    gpu = SimpleNamespace(is_cpu=lambda: False)
    monkeypatch.setattr("prefmix.mixing.models.adapter_linears.current_platform", gpu)
    words = r"'routed': its adapter changes 'model\.layers\.\d\.mlp\.gate'.*knows no adapters"
    with pytest.raises(AdapterError, match=words):
        own_engine(MixtureSpec(policies=(policy,), base=str(base)))

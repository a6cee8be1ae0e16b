"""A checkpoint that lacks parameters is refused: vLLM would compute with memory as it was."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file

from prefmix.mixing.models.loading import MemberLoadError
from support.checkpoints.tiny_faults import without
from support.checkpoints.tiny_policies import save_policy
from support.checkpoints.tiny_quantised import quantise
from support.engines import AdaptedBase, EngineFactory, spec_of_folders

LAYER = "model.layers.1."
MIXTRAL = {"num_local_experts": 2, "num_experts_per_tok": 1}


@pytest.mark.parametrize("part", ["q", "k", "v"])
def test_a_base_without_part_of_a_fused_layer_is_refused(
    own_engine: EngineFactory, adapted: AdaptedBase, tmp_path: Path, part: str
) -> None:
    name = f"{LAYER}self_attn.{part}_proj.weight"
    base = without(tmp_path / "base", adapted.base, [name])
    spec = AdaptedBase(base, adapted.adapters, adapted.merged).spec()
    with pytest.raises(MemberLoadError, match=rf"policy 'base': the files of .* lack {name}, so"):
        own_engine(spec)


@pytest.mark.parametrize(
    "names",
    [
        ["self_attn.q_proj.weight"],
        ["mlp.up_proj.weight"],
        ["mlp.gate_proj.weight", "mlp.up_proj.weight"],
        ["self_attn.o_proj.weight"],
    ],
    ids=str,
)
def test_a_policy_without_part_of_a_layer_is_refused(
    own_engine: EngineFactory, policies: list[Path], tmp_path: Path, names: list[str]
) -> None:
    """vLLM counts a fused layer as loaded with one part, and no linear layer as missing."""
    lacked = [f"{LAYER}{name}" for name in names]
    broken = without(tmp_path / "broken", policies[1], lacked)
    with pytest.raises(MemberLoadError, match="'broken': .* lack " + ", ".join(lacked) + ", so"):
        own_engine(spec_of_folders([policies[0], broken]))


def test_a_policy_without_a_head_or_embeddings_is_refused(
    own_engine: EngineFactory, policies: list[Path], tmp_path: Path
) -> None:
    names = ["lm_head.weight", "model.embed_tokens.weight", "model.layers.0.mlp.down_proj.weight"]
    broken = without(tmp_path / "broken", policies[1], names)
    with pytest.raises(MemberLoadError, match="lack ") as refused:
        own_engine(spec_of_folders([broken, policies[0]]))
    assert all(name in str(refused.value) for name in names)


@pytest.mark.parametrize(
    "name", ["self_attn.k_proj.weight", "self_attn.v_proj.weight_scale", "mlp.down_proj.weight"]
)
def test_a_quantised_policy_without_part_of_a_layer_is_refused(
    own_engine: EngineFactory, tmp_path: Path, name: str
) -> None:
    whole = quantise(save_policy(tmp_path / "whole", seed=0))
    broken = without(tmp_path / "broken", whole, [LAYER + name])
    with pytest.raises(MemberLoadError, match=f"'broken': .* lack {LAYER}{name}, so"):
        own_engine(spec_of_folders([whole, broken]), dtype="bfloat16")


def test_a_policy_without_one_experts_layer_is_refused(
    own_engine: EngineFactory, tmp_path: Path
) -> None:
    whole = save_policy(tmp_path / "whole", seed=0, model_type="mixtral", **MIXTRAL)
    names = sorted(load_file(whole / "model.safetensors"))
    expert = next(name for name in names if ".layers.1." in name and ".experts.1." in name)
    broken = without(tmp_path / "broken", whole, [expert])
    with pytest.raises(MemberLoadError, match=r"'broken': .* lack model\.layers\.1\..*w\d+_weight"):
        own_engine(spec_of_folders([broken]))

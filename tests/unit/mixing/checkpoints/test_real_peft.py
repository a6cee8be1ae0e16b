"""Adapters that PEFT itself has written, against the parameters that PEFT merges them to.

Needs the train extra: `make test-train`.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from prefmix.mixing.checkpoints.compatibility import CompatibilityError, check_members
from prefmix.mixing.checkpoints.lora import read_adapter
from prefmix.mixing.checkpoints.lora_config import unknown_entries
from prefmix.mixing.spec import MixtureSpec, Policy
from support.checkpoints.tiny_policies import save_policy

pytestmark = [
    pytest.mark.train,
    pytest.mark.usefixtures("vllm"),
    pytest.mark.skipif(
        importlib.util.find_spec("peft") is None, reason="needs the train extra: make setup-train"
    ),
    # Of PEFT and what it imports, whose warnings are not ours to mend.
    pytest.mark.filterwarnings("ignore"),
]

TAKEN: dict[str, dict[str, Any]] = {
    "two layers": {"target_modules": ["q_proj", "v_proj"]},
    "all linear": {"target_modules": "all-linear"},
    "some left out": {"target_modules": "all-linear", "exclude_modules": ["down_proj"]},
    "a regex": {"target_modules": r".*layers\.[02]\.(self_attn\.[qk]|mlp\.up)_proj"},
    "some depths": {"target_modules": ["o_proj", "gate_proj"], "layers_to_transform": [0, 2]},
    "depths of a pattern": {
        "target_modules": ["k_proj"],
        "layers_to_transform": [1],
        "layers_pattern": "layers",
    },
    "rsLoRA": {"target_modules": ["q_proj", "up_proj"], "r": 8, "use_rslora": True},
    "ranks by layer": {
        "target_modules": ["q_proj", "k_proj", "down_proj"],
        "rank_pattern": {"k_proj": 2, r"layers\.1\.mlp\.down_proj": 6},
    },
    "alphas by layer": {
        "target_modules": ["q_proj", "o_proj"],
        "alpha_pattern": {r".*\.o_proj": 3, "layers.0.self_attn.q_proj": 32},
        "rank_pattern": {"^model.layers.2.self_attn.q_proj": 3},
        "use_rslora": True,
    },
    "orthogonal": {"target_modules": ["v_proj"], "init_lora_weights": "orthogonal"},
}

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "DoRA": ({"use_dora": True}, "DoRA"),
    "biases of all": ({"bias": "all"}, "bias is 'all'"),
    "biases of adapters": ({"bias": "lora_only"}, "bias is 'lora_only'"),
    "a bias of lora_B": ({"lora_bias": True}, "lora_bias"),
    "modules to save": ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    "head": ({"target_modules": ["q_proj", "lm_head"]}, "changes 'lm_head"),
    "embeddings": ({"target_modules": ["q_proj", "embed_tokens"]}, "embed_tokens"),
    "some tokens": ({"trainable_token_indices": [3, 4]}, "trainable_token_indices is"),
    "PiSSA": ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa'"),
    "OLoRA": ({"init_lora_weights": "olora"}, "init_lora_weights='olora'"),
    "layers twice": ({"layer_replication": [[0, 2], [1, 3]]}, "layer_replication"),
    "activated": ({"alora_invocation_tokens": [5]}, "aLoRA"),
}
"""Entries of the config, and words of the refusal."""

EDITS: dict[str, dict[str, Any]] = {
    "a rank with a point": {"r": 4.0},
    "a rank in quotes": {"r": "4"},
    "an alpha in quotes": {"lora_alpha": "8"},
    "an alpha of none": {"lora_alpha": None},
    "an alpha with a point": {"lora_alpha": 6.5},
    "an alpha of zero": {"lora_alpha": 0},
    "a negative alpha": {"lora_alpha": -8},
    "no rsLoRA": {"use_rslora": None},
    "rsLoRA in quotes": {"use_rslora": "false"},
    "rsLoRA of one": {"use_rslora": 1},
    "DoRA in quotes": {"use_dora": "false"},
    "a bias of lora_B in quotes": {"lora_bias": "no"},
    "no bias": {"bias": None},
    "another bias": {"bias": "some"},
    "fan_in_fan_out": {"fan_in_fan_out": True},
    "fan_in_fan_out in quotes": {"fan_in_fan_out": "false"},
    "no fan_in_fan_out": {"fan_in_fan_out": None},
    "a rank by layer with a point": {"rank_pattern": {"q_proj": 4.0}},
    "a rank by layer in quotes": {"rank_pattern": {"q_proj": "4"}},
    "no ranks by layer": {"rank_pattern": {}},
    "an alpha by layer in quotes": {"alpha_pattern": {"q_proj": "3"}},
    "an alpha by layer of none": {"alpha_pattern": {"q_proj": None}},
    "an alpha by layer": {"alpha_pattern": {"q_proj": 0.5, "no such layer": 9}},
    "a layer that is not targeted": {"target_modules": ["q_proj"]},
    "half a name": {"target_modules": ["_proj", "q_proj"]},
    "whole names": {
        "target_modules": [
            "model.layers.0.self_attn.q_proj",
            "layers.1.mlp.up_proj",
            "2.self_attn.q_proj",
        ]
    },
    "a regex of one layer": {"target_modules": r".*\.q_proj"},
    "half a regex": {"target_modules": r"q_proj|up_proj"},
    "all linear": {"target_modules": "all-linear"},
    "an excluded layer": {"exclude_modules": ["up_proj"]},
    "a regex of excluded layers": {"exclude_modules": r".*\.1\..*"},
    "some depths": {"layers_to_transform": [0, 2]},
    "one depth": {"layers_to_transform": 1},
    "no depths": {"layers_to_transform": []},
    "a depth in quotes": {"layers_to_transform": ["1"]},
    "depths of another pattern": {"layers_to_transform": [0], "layers_pattern": "h"},
    "depths of patterns": {"layers_to_transform": [0], "layers_pattern": ["h", "layers"]},
    "no layers": {"target_modules": []},
    "no list of layers": {"target_modules": None},
    "targets of a number": {"target_modules": 3},
    "Arrow": {"arrow_config": {"top_k": 1}},
    "KaSA": {"kasa_config": {}},
    "MonteCLoRA": {"monteclora_config": {"use_entropy": False}},
    "Arrow's defaults": {"arrow_config": {}},
    "blocks": {"use_bdlora": {}},
    "VeLoRA": {"velora_config": {"num_groups": 2}},
    "QALoRA": {"use_qalora": True},
    "a size for QALoRA": {"qalora_group_size": 3},
    "Megatron": {"megatron_config": {"hidden_size": 3}},
    "no activation": {"alora_invocation_tokens": []},
    "no replication": {"layer_replication": None},
    "some tokens": {"trainable_token_indices": [3]},
    "no tokens": {"trainable_token_indices": None},
    "EVA's own": {"eva_config": {"rho": 2.0}},
    "EVA": {"init_lora_weights": "eva"},
    "MiCA": {"init_lora_weights": "mica"},
    "LoRA-GA": {"init_lora_weights": "lora_ga", "lora_ga_config": {"direction": "ArB2r"}},
    "PiSSA": {"init_lora_weights": "pissa"},
    "PiSSA in capitals": {"init_lora_weights": "PiSSA"},
    "an unknown start": {"init_lora_weights": "later"},
    "no start": {"init_lora_weights": None},
    "tied weights": {"ensure_weight_tying": True},
    "run time": {"runtime_config": {"ephemeral_gpu_offload": True}},
    "dropout": {"lora_dropout": 0.5},
    "an unknown entry": {"group_width": 3},
    "an unknown method": {"use_waves": True},
    "an unknown method's config": {"waves_config": {"length": 3}},
    "a method of old": {"enable_lora": [True, False]},
}
"""Changes of the config of a saved adapter of q_proj and up_proj."""

EXACT = {
    "an alpha with a point",
    "an alpha of zero",
    "a negative alpha",
    "no rsLoRA",
    "fan_in_fan_out",
    "no fan_in_fan_out",
    "no ranks by layer",
    "an alpha by layer",
    "all linear",
    "no depths",
    "a size for QALoRA",
    "no activation",
    "no replication",
    "no tokens",
    "EVA's own",
    "EVA",
    "LoRA-GA",
    "no start",
    "tied weights",
    "run time",
    "dropout",
    "an unknown entry",
}
"""The edits that are no reason for a refusal."""

OTHER_METHODS = {
    "IA3Config": {"target_modules": ["k_proj"], "feedforward_modules": []},
    "LoHaConfig": {"target_modules": ["q_proj"]},
    "LoKrConfig": {"target_modules": ["q_proj"]},
    "VeraConfig": {"target_modules": ["q_proj"]},
    "OFTConfig": {"target_modules": ["q_proj"], "oft_block_size": 0, "r": 2},
    "PromptTuningConfig": {"num_virtual_tokens": 4},
}


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_policy(tmp_path_factory.mktemp("peft") / "base", seed=0, layers=3, kv_heads=1)


def lora(base: Path, **settings: Any) -> Any:
    """The base with a LoRA of PEFT, whose factors are no zeros."""
    import peft

    torch.manual_seed(1)
    settings = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], **settings}
    config = peft.LoraConfig(task_type="CAUSAL_LM", **settings)
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def check(base: Path, adapter: Path) -> None:
    policy = Policy(name="tuned", model=str(adapter))
    check_members(MixtureSpec(policies=(policy,), base=str(base)))


def merged_by_us(base: Path, adapter: Path) -> dict[str, torch.Tensor]:
    """The base's parameters with the factors that a shared trunk would load."""
    read_by_us = read_adapter(Policy(name="tuned", model=str(adapter)))
    model = AutoModelForCausalLM.from_pretrained(base)
    with read_by_us.opened() as read, torch.no_grad():
        for layer in read_by_us.ranks:
            factors = read(layer)
            update = factors.scaling * factors.lora_b @ factors.lora_a
            model.get_submodule(layer).weight += update
    return dict(model.state_dict())


def assert_same(ours: dict[str, torch.Tensor], theirs: Any, base: Path | None) -> None:
    """Checks that both are the same, and not the base, if that is given."""
    expected = theirs.merge_and_unload().state_dict()
    assert ours.keys() == expected.keys()
    if base is not None:
        before = AutoModelForCausalLM.from_pretrained(base).state_dict()
        assert any(not torch.equal(before[name], tensor) for name, tensor in expected.items())
    for name, tensor in ours.items():
        assert torch.allclose(tensor, expected[name], atol=1e-6), name


@pytest.mark.parametrize("kind", TAKEN)
def test_factors_are_read_as_peft_merges_them(base: Path, tmp_path: Path, kind: str) -> None:
    model = lora(base, **TAKEN[kind])
    model.save_pretrained(tmp_path / "adapter")
    check(base, tmp_path / "adapter")
    assert_same(merged_by_us(base, tmp_path / "adapter"), model, base)


def test_a_converted_pissa_is_read_as_peft_merges_it(base: Path, tmp_path: Path) -> None:
    import peft

    settings = {"target_modules": ["q_proj", "up_proj"], "init_lora_weights": "pissa"}
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, **settings)
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    model.save_pretrained(tmp_path / "start")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    adapter = tmp_path / "adapter"
    model.save_pretrained(adapter, path_initial_model_for_weight_conversion=tmp_path / "start")
    check(base, adapter)
    assert_same(merged_by_us(base, adapter), model, base)


@pytest.mark.parametrize("parameter", ["weight"])
def test_parameters_named_as_targets_are_read_as_peft_merges_them(
    base: Path, tmp_path: Path, parameter: str
) -> None:
    targets = [f"q_proj.{parameter}", f"down_proj.{parameter}"]
    model = lora(base, target_modules=[], target_parameters=targets)
    model.save_pretrained(tmp_path / "adapter")
    check(base, tmp_path / "adapter")
    assert_same(merged_by_us(base, tmp_path / "adapter"), model, base)


@pytest.mark.parametrize("kind", REFUSED)
def test_what_a_trunk_cannot_share_is_refused_in_one_line(
    base: Path, tmp_path: Path, kind: str
) -> None:
    settings, words = REFUSED[kind]
    lora(base, **settings).save_pretrained(tmp_path / "adapter")
    with pytest.raises(CompatibilityError) as caught:
        check(base, tmp_path / "adapter")
    message = str(caught.value)
    assert words in message
    assert "'tuned'" in message
    assert "\n" not in message


@pytest.mark.parametrize("edit", EDITS)
def test_a_config_means_what_it_means_to_peft_or_is_refused(
    base: Path, tmp_path: Path, edit: str
) -> None:
    """PEFT itself reads the edited config; where it fails, it is refused here."""
    import peft

    adapter = tmp_path / "adapter"
    lora(base, target_modules=["q_proj", "up_proj"]).save_pretrained(adapter)
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **EDITS[edit]}))
    try:
        check(base, adapter)
    except CompatibilityError as error:
        message = str(error)
        assert edit not in EXACT, message
        assert "'tuned'" in message
        assert "\n" not in message
        return
    ours = merged_by_us(base, adapter)
    model = AutoModelForCausalLM.from_pretrained(base)
    theirs = peft.PeftModel.from_pretrained(model, adapter)
    assert_same(ours, theirs, None if edit == "an alpha of zero" else base)


def test_peft_has_no_entry_that_is_not_judged() -> None:
    import dataclasses

    import peft

    names = {field.name for field in dataclasses.fields(peft.LoraConfig)}
    defaults = dict.fromkeys(names, 3)
    assert unknown_entries(defaults) == []


@pytest.mark.parametrize("method", OTHER_METHODS)
def test_other_methods_than_lora_are_refused_in_one_line(
    base: Path, tmp_path: Path, method: str
) -> None:
    import peft

    config = getattr(peft, method)(task_type="CAUSAL_LM", **OTHER_METHODS[method])
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    model.save_pretrained(tmp_path / "adapter")
    kind = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["peft_type"]
    with pytest.raises(CompatibilityError, match=rf"is of type '{kind}'.*merge_and_unload") as got:
        check(base, tmp_path / "adapter")
    assert "\n" not in str(got.value)

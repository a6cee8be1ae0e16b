"""Adapters that cannot share a trunk are refused by name before an engine starts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from prefmix.mixing.checkpoints.compatibility import CompatibilityError, check_members
from prefmix.mixing.checkpoints.lora import AdapterError, read_adapter
from prefmix.mixing.spec import MixtureSpec, Policy
from support.checkpoints.tiny_policies import VOCAB_SIZE
from support.engines import AdaptedBase

pytestmark = pytest.mark.usefixtures("vllm")


def damaged(folder: Path, source: Path, kind: str) -> Path:
    """A copy of an adapter with one thing wrong."""
    config = json.loads((source / "adapter_config.json").read_text())
    tensors = load_file(source / "adapter_model.safetensors")
    some = next(iter(tensors)).removesuffix(".lora_A.weight").removesuffix(".lora_B.weight")
    folder.mkdir()
    if kind == "dora":
        config["use_dora"] = True
    elif kind == "bias":
        config["bias"] = "all"
    elif kind == "modules_to_save":
        config["modules_to_save"] = ["embed_tokens"]
    elif kind == "lm_head":
        for side, shape in (("A", (4, 64)), ("B", (VOCAB_SIZE, 4))):
            tensors[f"base_model.model.lm_head.lora_{side}.weight"] = torch.zeros(shape)
    elif kind == "embedding lora":
        for side, shape in (("A", (4, VOCAB_SIZE)), ("B", (64, 4))):
            tensors[f"base_model.model.model.embed_tokens.lora_embedding_{side}"] = torch.zeros(
                shape
            )
    elif kind == "embedding":
        tensors["base_model.model.model.embed_tokens.weight"] = torch.zeros(VOCAB_SIZE, 64)
    elif kind == "pissa":
        config["init_lora_weights"] = "pissa_niter_16"
    elif kind == "ia3":
        config = {"peft_type": "IA3", "target_modules": ["k_proj"], "feedforward_modules": []}
        tensors = {f"{some}.ia3_l": torch.zeros(64, 1)}
    elif kind == "list":
        config = [config]
    elif kind == "pattern":
        config["rank_pattern"] = {"(q_proj": 4}
    elif kind == "patterns":
        config["rank_pattern"] = [4]
    elif kind == "modules":
        config["modules_to_save"] = 7
    elif kind == "magnitude":
        tensors[f"{some}.lora_magnitude_vector"] = torch.zeros(4)
    elif kind == "half":
        del tensors[f"{some}.lora_B.weight"]
    elif kind == "rank":
        config["r"] = 5
    elif kind == "convolution":
        tensors = {name: tensor[:, :, None, None] for name, tensor in tensors.items()}
    elif kind == "flat":
        tensors = {name: tensor.flatten() for name, tensor in tensors.items()}
    elif kind == "empty":
        tensors = {}
    if kind != "no config":
        (folder / "adapter_config.json").write_text(
            {"bad json": "{", "deep json": "[" * 100_000}.get(kind) or json.dumps(config)
        )
    if kind == "pickle":
        torch.save(tensors, folder / "adapter_model.bin")
    elif kind == "cut off":
        (folder / "adapter_model.safetensors").write_bytes(b"\x00" * 20)
    else:
        save_file(tensors, folder / "adapter_model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("dora", ["DoRA", "merge_and_unload"]),
        ("bias", ["bias is 'all'", "merge_and_unload"]),
        ("modules_to_save", ["modules_to_save", "merge_and_unload"]),
        ("lm_head", ["'lm_head'", "share the base's embeddings and LM head", "--policy"]),
        ("embedding lora", ["embed_tokens", "share the base's embeddings", "--policy"]),
        ("embedding", ["'model.embed_tokens.weight'", "share the base's embeddings", "--policy"]),
        ("pissa", ["init_lora_weights='pissa_niter_16'", "merge_and_unload", "--policy"]),
        ("ia3", ["is of type 'IA3'", "peft_type 'LORA'", "merge_and_unload", "--policy"]),
        ("list", ["unreadable adapter_config.json", "no JSON object"]),
        ("pattern", ["unreadable adapter_config.json", "unterminated subpattern"]),
        ("patterns", ["unreadable adapter_config.json", "rank_pattern is [4], expected an object"]),
        ("modules", ["unreadable adapter_config.json"]),
        ("magnitude", ["lora_magnitude_vector", "merge_and_unload"]),
        ("half", ["has lora_A of", "not its other factor"]),
        ("rank", ["adapter_config.json says 5"]),
        ("convolution", ["has a tensor of shape [", ", 1, 1]", "merge_and_unload", "--policy"]),
        ("flat", ["has a tensor of shape [", "only the matrices", "--policy"]),
        ("empty", ["holds no tensors"]),
        ("no config", ["no adapter_config.json", "save_pretrained"]),
        ("bad json", ["unreadable adapter_config.json"]),
        ("deep json", ["unreadable adapter_config.json", "maximum recursion depth"]),
        ("pickle", ["no adapter_model.safetensors", "adapter_model.bin", "safe_serialization"]),
        ("cut off", ["cannot be read", "adapter_model.safetensors"]),
    ],
)
def test_a_damaged_adapter_is_refused_before_an_engine_starts(
    adapted: AdaptedBase, tmp_path: Path, kind: str, words: list[str]
) -> None:
    broken = Policy(name="broken", model=str(damaged(tmp_path / "x", adapted.adapters[0], kind)))
    spec = MixtureSpec(policies=(broken,), base=str(adapted.base))
    with pytest.raises(CompatibilityError) as caught:
        check_members(spec)
    message = str(caught.value)
    assert "\n" not in message
    assert [word for word in ["'broken'", *words] if word not in message] == [], message


@pytest.mark.parametrize("has_config", [False, True])
def test_a_full_checkpoint_given_as_adapter_is_told_so(
    adapted: AdaptedBase, tmp_path: Path, has_config: bool
) -> None:
    """Trainers leave the adapter's config beside the model that they merged it into."""
    folder = Path(shutil.copytree(adapted.merged[0], tmp_path / "whole"))
    if has_config:
        shutil.copy(adapted.adapters[0] / "adapter_config.json", folder)
    policy = Policy(name="whole", model=str(folder))
    with pytest.raises(CompatibilityError, match="full checkpoint: serve it with --policy"):
        check_members(MixtureSpec(policies=(policy,), base=str(adapted.base)))


def test_files_that_are_replaced_are_read_again(adapted: AdaptedBase, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(adapted.adapters[0], tmp_path / "retrained"))
    policy = Policy(name="retrained", model=str(folder))
    spec = MixtureSpec(policies=(policy,), base=str(adapted.base))
    check_members(spec)
    before = read_adapter(policy)
    module = next(iter(before.ranks))
    with before.opened() as read:
        scaling = read(module).scaling
    config = json.loads((folder / "adapter_config.json").read_text())
    doubled = {**config, "lora_alpha": 2 * config["lora_alpha"]}
    (folder / "adapter_config.json").write_text(json.dumps(doubled))
    changed = "policy 'retrained': the files in .* have changed since they were checked"
    with pytest.raises(AdapterError, match=changed), before.opened():
        pass
    with read_adapter(policy).opened() as read:
        assert read(module).scaling == 2 * scaling
    (folder / "adapter_config.json").write_text(json.dumps({**config, "r": 99}))
    with pytest.raises(CompatibilityError, match=r"adapter_config\.json says 99"):
        check_members(spec)

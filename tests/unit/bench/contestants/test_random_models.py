"""Random models have the sizes they claim, and adapters fit their base."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from prefmix.bench.contestants.random_models import (
    Shape,
    build_tokenizer,
    dummy_tensors,
    save_adapter,
    save_average,
    save_model,
    save_shape,
)

SHAPE = Shape(layers=2, hidden=128, intermediate=192, heads=4, kv_heads=2, vocab=400)


@pytest.fixture(scope="module")
def policies(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("models")
    config = SHAPE.config()
    return [
        save_model(root / f"p{seed}", config, seed=seed, dtype=torch.bfloat16) for seed in range(2)
    ]


def test_a_model_has_as_many_parameters_as_its_shape_says(policies: list[Path]) -> None:
    model = AutoModelForCausalLM.from_pretrained(policies[0])
    assert model.dtype == torch.bfloat16
    assert sum(parameter.numel() for parameter in model.parameters()) == SHAPE.num_parameters


def test_seeds_make_different_models(policies: list[Path]) -> None:
    first, second = (load_file(policy / "model.safetensors") for policy in policies)
    assert not torch.equal(first["lm_head.weight"], second["lm_head.weight"])


@pytest.mark.parametrize("vocab_size", [300, 320, 400, 5000])
def test_a_tokenizer_has_exactly_its_size_and_loses_no_text(vocab_size: int) -> None:
    tokenizer = build_tokenizer(vocab_size=vocab_size)
    assert len(tokenizer) == vocab_size
    text = "Weights on the simplex, été 2026!"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.decode([vocab_size - 1])


def test_a_saved_tokenizer_matches_its_model(policies: list[Path]) -> None:
    assert len(AutoTokenizer.from_pretrained(policies[0])) == SHAPE.vocab


def test_the_average_is_the_mean_of_the_parameters(policies: list[Path], tmp_path: Path) -> None:
    folder = save_average(tmp_path / "average", policies)
    mean = load_file(folder / "model.safetensors")
    states = [load_file(policy / "model.safetensors") for policy in policies]
    for name, tensor in mean.items():
        truth = (states[0][name].double() + states[1][name].double()) / 2
        torch.testing.assert_close(tensor, truth.to(torch.bfloat16))
    AutoModelForCausalLM.from_pretrained(folder)
    assert len(AutoTokenizer.from_pretrained(folder)) == SHAPE.vocab


def test_models_of_different_shapes_have_no_average(policies: list[Path], tmp_path: Path) -> None:
    config = dataclasses.replace(SHAPE, hidden=64).config()
    other = save_model(tmp_path / "other", config, seed=3)
    with pytest.raises(ValueError, match="differ in shape"):
        save_average(tmp_path / "average", [policies[0], other])


def test_an_adapter_changes_every_linear_layer_of_its_base(
    policies: list[Path], tmp_path: Path
) -> None:
    folder = save_adapter(tmp_path / "adapter", policies[0], rank=4, seed=0)
    tensors = load_file(folder / "adapter_model.safetensors")
    settings = json.loads((folder / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(policies[0])
    base = load_file(policies[0] / "model.safetensors")
    linears = {name for name in base if name.endswith("_proj.weight")}
    for name in linears:
        module = f"base_model.model.{name.removesuffix('.weight')}"
        update = tensors[f"{module}.lora_B.weight"] @ tensors[f"{module}.lora_A.weight"]
        assert update.shape == base[name].shape
        assert update.any()
        assert name.split(".")[-2] in settings["target_modules"]
    assert len(tensors) == 2 * len(linears) == 2 * 7 * SHAPE.layers


def test_dummy_tensors_are_those_of_the_files(policies: list[Path], tmp_path: Path) -> None:
    """Two folders differ, since a mixture stores equal layers once; so do rows of a matrix."""
    folders = [
        save_shape(tmp_path / name, SHAPE.config(), tokenizer=build_tokenizer(vocab_size=400))
        for name in "ab"
    ]
    assert not list(tmp_path.rglob("*.safetensors"))
    saved = load_file(policies[0] / "model.safetensors")
    made, other = (dict(dummy_tensors(folder)) for folder in folders)
    assert {name: each.shape for name, each in made.items()} == {
        name: each.shape for name, each in saved.items()
    }
    for name, tensor in made.items():
        assert torch.equal(tensor, other[name]) == (tensor.dim() == 1)
        if tensor.dim() > 1:
            assert tensor.std() == pytest.approx(0.02, rel=0.05)
            assert not torch.equal(tensor[0], tensor[1])
    adapter = load_file(
        save_adapter(tmp_path / "adapter", folders[0], rank=4, seed=0) / "adapter_model.safetensors"
    )
    of_files = save_adapter(tmp_path / "of_files", policies[0], rank=4, seed=0)
    assert adapter.keys() == load_file(of_files / "adapter_model.safetensors").keys()

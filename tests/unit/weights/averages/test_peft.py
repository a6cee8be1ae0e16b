"""Exported averages against PEFT: its merge of each adapter, and its loading of the export.

Needs the train extra: `make test-train`.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from prefmix.mixing.spec import Policy
from prefmix.weights.averages.adapter_sum import write_adapter_average
from prefmix.weights.averages.merged_checkpoint import write_merged
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

ADAPTERS: dict[str, dict[str, Any]] = {
    "all": {"target_modules": "all-linear", "r": 4},
    "rs": {"target_modules": ["q_proj", "up_proj"], "r": 8, "use_rslora": True},
    "patterns": {
        "target_modules": ["q_proj", "k_proj", "down_proj"],
        "r": 3,
        "lora_alpha": 5,
        "rank_pattern": {"k_proj": 2, r"layers\.1\.mlp\.down_proj": 6},
        "alpha_pattern": {"k_proj": 7},
    },
    "depth": {"target_modules": ["o_proj"], "layers_to_transform": [1], "r": 2},
}
WEIGHTS = (0.5, 0.25, -0.75, 1.0)


def _adapter(folder: Path, base: Path, seed: int, config: dict[str, Any]) -> Policy:
    from peft import LoraConfig, get_peft_model

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    torch.manual_seed(seed)
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **config))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape) * 0.2)
    adapted.save_pretrained(folder)
    return Policy(name=folder.name, model=str(folder))


def _parameters(model: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.double() for name, tensor in model.state_dict().items()}


def _peft_merged(base: Path, adapter: Path) -> dict[str, torch.Tensor]:
    from peft import PeftModel

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return _parameters(PeftModel.from_pretrained(model, adapter).merge_and_unload())


@pytest.fixture(scope="module")
def exact(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, dict[Policy, float], dict[str, torch.Tensor]]:
    """The base, its adapters with their shares, and base + sum_k w_k (merge of k - base)."""
    folder = tmp_path_factory.mktemp("exported")
    base = save_policy(folder / "base", seed=0)
    policies = [
        _adapter(folder / name, base, seed, config)
        for seed, (name, config) in enumerate(ADAPTERS.items())
    ]
    start = _parameters(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32))
    expected = {name: tensor.clone() for name, tensor in start.items()}
    for policy, weight in zip(policies, WEIGHTS, strict=True):
        for name, tensor in _peft_merged(base, Path(policy.model)).items():
            expected[name] += weight * (tensor - start[name])
    assert not torch.equal(
        expected["model.layers.0.mlp.up_proj.weight"], start["model.layers.0.mlp.up_proj.weight"]
    )
    return base, dict(zip(policies, WEIGHTS, strict=True)), expected


def _distance(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    assert found.keys() == expected.keys()
    return max(float((found[name] - expected[name]).abs().max()) for name in expected)


def test_peft_merges_the_exported_adapter_to_the_average(exact: Any, tmp_path: Path) -> None:
    base, shares, expected = exact
    write_adapter_average(tmp_path, shares, base=str(base))
    assert _distance(_peft_merged(base, tmp_path), expected) < 1e-6


def test_merged_checkpoint_is_what_peft_merges_to(exact: Any, tmp_path: Path) -> None:
    base, shares, expected = exact
    write_merged(tmp_path, Policy(name="base", model=str(base)), shares)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert _distance(_parameters(merged), expected) < 1e-6


def test_cut_adapter_is_as_far_from_the_average_as_it_says(exact: Any, tmp_path: Path) -> None:
    base, shares, expected = exact
    written = write_adapter_average(tmp_path, shares, base=str(base), rank=3)
    found = _peft_merged(base, tmp_path)
    start = _parameters(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32))
    assert max(written.errors.values()) > 0.1
    for module, error in written.errors.items():
        name = f"{module}.weight"
        update = expected[name] - start[name]
        measured = float((found[name] - expected[name]).norm() / update.norm())
        assert measured == pytest.approx(error, abs=1e-5), module

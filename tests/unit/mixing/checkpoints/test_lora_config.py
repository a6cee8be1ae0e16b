"""Entries of adapter_config.json of other types than PEFT writes, or of methods other than LoRA.

test_real_peft.py has the same entries, and PEFT as the judge.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from prefmix.mixing.checkpoints.compatibility import CompatibilityError, check_members
from prefmix.mixing.spec import MixtureSpec, Policy
from support.engines import AdaptedBase

pytestmark = pytest.mark.usefixtures("vllm")


def check(adapted: AdaptedBase, folder: Path, **entries: Any) -> tuple[str, ...]:
    """The warnings about an adapter with other entries."""
    shutil.copytree(adapted.adapters[0], folder)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))
    policy = Policy(name="edited", model=str(folder))
    return check_members(MixtureSpec(policies=(policy,), base=str(adapted.base))).warnings


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"r": 4.0}, "r is 4.0, expected a whole number above 0"),
        ({"r": True}, "r is True, expected a whole number above 0"),
        ({"r": 0}, "r is 0, expected a whole number above 0"),
        ({"lora_alpha": "8"}, "lora_alpha is '8', expected a number"),
        ({"lora_alpha": None}, "lora_alpha is None, expected a number"),
        ({"lora_alpha": float("nan")}, "lora_alpha is nan, expected a number"),
        ({"lora_alpha": 10**400}, "lora_alpha is 1000"),
        ({"alpha_pattern": {"q_proj": 10**400}}, "alpha_pattern is {'q_proj': 1000"),
        ({"use_rslora": "false"}, "use_rslora is 'false', expected true or false"),
        ({"use_dora": "false"}, "use_dora is 'false', expected true or false"),
        ({"rank_pattern": {"q_proj": 4.0}}, "rank_pattern is {'q_proj': 4.0}, expected an object"),
        ({"alpha_pattern": {"q_proj": "8"}}, "alpha_pattern is {'q_proj': '8'}, expected an"),
        ({"init_lora_weights": [1]}, "init_lora_weights is [1], expected true, false or a name"),
        ({"target_modules": None}, "target_modules is null"),
        ({"target_modules": "(q_proj"}, "unterminated subpattern"),
        ({"target_modules": ["q_proj"]}, "does not target"),
        ({"exclude_modules": ["down_proj"]}, "does not target"),
        ({"layers_to_transform": [0]}, "does not target"),
        ({"arrow_config": {}}, "arrow_config is {}"),
        ({"monteclora_config": {"use_entropy": True}}, "monteclora_config is {'use_entropy'"),
        ({"use_bdlora": {}}, "use_bdlora is {}"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices is [3]"),
        ({"use_waves": True}, "use_waves is True"),
        ({"waves_config": {"length": 3}}, "waves_config is {'length': 3}"),
    ],
    ids=lambda value: f"{value!s:.60}",
)
def test_what_would_mean_something_else_to_peft_is_refused(
    adapted: AdaptedBase, tmp_path: Path, entries: dict[str, Any], words: str
) -> None:
    with pytest.raises(CompatibilityError) as refused:
        check(adapted, tmp_path / "edited", **entries)
    message = str(refused.value)
    assert words in message
    assert message.startswith("policy 'edited': the adapter in ")
    assert "\n" not in message


@pytest.mark.parametrize(
    "entries",
    [
        {"lora_alpha": 6.5},
        {"fan_in_fan_out": "yes"},
        {"rank_pattern": None},
        {"use_rslora": None},
        {"target_modules": "all-linear"},
        {"target_modules": r".*_proj"},
        {"arrow_config": None},
        {"use_waves": False},
        {"qalora_group_size": 3},
    ],
    ids=str,
)
def test_what_means_the_same_is_taken(
    adapted: AdaptedBase, tmp_path: Path, entries: dict[str, Any]
) -> None:
    assert check(adapted, tmp_path / "edited", **entries) == ()


def test_an_entry_that_nobody_knows_is_told(adapted: AdaptedBase, tmp_path: Path) -> None:
    [warning] = check(adapted, tmp_path / "edited", wave_length=3)
    assert "policy 'edited'" in warning
    assert "(wave_length)" in warning

"""Settings are built from mappings; unknown, missing and wrong ones are named."""

from pathlib import Path
from typing import Any

import pytest

from prefmix.policies.train import SettingsError
from prefmix.policies.train.settings import METHODS, DirectSettings, build, resolve_paths

REQUIRED = {"base": "./base", "data": "pairs.jsonl", "output": "out"}


@pytest.mark.parametrize("method", METHODS)
def test_defaults_are_complete(method: str) -> None:
    settings = build(METHODS[method], REQUIRED | {"sft_weight": 0} if "max" in method else REQUIRED)
    assert settings.data == Path("pairs.jsonl")
    assert settings.to_dict()["data"] == "pairs.jsonl"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"learning_rte": 1}, "unknown setting 'learning_rte' .did you mean 'learning_rate'"),
        ({"scale": 1}, "unknown setting 'scale'"),
        ({"learning_rate": "fast"}, "learning_rate is 'fast'; expected a number"),
        ({"steps": 1.5}, "steps is 1.5; expected a whole number"),
        ({"seed": True}, "seed is True; expected a whole number"),
        ({"seed": None}, "seed is None; expected a whole number"),
        ({"loss": "hinge"}, "loss is 'hinge'; allowed: sigmoid, ipo"),
        ({"beta": 0}, "beta is 0.0; it must be positive"),
        ({"merge": True}, "add lora_rank"),
        ({"eval_share": 1.0}, "eval_share is 1.0; it must be between 0 and 1"),
        ({"eval_share": 0.5, "eval_split": "test"}, "leave it or eval_data out"),
        ({"report_to": "wandb, mlflow"}, "names 'mlflow'; allowed: tensorboard, wandb, trackio"),
    ],
)
def test_bad_value_is_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        build(DirectSettings, REQUIRED | values)


def test_missing_settings_are_named() -> None:
    with pytest.raises(SettingsError, match="dpo needs data, output"):
        build(DirectSettings, {"base": "b"})
    with pytest.raises(SettingsError, match="needs sft_data"):
        build(METHODS["maximum-preference"], REQUIRED)


def test_yaml_number_without_a_point_is_a_number() -> None:
    settings = build(DirectSettings, REQUIRED | {"learning_rate": "1e-6", "steps": None})
    assert (settings.learning_rate, settings.steps) == (1e-6, None)


def test_adapters_learn_faster_unless_told_otherwise() -> None:
    def rates(**values: Any) -> list[float]:
        settings = build(METHODS["mixed-preference"], REQUIRED | values).to_dict()
        return [settings[f"{stage}learning_rate"] for stage in ("", "reward_", "online_")]

    assert rates() == rates(lora_rank=0) == [5e-6, 1e-5, 1e-6]
    assert rates(lora_rank=8) == [5e-5, 1e-4, 1e-5]
    assert rates(lora_rank=8, learning_rate=5e-6) == [5e-6, 1e-4, 1e-5]


def test_paths_of_a_file_are_relative_to_it() -> None:
    resolved = resolve_paths(DirectSettings, REQUIRED | {"base": "org/model"}, Path("/runs"))
    assert resolved == {"base": "org/model", "data": "/runs/pairs.jsonl", "output": "/runs/out"}
    assert resolve_paths(DirectSettings, REQUIRED, Path("/runs"))["base"] == "/runs/base"


def test_data_of_the_hub_is_no_path(tmp_path: Path) -> None:
    """Unless it is one: a folder of that name, or a name that begins with a dot."""

    def resolved(**values: str) -> dict[str, Any]:
        return resolve_paths(DirectSettings, values, tmp_path)

    assert resolved(data="org/pairs", eval_data="org/held") == {
        "data": "org/pairs",
        "eval_data": "org/held",
    }
    (tmp_path / "org" / "pairs").mkdir(parents=True)
    assert resolved(data="org/pairs") == {"data": str(tmp_path / "org" / "pairs")}
    assert resolved(data="./org/gone") == {"data": str(tmp_path / "org" / "gone")}
    assert resolved(output="org/out") == {"output": str(tmp_path / "org" / "out")}
    assert build(DirectSettings, REQUIRED | {"data": "org/pairs"}).data == Path("org/pairs")
    assert build(DirectSettings, REQUIRED | {"data": "./org/pairs"}).data.is_absolute()


def test_epochs_and_batches_give_the_steps() -> None:
    settings = build(DirectSettings, REQUIRED | {"epochs": 3, "batch_pairs": 4, "accumulate": 2})
    assert settings.num_steps(100) == 38
    assert build(DirectSettings, REQUIRED | {"steps": 7}).num_steps(100) == 7

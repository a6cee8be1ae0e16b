"""Contestants are chosen and set up on the same terms, of models that fit each other."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest

from prefmix.bench.command import add_arguments
from prefmix.bench.contestants import settings as names
from prefmix.bench.contestants.dummy_format import DUMMY
from prefmix.bench.contestants.models import SIZES, Models, prepare_models, shape_of_flags
from prefmix.bench.contestants.settings import contestant_settings
from prefmix.bench.engine_flags import common_settings, model_name
from prefmix.mixing.spec import MixtureSpec
from prefmix.server.config.errors import CommandError

OPTIONS = {"dtype": "bfloat16", "enable_prefix_caching": False}
ALL = Models(policies=("a", "b", "c"), base="z", adapters=("x", "y", "w"), average="m")


def contestants(models: Models, num_policies: int = 3) -> dict[str, dict[str, Any]]:
    common = {"options": OPTIONS, "engine_flags": ["--seed=1"], "num_threads": 1}
    return contestant_settings(models, num_policies=num_policies, common=common)


def flags(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(["engine", *words])


def test_everyone_takes_part_on_the_same_terms() -> None:
    everyone = contestants(ALL)
    assert next(iter(everyone)) == names.ONE_POLICY
    assert len(everyone) == 10
    for settings in everyone.values():
        assert settings["engine_flags"] == ["--seed=1"]
        assert settings["num_threads"] == 1
        assert settings["options"]["dtype"] == "bfloat16"
    assert everyone[names.ONE_POLICY]["options"] == everyone[names.FULL]["options"] == OPTIONS
    assert everyone[names.SEPARATE]["options"]["enable_prefix_caching"]


def test_both_layouts_are_mixtures_of_all_policies() -> None:
    everyone = contestants(ALL, num_policies=2)
    full = MixtureSpec.from_dict(everyone[names.FULL]["mixture"])
    trunk = MixtureSpec.from_dict(everyone[names.TRUNK]["mixture"])
    assert [policy.model for policy in full.policies] == ["a", "b"]
    assert [policy.model for policy in trunk.policies] == ["x", "y"]
    for name, spec in ((names.FULL, full), (names.TRUNK, trunk)):
        assert everyone[name]["model"] == spec.checkpoints[0].model


def test_a_trunk_mixes_either_way_or_both_in_turn() -> None:
    everyone = contestants(ALL)
    trunks = [everyone[name] for name in (names.TRUNK, names.PARAMETERS, names.HALF)]
    assert len({str(each["mixture"]) for each in trunks}) == 1
    assert trunks[1]["mixings"] == ["parameters"]
    assert sorted(trunks[2]["mixings"]) == ["logits", "parameters"]


@pytest.mark.parametrize(
    ("models", "present"),
    [
        (
            Models(policies=("a", "b", "c"), base=None, adapters=(), average=None),
            {names.ONE_POLICY, names.FULL, names.SEPARATE, names.TRANSFORMERS, names.ONE_BY_ONE},
        ),
        (
            Models(policies=(), base="z", adapters=("x", "y", "w"), average=None),
            {names.ONE_POLICY, names.TRUNK, names.PARAMETERS, names.HALF, names.MULTI_LORA},
        ),
    ],
)
def test_who_cannot_be_built_is_left_out(models: Models, present: set[str]) -> None:
    assert set(contestants(models)) == present


def test_random_models_are_complete(tmp_path: Path) -> None:
    args = flags("--model-size", "tiny", "--dtype", "float32")
    models = prepare_models(args, tmp_path, num_policies=2)
    assert set(contestants(models, num_policies=2)) == set(contestants(ALL))
    for model in (*models.policies, models.base, models.average):
        assert (Path(str(model)) / "model.safetensors").exists()
    for adapter in models.adapters:
        assert (Path(adapter) / "adapter_config.json").exists()


def test_large_models_need_no_disk(tmp_path: Path) -> None:
    args = flags("--model-size", "8b", "--layers", "1", "--hidden", "64", "--vocab", "400")
    models = prepare_models(args, tmp_path, num_policies=2)
    assert set(contestants(models, num_policies=2)) == set(contestants(ALL))
    assert {each.parent.name for each in tmp_path.rglob("*.safetensors")} == {"a0", "a1"}
    assert common_settings(args, [])["options"]["load_format"] == DUMMY
    assert model_name(args).endswith("made while loading")


def test_own_models_are_read() -> None:
    args = flags("--model-size", "8b", "--policy", "a=x/y")
    assert common_settings(args, [])["options"]["load_format"] == "safetensors"
    with pytest.raises(CommandError, match="--dummy-weights is for random models"):
        common_settings(flags("--dummy-weights", "--policy", "a=x/y"), [])


def test_sizes_are_what_their_names_say() -> None:
    millions = {
        size: shape_of_flags(flags("--model-size", size)).num_parameters / 1e6 for size in SIZES
    }
    assert millions["134m"] == pytest.approx(134, rel=0.01)
    assert millions["242m"] == pytest.approx(242, rel=0.01)
    assert millions["1b"] == pytest.approx(1500, rel=0.01)
    assert millions["8b"] == pytest.approx(8030, rel=0.01)


def test_flags_override_the_size() -> None:
    shape = shape_of_flags(flags("--hidden", "128", "--layers", "3", "--vocab", "600"))
    assert (shape.hidden, shape.heads, shape.layers, shape.vocab) == (128, 2, 3, 600)


def test_pickled_checkpoints_need_the_flag(tmp_path: Path) -> None:
    model = tmp_path / "pickled"
    model.mkdir()
    (model / "pytorch_model.bin").write_bytes(b"")
    for words in (["--policy", f"a={model}"], ["--base", str(model), "--adapter", "a=x/y"]):
        with pytest.raises(CommandError, match=r"pytorch_model\.bin.*--allow-unsafe-weights"):
            prepare_models(flags(*words), tmp_path, num_policies=1)
        args = flags(*words, "--allow-unsafe-weights")
        assert prepare_models(args, tmp_path, num_policies=1).one == str(model)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--hidden", "100"], "--hidden is 100; expected a multiple of 64"),
        (["--base", "x/y"], "--base and --adapter go together"),
        (["--policy", "a=x/y", "--policies", "2"], "asks for 2, but 1 are given"),
        (["--policy", "a=./missing"], "does not exist"),
    ],
)
def test_models_that_cannot_be_are_refused(words: list[str], message: str, tmp_path: Path) -> None:
    args = flags(*words)
    with pytest.raises(CommandError, match=message):
        prepare_models(args, tmp_path, num_policies=max(args.policies))

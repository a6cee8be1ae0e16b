"""The committed sharp policies: complete, unchanged, small, of one base, and far from it."""

import hashlib
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from prefmix.policies.demo import CHECKPOINTS, REWARDS, SHARP
from prefmix.policies.demo.reviews.prompts import TRAINING_PROMPTS

FILES = {"adapter_config.json", "adapter_model.safetensors", "README.md"}
TOTAL_LIMIT_BYTES = 500_000


@pytest.fixture(scope="module")
def manifest():
    return json.loads((SHARP / "manifest.json").read_text(encoding="utf-8"))


def test_every_folder_is_complete_and_small() -> None:
    assert {path.name for path in SHARP.iterdir()} == {*REWARDS, "manifest.json"}
    for name in REWARDS:
        assert {path.name for path in (SHARP / name).iterdir()} == FILES
    sizes = [path.stat().st_size for path in SHARP.rglob("*") if path.is_file()]
    assert sum(sizes) <= TOTAL_LIMIT_BYTES


def test_every_file_has_the_hash_of_the_manifest_and_names_no_machine(manifest) -> None:
    found = {
        path.relative_to(SHARP).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in SHARP.glob("*/*")
    }
    assert found == manifest["sha256"]
    for path in [*SHARP.rglob("*.json"), *SHARP.rglob("*.md")]:
        text = path.read_text(encoding="utf-8")
        assert "/tmp/" not in text
        assert "/home/" not in text
    for name in REWARDS:
        config = json.loads((SHARP / name / "adapter_config.json").read_text(encoding="utf-8"))
        assert config["base_model_name_or_path"] is None


def test_they_are_farther_from_the_reference_than_the_demo_policies(manifest) -> None:
    demo = json.loads((CHECKPOINTS / "manifest.json").read_text(encoding="utf-8"))["measured"]
    for name in REWARDS:
        assert manifest["measured"][name]["kl"]["reference"] > 2 * demo[name]["kl"]["reference"]
        rewards = {other: row["rewards"][name] for other, row in manifest["measured"].items()}
        assert rewards[name] > rewards["reference"] + 0.2


def test_cards_are_those_of_the_card_maker(manifest) -> None:
    pytest.importorskip("torch")
    from prefmix.policies.demo.training.cards import adapter_card
    from prefmix.policies.demo.training.evaluation import Measurement
    from prefmix.policies.demo.training.recipes import sharp_recipe

    measured = {name: Measurement(**row) for name, row in manifest["measured"].items()}
    asked = len(TRAINING_PROMPTS) + len(TRAINING_PROMPTS[::4])
    num_responses = manifest["settings"]["preference"]["num_responses"] * asked
    assert manifest["settings"]["policies"]["settings"] == dict(sharp_recipe().settings)
    for name in REWARDS:
        card = adapter_card(name, measured, sharp_recipe(), num_responses=num_responses, seed=0)
        assert card == (SHARP / name / "README.md").read_text(encoding="utf-8")


def test_a_configuration_serves_them_both_ways() -> None:
    from prefmix.server.config.config_file import load_config

    config = load_config(CHECKPOINTS.with_name("sharp.yaml"), {})
    spec = config.spec()
    assert spec.policy_names == tuple(REWARDS)
    assert Path(spec.base or "").samefile(CHECKPOINTS / "reference")
    assert config.profile_set(spec).mixings == {"quick": "parameters"}


@pytest.mark.train
@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="make setup-train")
@pytest.mark.filterwarnings("ignore")  # of TRL and PEFT
def test_build_writes_the_committed_layout_and_repeats_itself(
    tmp_path: Path, shortened: Callable[[str], None]
) -> None:
    from prefmix.policies.demo.build_sharp import build
    from prefmix.policies.demo.training.recipes import sharp_recipe

    shortened("prefmix.policies.demo.build_sharp")
    hashes = []
    for name in ("first", "second"):
        recipe = sharp_recipe(steps=2)
        build(tmp_path / name, seed=3, recipe=recipe, num_responses=4, evaluation_responses=1)
        manifest = json.loads((tmp_path / name / "manifest.json").read_text(encoding="utf-8"))
        hashes.append(manifest["sha256"])
    committed = json.loads((SHARP / "manifest.json").read_text(encoding="utf-8"))
    assert hashes[0] == hashes[1]
    assert set(hashes[0]) == set(committed["sha256"])

"""The committed instructed policy: complete, unchanged, small, and obedient to its instructions."""

import hashlib
import importlib.util
import json
import random
from pathlib import Path

import pytest

from prefmix.policies.demo import CHECKPOINTS, EVALUATION_PROMPTS
from prefmix.policies.demo.reviews.grammar import sample_reviews
from prefmix.policies.demo.reviews.prompts import TRAINING_PROMPTS
from prefmix.policies.demo.reviews.styles import BRIEF_SENTENCES, LONG_SENTENCES, STYLES, notes

INSTRUCTED = CHECKPOINTS.with_name("instructed")
TOTAL_LIMIT_BYTES = 700_000


@pytest.fixture(scope="module")
def manifest():
    return json.loads((INSTRUCTED / "manifest.json").read_text(encoding="utf-8"))


def test_folders_are_complete_and_small() -> None:
    assert {path.name for path in INSTRUCTED.iterdir()} == {"base", "polite", "manifest.json"}
    reference, adapter = CHECKPOINTS / "reference", CHECKPOINTS.with_name("sharp") / "polite"
    for name, like in (("base", reference), ("polite", adapter)):
        assert {path.name for path in (INSTRUCTED / name).iterdir()} == {
            path.name for path in like.iterdir()
        }
    sizes = [path.stat().st_size for path in INSTRUCTED.rglob("*") if path.is_file()]
    assert sum(sizes) <= TOTAL_LIMIT_BYTES


def test_every_file_has_the_hash_of_the_manifest_and_names_no_machine(manifest) -> None:
    found = {
        path.relative_to(INSTRUCTED).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in INSTRUCTED.glob("*/*")
    }
    assert found == manifest["sha256"]
    for path in [*INSTRUCTED.rglob("*.json"), *INSTRUCTED.rglob("*.md")]:
        text = path.read_text(encoding="utf-8")
        assert "/tmp/" not in text
        assert "/home/" not in text


def test_it_shares_the_demo_s_tokenizer_and_shapes() -> None:
    for file in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        own, reference = (
            (folder / file).read_bytes()
            for folder in (INSTRUCTED / "base", CHECKPOINTS / "reference")
        )
        assert own == reference


def test_each_instruction_moves_its_own_reward(manifest) -> None:
    rows = manifest["measured"]
    neutral = rows["no instruction"]["rewards"]

    def gain(style: str, objective: str) -> float:
        return rows[STYLES[style].wordings[0]]["rewards"][objective] - neutral[objective]

    assert gain("positive", "positive") > 0.3
    assert gain("negative", "positive") < -0.3
    assert gain("polite", "polite") > 0.3
    assert gain("casual", "polite") < -0.3
    assert gain("brief", "concise") > 0.15
    assert gain("long", "concise") < -0.05
    assert rows["no instruction, adapter polite"]["rewards"]["polite"] > neutral["polite"] + 0.3


def test_system_messages_of_the_training_text_are_true_of_their_reviews(monkeypatch) -> None:
    pytest.importorskip("torch")
    from tokenizers import Tokenizer

    from prefmix.policies.demo.training import instructed

    monkeypatch.setattr(instructed, "encode", lambda turns, tokenizer: turns)
    reviews = sample_reviews(2000, seed=7)
    tokenizer = Tokenizer.from_file(str(CHECKPOINTS / "reference" / "tokenizer.json"))
    by_text = {review.text: review for review in reviews}
    examples = instructed.make_instructed_examples(reviews, tokenizer, seed=8)
    assert len(examples) == len(reviews)
    seen = set()
    for turns in examples:
        system = turns[0][0].partition("<|system|>")[2].partition("<|user|>")[0]
        for name, style in STYLES.items():
            if any(wording in system for wording in style.wordings):
                seen.add(name)
                assert all(style.is_obeyed_by(by_text[answer]) for _, answer in turns)
    assert seen == set(STYLES)


def test_reviews_tell_what_they_found_in_their_text() -> None:
    rng = random.Random(1)
    for review in rng.sample(sample_reviews(3000, seed=2), 500):
        for aspect, word in review.findings:
            assert aspect in review.text
            assert word in review.text
        assert review.num_sentences == sum(review.text.count(mark) for mark in ".!?") - (
            review.text.count("? Totally") + review.text.count("? Just")
        )
    assert notes((("bed", "lumpy"), ("pool", "clean"))) == (
        "Notes: the bed was lumpy, the pool was clean."
    )
    assert BRIEF_SENTENCES < LONG_SENTENCES


def test_cards_are_those_of_the_card_maker(manifest) -> None:
    pytest.importorskip("torch")
    from prefmix.policies.demo.training.evaluation import Measurement
    from prefmix.policies.demo.training.instructed_cards import (
        instructed_adapter_card,
        instructed_card,
    )
    from prefmix.policies.demo.training.recipes import sharp_recipe
    from prefmix.policies.demo.training.reference import ReferenceConfig

    measured = {name: Measurement(**row) for name, row in manifest["measured"].items()}
    settings = manifest["settings"]
    asked = len(TRAINING_PROMPTS) + len(TRAINING_PROMPTS[::4])
    recipe = sharp_recipe(**settings["adapter"]["settings"])
    cards = {
        "base": instructed_card(measured, ReferenceConfig(**settings["instructed"]), seed=0),
        "polite": instructed_adapter_card(
            "polite",
            measured,
            recipe,
            num_responses=settings["preference"]["num_responses"] * asked,
            seed=0,
        ),
    }
    for name, card in cards.items():
        assert card == (INSTRUCTED / name / "README.md").read_text(encoding="utf-8")


@pytest.mark.train
@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="make setup-train")
@pytest.mark.filterwarnings("ignore")  # of TRL and PEFT
def test_build_writes_the_committed_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from prefmix.policies.demo import build_instructed
    from prefmix.policies.demo.training.recipes import sharp_recipe
    from prefmix.policies.demo.training.reference import ReferenceConfig

    monkeypatch.setenv("TQDM_DISABLE", "1")  # training sets both
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "ERROR")
    monkeypatch.setattr("prefmix.policies.demo.training.sampling.MAX_RESPONSE_TOKENS", 16)
    monkeypatch.setattr(build_instructed, "TRAINING_PROMPTS", TRAINING_PROMPTS[:8])
    monkeypatch.setattr(build_instructed, "EVALUATION_PROMPTS", EVALUATION_PROMPTS[:8])
    build_instructed.build(
        tmp_path,
        seed=3,
        config=ReferenceConfig(num_steps=10, warmup_steps=2),
        recipe=sharp_recipe(steps=2),
        num_responses=4,
        evaluation_responses=1,
    )
    manifest = json.loads((tmp_path / "manifest.json").read_text(encoding="utf-8"))
    committed = json.loads((INSTRUCTED / "manifest.json").read_text(encoding="utf-8"))
    assert set(manifest["sha256"]) == set(committed["sha256"])
    assert set(manifest["measured"]) == set(committed["measured"])

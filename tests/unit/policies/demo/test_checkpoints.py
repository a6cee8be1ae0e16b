"""The committed checkpoints: complete, unchanged, small, alike, and able to write a review."""

import hashlib
import json
import stat
import struct
from pathlib import Path

import pytest

from prefmix.policies.demo import CHECKPOINTS, EVALUATION_PROMPTS, REWARDS
from prefmix.policies.demo.reviews.prompts import TRAINING_PROMPTS

NAMES = ("reference", *REWARDS)
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
FILES = {
    *TOKENIZER_FILES,
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "README.md",
}
TOTAL_LIMIT_BYTES = 12_000_000


@pytest.fixture(scope="module")
def manifest():
    return json.loads((CHECKPOINTS / "manifest.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def tokenizer():
    transformers = pytest.importorskip("transformers")
    return transformers.AutoTokenizer.from_pretrained(CHECKPOINTS / "polite")


def _json(name: str, file: str):
    return json.loads((CHECKPOINTS / name / file).read_text(encoding="utf-8"))


def test_every_folder_is_complete_and_holds_nothing_else() -> None:
    assert {path.name for path in CHECKPOINTS.iterdir()} == {*NAMES, "manifest.json"}
    for name in NAMES:
        assert {path.name for path in (CHECKPOINTS / name).iterdir()} == FILES


def test_every_file_has_the_hash_of_the_manifest(manifest) -> None:
    found = {
        path.relative_to(CHECKPOINTS).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in CHECKPOINTS.glob("*/*")
    }
    assert found == manifest["sha256"]


def test_all_together_is_small() -> None:
    sizes = [path.stat().st_size for path in CHECKPOINTS.rglob("*") if path.is_file()]
    assert sum(sizes) <= TOTAL_LIMIT_BYTES


def test_tokenizers_are_identical() -> None:
    for file in TOKENIZER_FILES:
        assert len({(CHECKPOINTS / name / file).read_bytes() for name in NAMES}) == 1


def test_files_are_readable_by_all_and_name_no_machine_path() -> None:
    for path in CHECKPOINTS.rglob("*.*"):
        assert stat.S_IMODE(path.stat().st_mode) & 0o444 == 0o444, path
        if path.suffix in (".json", ".md"):
            text = path.read_text(encoding="utf-8")
            assert "/home/" not in text
            assert "/tmp/" not in text
            assert "_name_or_path" not in text


def test_parameters_are_bfloat16_and_fill_the_vocabulary() -> None:
    for name in NAMES:
        header = _safetensors_header(CHECKPOINTS / name / "model.safetensors")
        tensors = {key: value for key, value in header.items() if key != "__metadata__"}
        assert {tensor["dtype"] for tensor in tensors.values()} == {"BF16"}
        config = _json(name, "config.json")
        shape = [config["vocab_size"], config["hidden_size"]]
        assert tensors["model.embed_tokens.weight"]["shape"] == shape


def _safetensors_header(path: Path):
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length])


def test_special_token_ids_agree_everywhere(tokenizer) -> None:
    for name in NAMES:
        for file in ("config.json", "generation_config.json"):
            config = _json(name, file)
            assert config["bos_token_id"] == tokenizer.bos_token_id == 1
            assert config["eos_token_id"] == tokenizer.eos_token_id == 2
            assert config["pad_token_id"] == tokenizer.pad_token_id == 0
        assert _json(name, "config.json")["max_position_embeddings"] >= 512


def test_raw_prompts_get_no_beginning_token_and_chats_exactly_one(tokenizer) -> None:
    for prompt in (*EVALUATION_PROMPTS[:4], "\N{SNOWMAN} unknown bytes \xe9\n"):
        raw = tokenizer(prompt)["input_ids"]
        assert tokenizer.bos_token_id not in raw
        assert tokenizer.decode(raw) == prompt
        for before in ([], [{"role": "system", "content": "You write reviews."}]):
            messages = [*before, {"role": "user", "content": prompt}]
            text = tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True
            )
            for special in (True, False):
                ids = tokenizer(text, add_special_tokens=special)["input_ids"]
                assert ids.count(tokenizer.bos_token_id) == 1
                assert ids[0] == tokenizer.bos_token_id


def test_chat_template_renders_what_training_saw(tokenizer) -> None:
    training = pytest.importorskip("prefmix.policies.demo.training.tokenizer")
    messages = [{"role": "user", "content": " Review the Park Hotel. "}]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert rendered == training.chat_text("Review the Park Hotel.")
    messages.append({"role": "assistant", "content": "Loved it!"})
    rendered = tokenizer.apply_chat_template(messages, tokenize=False)
    assert rendered == training.chat_text("Review the Park Hotel.") + "Loved it!</s>"
    with pytest.raises(Exception, match="role must be system, user or assistant, got tool"):
        tokenizer.apply_chat_template([{"role": "tool", "content": "x"}], tokenize=False)


def test_each_policy_is_the_best_at_its_own_objective_and_the_mixture_between(manifest) -> None:
    measured = manifest["measured"]
    for objective in REWARDS:
        scores = {name: row["rewards"][objective] for name, row in measured.items()}
        own = scores.pop(objective)
        assert own > max(scores.values()) + 0.05
        others = [scores[other] for other in REWARDS if other != objective]
        assert min(others) < scores["uniform mixture"] < own


def test_model_cards_state_the_licence_and_the_manifest_s_rewards(manifest) -> None:
    for name in NAMES:
        card = (CHECKPOINTS / name / "README.md").read_text(encoding="utf-8")
        assert "license: apache-2.0" in card
        for objective in REWARDS:
            number = manifest["measured"][name]["rewards"][objective]
            assert f"{number:+.3f}" in card


def test_model_cards_are_those_of_the_card_maker(manifest) -> None:
    """The cards must name commands and files that exist now."""
    pytest.importorskip("torch")
    cards = pytest.importorskip("prefmix.policies.demo.training.cards")
    from prefmix.policies.demo.training.evaluation import Measurement
    from prefmix.policies.demo.training.recipes import RECIPES

    measured = {name: Measurement(**row) for name, row in manifest["measured"].items()}
    # Every training prompt is asked as a chat, every fourth one without markup, too.
    asked = len(TRAINING_PROMPTS) + len(TRAINING_PROMPTS[::4])
    num_responses = manifest["settings"]["preference"]["num_responses"] * asked
    for name, recipe in RECIPES.items():
        card = cards.policy_card(name, measured, recipe, num_responses=num_responses, seed=0)
        assert card == (CHECKPOINTS / name / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["reference", "concise"])
def test_policy_writes_a_review_with_transformers(tokenizer, name: str) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(CHECKPOINTS / name)
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": EVALUATION_PROMPTS[0]}],
        tokenize=False,
        add_generation_prompt=True,
    )
    inputs = tokenizer(text, return_tensors="pt", add_special_tokens=False)
    torch.manual_seed(0)
    with torch.no_grad():
        output = model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            max_new_tokens=160,
            do_sample=True,
        )
    assert output[0, -1].item() == tokenizer.eos_token_id
    answer = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert len(answer.split()) >= 3
    assert answer[-1] in ".!"

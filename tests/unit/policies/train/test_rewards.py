"""Every fault of a reward function is reported with the row's name."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForSequenceClassification, LlamaConfig

from prefmix.policies.train import TrainError
from prefmix.policies.train.rewards import FunctionReward, load_function, load_reward
from prefmix.policies.train.safe_files import check_safe, loading
from support.checkpoints.tiny_policies import build_tokenizer, save_policy

PROMPTS = ["p", "p", "p"]
ANSWERS = ["one", "two", "three"]
NAMES = ["pairs line 1", "pairs line 2", "pairs line 3"]


def _length(prompts: list[str], completions: list[str], **_: Any) -> list[int]:
    return [len(completion) for completion in completions]


def _raises(prompts: list[str], completions: list[str]) -> list[float]:
    return [1 / (len(completions[0]) - 5)]


def test_function_scores_each_row() -> None:
    assert FunctionReward(_length, "f").score(PROMPTS, ANSWERS, NAMES) == [3.0, 3.0, 5.0]


def test_row_that_raises_is_named() -> None:
    with pytest.raises(TrainError, match=r"pairs line 3: .* f raised ZeroDivisionError"):
        FunctionReward(_raises, "f").score(PROMPTS, ANSWERS, NAMES)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_row_without_a_finite_reward_is_named(value: float) -> None:
    def function(prompts: list[str], completions: list[str]) -> list[float]:
        return [value if completions == ["two"] else 0.0]

    with pytest.raises(TrainError, match=f"pairs line 2: the reward of f is {value}"):
        FunctionReward(function, "f").score(PROMPTS, ANSWERS, NAMES)


@pytest.mark.parametrize("returned", [None, 3.0, [], [1.0, 2.0], ["good"]])
def test_what_is_not_one_number_is_named(returned: Any) -> None:
    with pytest.raises(TrainError, match=r"pairs line 1: .* expected a list of one number"):
        FunctionReward(lambda **_: returned, "f").score(PROMPTS, ANSWERS, NAMES)


@pytest.mark.parametrize("spec", ["math:absent", "no_such_module:f", ":f"])
def test_function_that_is_not_there_is_refused(spec: str) -> None:
    with pytest.raises(TrainError, match="cannot import the reward function"):
        load_function(spec)
    with pytest.raises(TrainError, match="is a float, no function"):
        load_function("math:pi")


def test_folder_that_is_no_reward_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainError, match="cannot load the reward model"):
        load_reward(str(tmp_path), max_length=8)


def test_reward_model_scores_each_answer_as_it_would_alone(tmp_path: Path) -> None:
    """Texts and chats in one batch, of different lengths; each against the model's own forward."""
    base = save_policy(tmp_path / "base", seed=0, layers=1)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1).eval()
    model.config.pad_token_id = model.config.eos_token_id
    model.save_pretrained(tmp_path / "judge")
    tokenizer = build_tokenizer()
    bos = tokenizer.convert_ids_to_tokens(0)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{bos} $0", special_tokens=[(bos, 0)]
    )
    tokenizer.save_pretrained(tmp_path / "judge")
    chat = [{"role": "user", "content": "the fox"}]
    said = [{"role": "assistant", "content": "jumps over"}]
    expected = []
    for text, is_chat in (
        (tokenizer.apply_chat_template(chat + said, tokenize=False), True),
        (f"the fox jumps over the lazy dog{tokenizer.eos_token}", False),
        (f"the dog{tokenizer.eos_token}", False),
    ):
        ids = tokenizer(text, add_special_tokens=not is_chat, return_tensors="pt")["input_ids"]
        expected.append(model(ids).logits.item())
    reward = load_reward(str(tmp_path / "judge"), max_length=99)
    answers = [said, " jumps over the lazy dog", " dog"]
    scores = reward.score([chat, "the fox", "the"], answers, NAMES)
    assert scores == pytest.approx(expected, abs=1e-5)
    assert len({round(score, 3) for score in scores}) == 3


class _Payload:
    """An object that writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self._path,))


def test_a_pickled_reward_model_is_refused_and_not_opened(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    model = tmp_path / "model"
    LlamaConfig(num_labels=1, num_hidden_layers=1, vocab_size=16).save_pretrained(model)
    torch.save(_Payload(ran), model / "pytorch_model.bin")
    with pytest.raises(TrainError, match=r"pytorch_model\.bin.*--allow-unsafe-weights"):
        load_reward(str(model), max_length=8)
    # What loads it would refuse it too, had the file come in between.
    with pytest.raises(OSError, match="safetensors"):
        AutoModelForSequenceClassification.from_pretrained(model, **loading(False))
    assert not ran.exists()
    torch.load(model / "pytorch_model.bin", weights_only=False)
    assert ran.exists(), "the payload does nothing, so the test shows nothing"


def test_a_pickled_base_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    (base / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(TrainError, match=r"base model .* pytorch_model\.bin"):
        check_safe(str(base), "base model", allow_unsafe_weights=False)
    check_safe(str(base), "base model", allow_unsafe_weights=True)

"""Answers are told from prompts in tokens, and data made for another model is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from prefmix.policies.data.pairs import PAIR_FIELDS, Rows, read_rows
from prefmix.policies.data.tokens import check_tokenizer, encode, encode_text
from prefmix.policies.train import TrainError
from support.checkpoints.tiny_policies import VOCAB_SIZE, build_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return build_tokenizer()


def _rows(folder: Path, chosen: Any, *, is_chat: bool = False) -> Rows:
    row = {"prompt": "the fox", "chosen": chosen, "rejected": " the dog"}
    if is_chat:
        row = {name: [{"role": "user", "content": text}] for name, text in row.items()}
    path = folder / "pairs.jsonl"
    path.write_text(json.dumps(row))
    return read_rows(path, PAIR_FIELDS)


def test_answer_is_followed_by_the_end_token(tokenizer: Any) -> None:
    chosen, rejected = encode(tokenizer, "row", "the fox", [" jumps", " runs"], max_length=99)
    assert chosen.num_context == rejected.num_context
    assert tokenizer.decode(chosen.ids[chosen.num_context :]) == " jumps" + tokenizer.eos_token
    assert tokenizer.decode(chosen.ids[: chosen.num_context]) == "the fox"


def test_chat_template_writes_prompt_and_answer(tokenizer: Any) -> None:
    prompt = [{"role": "user", "content": "the fox"}]
    answer = [{"role": "assistant", "content": "jumps"}]
    (example,) = encode(tokenizer, "row", prompt, [answer], max_length=99)
    whole = tokenizer.apply_chat_template(prompt + answer, tokenize=False)
    start = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
    assert tokenizer.decode(example.ids) == whole
    assert tokenizer.decode(example.ids[: example.num_context]) == start


def test_cut_keeps_the_start_and_something_to_learn(tokenizer: Any) -> None:
    (whole,) = encode(tokenizer, "row", "the fox", [" jumps over"], max_length=99)
    limit = whole.num_context + 1
    (cut,) = encode(tokenizer, "row", "the fox", [" jumps over"], max_length=limit)
    assert cut.ids == whole.ids[:limit]
    with pytest.raises(TrainError, match=r"pairs line 7: the prompt has \d+ tokens"):
        encode(tokenizer, "pairs line 7", "the fox", [" jumps"], max_length=limit - 1)


def test_text_is_learned_from_its_second_token(tokenizer: Any) -> None:
    example = encode_text(tokenizer, "the lazy dog", max_length=99)
    assert (example.num_context, example.ids[-1]) == (1, tokenizer.eos_token_id)


def test_good_data_pass(tokenizer: Any, tmp_path: Path) -> None:
    check_tokenizer(tokenizer, VOCAB_SIZE, _rows(tmp_path, " the caf\u00e9 </div>"))
    check_tokenizer(tokenizer, VOCAB_SIZE, _rows(tmp_path, "jumps", is_chat=True))


def test_markup_of_another_chat_format_is_refused(tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(TrainError, match=r"line 1: 'chosen' holds '<\|im_start\|>', which is no"):
        check_tokenizer(tokenizer, VOCAB_SIZE, _rows(tmp_path, "<|im_start|>assistant hello"))


def test_tokenizer_of_a_larger_model_is_refused(tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(TrainError, match=r"line 1: 'prompt' becomes token \d+, but .* ends at 9"):
        check_tokenizer(tokenizer, 10, _rows(tmp_path, " runs"))


def test_chats_need_a_template(tmp_path: Path) -> None:
    tokenizer = build_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(TrainError, match="has no chat template"):
        check_tokenizer(tokenizer, VOCAB_SIZE, _rows(tmp_path, "runs", is_chat=True))


def test_unknown_characters_are_refused(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {word: i for i, word in enumerate(["<unk>", "</s>", "the", "fox", "dog", "runs"])}
    model = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    model.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=model, unk_token="<unk>", eos_token="</s>")
    check_tokenizer(tokenizer, 6, _rows(tmp_path, "runs"))
    with pytest.raises(TrainError, match=r"line 1: 'chosen' holds text that .* only knows as '<u"):
        check_tokenizer(tokenizer, 6, _rows(tmp_path, "sleeps"))

"""Tokenizers that differ: what is left out of the mixture, and what is refused.

Real tokenizers and configs on disk, no parameters.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import GenerationConfig, LlamaConfig, PreTrainedTokenizerFast

from prefmix.mixing.checkpoints.compatibility import (
    CheckedMembers,
    CompatibilityError,
    check_members,
)
from prefmix.mixing.checkpoints.text_files import default_files
from prefmix.mixing.spec import MixtureSpec, Policy
from support.checkpoints.tiny_adapters import save_adapter
from support.checkpoints.tiny_policies import VOCAB_SIZE, build_tokenizer, save_policy

Build = Callable[[], Any]
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.content }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>{% endif %}"
)


def plus(*tokens: str, special: bool = True, **settings: Any) -> Any:
    """The tests' tokenizer with further tokens; keywords are attributes, such as eos_token."""
    tokenizer = build_tokenizer()
    tokenizer.add_tokens(list(tokens), special_tokens=special)
    for name, value in settings.items():
        setattr(tokenizer, name, value)
    return tokenizer


def save(folder: Path, tokenizer: Any, *, rows: int = VOCAB_SIZE, **generation: Any) -> Path:
    LlamaConfig(vocab_size=rows).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    GenerationConfig(**{"eos_token_id": 1, **generation}).save_pretrained(folder)
    return folder


def check(*folders: Path, **settings: Any) -> CheckedMembers:
    policies = tuple(Policy(name=folder.name, model=str(folder)) for folder in folders)
    return check_members(MixtureSpec(policies=policies, **settings))


def pair(tmp_path: Path, one: Any, two: Any, *, rows: int = VOCAB_SIZE + 8) -> tuple[Path, Path]:
    return save(tmp_path / "one", one, rows=rows), save(tmp_path / "two", two, rows=rows)


def refusal(*folders: Path, **settings: Any) -> str:
    with pytest.raises(CompatibilityError) as refused:
        check(*folders, **settings)
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize("is_first", [True, False], ids=["longer first", "shorter first"])
@pytest.mark.parametrize("special", [True, False])
def test_a_token_added_at_the_end_is_left_out(
    tmp_path: Path, is_first: bool, special: bool
) -> None:
    plain = save(tmp_path / "plain", build_tokenizer(), rows=VOCAB_SIZE + 8)
    tuned = save(tmp_path / "tuned", plus("<pad>", special=special), rows=VOCAB_SIZE + 8)
    checked = check(*((tuned, plain) if is_first else (plain, tuned)))
    assert checked.vocabulary.num_rows == VOCAB_SIZE + 8
    assert checked.vocabulary.differing == {VOCAB_SIZE}
    assert checked.vocabulary.num_never_drawn == 1
    assert checked.vocabulary_note == (
        f"vocabulary: {VOCAB_SIZE + 7} token ids are common to all policies; 1 that only some "
        f"have ({VOCAB_SIZE} '<pad>') are never drawn"
    )
    [warning] = checked.warnings
    assert f"different tokenizers (at index {VOCAB_SIZE}: " in warning


def test_a_resized_checkpoint_and_its_base(tmp_path: Path) -> None:
    base = save(tmp_path / "base", build_tokenizer())
    tuned = save(tmp_path / "tuned", plus("<pad>", "<think>"), rows=VOCAB_SIZE + 64)
    vocabulary = check(tuned, base).vocabulary
    assert (vocabulary.num_rows, vocabulary.differing) == (VOCAB_SIZE, frozenset())
    assert vocabulary.num_never_drawn == 64


def test_rows_of_padding_are_left_out_where_a_member_lacks_them(tmp_path: Path) -> None:
    one = save(tmp_path / "one", build_tokenizer(), rows=VOCAB_SIZE + 64)
    two = save(tmp_path / "two", build_tokenizer(), rows=VOCAB_SIZE + 16)
    checked = check(one, two)
    assert (checked.vocabulary.num_rows, checked.vocabulary.differing) == (VOCAB_SIZE + 16, set())
    assert checked.vocabulary.num_never_drawn == 48
    assert checked.warnings == ()
    assert "48 that only some have are never drawn" in (checked.vocabulary_note or "")


def test_a_token_without_a_row_is_left_out(tmp_path: Path) -> None:
    """A fine-tune that added `<pad>` to its tokenizer and never resized its embeddings."""
    one = save(tmp_path / "one", plus("<pad>"))
    assert check(one).vocabulary.num_never_drawn == 1
    assert f"has token '<pad>' at index {VOCAB_SIZE}" in refusal(one, vocabulary="same")


@pytest.mark.parametrize(
    ("one", "two", "index"),
    [
        (lambda: plus("<a>", "<b>"), lambda: plus("<b>", "<a>"), VOCAB_SIZE),
        (lambda: plus("<a>", "<b>", "<c>"), lambda: plus("<a>", "<x>", "<c>"), VOCAB_SIZE + 1),
        (lambda: plus("<a>"), lambda: plus("<b>"), VOCAB_SIZE),
    ],
    ids=["permuted", "renamed", "another"],
)
def test_added_tokens_that_differ_in_the_middle_need_a_word(
    tmp_path: Path, one: Build, two: Build, index: int
) -> None:
    folders = pair(tmp_path, one(), two())
    message = refusal(*folders)
    assert f"their vocabularies, at index {index}, differ" in message
    assert "give --vocabulary common" in message
    vocabulary = check(*folders, vocabulary="common").vocabulary
    ours, theirs = one().get_vocab(), two().get_vocab()
    same = {token for token in ours if ours[token] == theirs.get(token)}
    differing = {ours[token] for token in ours.keys() - same}
    assert vocabulary.differing == differing | {theirs[token] for token in theirs.keys() - same}


def test_a_shortest_vocabulary_in_which_all_others_begin(tmp_path: Path) -> None:
    """Two tunes that added other tokens to one base: none of these is ever drawn."""
    rows = VOCAB_SIZE + 8
    base = save(tmp_path / "base", build_tokenizer(), rows=rows)
    one = save(tmp_path / "one", plus("<a>"), rows=rows)
    two = save(tmp_path / "two", plus("<b>", "<c>"), rows=rows)
    for folders in [(base, one, two), (one, two, base), (two, base, one)]:
        checked = check(*folders)
        assert checked.vocabulary.differing == {VOCAB_SIZE, VOCAB_SIZE + 1}
        assert checked.left_out == (
            f"{VOCAB_SIZE} '<a>'",
            f"{VOCAB_SIZE} '<b>'",
            f"{VOCAB_SIZE + 1} '<c>'",
        )


def edited(change: Callable[[dict[str, Any]], None]) -> Any:
    """The tests' tokenizer with its JSON changed."""
    from tokenizers import Tokenizer

    state = json.loads(build_tokenizer().backend_tokenizer.to_str())
    change(state)
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)),
        bos_token="<s>",
        eos_token="</s>",
    )


def with_permuted_ids(state: dict[str, Any]) -> None:
    vocabulary = state["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]


def with_a_word_more(state: dict[str, Any]) -> None:
    state["model"]["vocab"]["Ġmore"] = VOCAB_SIZE


def of_sentencepiece(state: dict[str, Any]) -> None:
    pieces = {"<unk>" if index == 2 else f"▁{index}": index for index in range(VOCAB_SIZE)}
    state["model"] = {"type": "BPE", "vocab": pieces, "merges": [], "byte_fallback": True}
    state["pre_tokenizer"], state["decoder"] = None, None
    state["added_tokens"] = []


@pytest.mark.parametrize("rule", ["prefix", "common", "same"])
@pytest.mark.parametrize("change", [with_permuted_ids, with_a_word_more, of_sentencepiece])
def test_trained_tokens_never_differ(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], rule: str
) -> None:
    message = refusal(*pair(tmp_path, build_tokenizer(), edited(change)), vocabulary=rule)
    assert "their vocabularies, at index" in message
    assert "trained from one base with one tokenizer" in message


def test_same_refuses_every_difference(tmp_path: Path) -> None:
    message = refusal(*pair(tmp_path, build_tokenizer(), plus("<pad>")), vocabulary="same")
    assert "give --vocabulary prefix" in message


def test_a_token_that_is_special_in_one_only_is_common(tmp_path: Path) -> None:
    folders = pair(tmp_path, plus("<t>", special=True), plus("<t>", special=False))
    assert check(*folders).vocabulary.num_never_drawn == 0


def test_special_tokens_around_a_text_are_a_setting(tmp_path: Path) -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = build_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    [warning] = check(*pair(tmp_path, build_tokenizer(), tokenizer)).warnings
    assert "put different special tokens around a text; those of 'one' are used" in warning


def test_the_named_policys_files_are_used(tmp_path: Path) -> None:
    """A base and its chat model, which ends its turns by another token and has a template."""
    both = ("<|im_start|>", "<|im_end|>")
    base = save(tmp_path / "base", plus(*both), rows=VOCAB_SIZE + 8)
    chat_tokenizer = plus(*both, chat_template=CHATML, eos_token="<|im_end|>")
    ends = [VOCAB_SIZE + 1, 1]
    chat = save(
        tmp_path / "chat",
        chat_tokenizer,
        rows=VOCAB_SIZE + 8,
        eos_token_id=ends,
        top_p=0.5,
        do_sample=True,
    )
    for name in (None, "base", "chat"):
        used = name or "base"
        warnings = check(base, chat, defaults_from=name).warnings
        assert len(warnings) == 4
        assert all(f"that of '{used}'" in each or f"those of '{used}'" in each for each in warnings)
    spec = MixtureSpec(
        policies=(Policy(name="base", model=str(base)), Policy(name="chat", model=str(chat)))
    )
    assert default_files(spec) == {}
    assert default_files(MixtureSpec(policies=spec.policies, defaults_from="base")) == {}
    named = MixtureSpec(policies=spec.policies, defaults_from="chat")
    assert default_files(named) == {"tokenizer": str(chat), "generation_config": str(chat)}


def test_end_tokens_that_nobody_draws_are_refused(tmp_path: Path) -> None:
    plain = save(tmp_path / "plain", build_tokenizer(), rows=VOCAB_SIZE + 8)
    own = plus("<|im_end|>", eos_token="<|im_end|>")
    tuned = save(tmp_path / "tuned", own, rows=VOCAB_SIZE + 8, eos_token_id=VOCAB_SIZE)
    message = refusal(tuned, plain)
    assert "not all policies have '<|im_end|>', so no answer would end" in message
    assert "--defaults-from NAME" in message
    assert check(tuned, plain, defaults_from="plain").vocabulary.num_never_drawn == 1
    (tuned / "generation_config.json").unlink()
    save(tmp_path / "tuned", own, rows=VOCAB_SIZE + 8, eos_token_id=[1, VOCAB_SIZE])
    [warning] = [each for each in check(tuned, plain).warnings if "ends no answer" in each]
    assert "'<|im_end|>'" in warning


def test_a_chat_template_of_tokens_that_not_all_have_is_told(tmp_path: Path) -> None:
    plain = save(tmp_path / "plain", build_tokenizer(), rows=VOCAB_SIZE + 8)
    own = plus("<|im_start|>", "<|im_end|>", chat_template=CHATML)
    tuned = save(tmp_path / "tuned", own, rows=VOCAB_SIZE + 8)
    [warning] = [each for each in check(tuned, plain).warnings if "conversations" in each]
    assert "writes '<|im_start|>', '<|im_end|>', which not all policies have" in warning
    assert not [each for each in check(plain, tuned).warnings if "conversations" in each]


def test_a_token_around_each_text_that_not_all_have_is_refused(tmp_path: Path) -> None:
    from tokenizers.processors import TemplateProcessing

    plain = save(tmp_path / "plain", build_tokenizer(), rows=VOCAB_SIZE + 8)
    tokenizer = plus("<begin>")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<begin> $A", special_tokens=[("<begin>", VOCAB_SIZE)]
    )
    tuned = save(tmp_path / "tuned", tokenizer, rows=VOCAB_SIZE + 8)
    assert "puts '<begin>' around each text, which not all policies have" in refusal(tuned, plain)


def trunk(tmp_path: Path, own: Any = None, **settings: Any) -> MixtureSpec:
    base = save_policy(tmp_path / "base", seed=0)
    adapter = save_adapter(tmp_path / "adapter", base, seed=1)
    if own is not None:
        own.save_pretrained(adapter)
    policies = (Policy(name="tuned", model=str(adapter)),)
    return MixtureSpec(policies=policies, base=str(base), **settings)


def test_an_adapters_tokenizer_is_compared_as_well(tmp_path: Path) -> None:
    checked = check_members(trunk(tmp_path, plus("<pad>")))
    assert checked.vocabulary.num_never_drawn == 1
    assert checked.vocabulary.num_rows == VOCAB_SIZE
    permuted = trunk(tmp_path / "permuted", edited(with_permuted_ids))
    with pytest.raises(CompatibilityError, match="'base' and 'tuned' cannot be mixed"):
        check_members(permuted)


def test_an_adapters_folder_gives_the_defaults(tmp_path: Path) -> None:
    own = build_tokenizer()
    own.eos_token = "<s>"
    spec = trunk(tmp_path, own, defaults_from="tuned")
    folder = spec.policies[0].model
    assert default_files(spec) == {"tokenizer": folder}
    GenerationConfig(eos_token_id=5).save_pretrained(folder)
    assert default_files(spec) == {"tokenizer": folder, "generation_config": folder}
    warnings = check_members(spec).warnings
    assert any(
        "end a text with different tokens ([5] and [1]); those of 'tuned'" in each
        for each in warnings
    )
    without = trunk(tmp_path / "without", defaults_from="tuned")
    with pytest.raises(
        CompatibilityError, match=r"beside that adapter there is no tokenizer\.json"
    ):
        check_members(without)

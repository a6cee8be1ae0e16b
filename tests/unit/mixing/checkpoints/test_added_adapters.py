"""An adapter that comes to a running base was trained on the base's tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig

from prefmix.mixing.checkpoints.compatibility import CompatibilityError, check_added_adapter
from prefmix.mixing.checkpoints.tokenizer_json import TokenizerJson
from prefmix.mixing.spec import Policy
from support.checkpoints.tiny_policies import VOCAB_SIZE, build_tokenizer


@pytest.fixture
def base(tmp_path: Path) -> Policy:
    folder = tmp_path / "base"
    LlamaConfig(vocab_size=VOCAB_SIZE).save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return Policy(name="base", model=str(folder))


def with_added() -> Any:
    tokenizer = build_tokenizer()
    tokenizer.add_tokens(["<pad>"])
    tokenizer.chat_template = "{{ messages }}"
    return tokenizer


def adapter(folder: Path, tokenizer: Any = None) -> Policy:
    (folder / "new").mkdir()
    if tokenizer is not None:
        tokenizer.save_pretrained(folder / "new")
    return Policy(name="new", model=str(folder / "new"))


def test_tokens_of_another_base_are_refused(base: Policy, tmp_path: Path) -> None:
    new = adapter(tmp_path, build_tokenizer(vocab_size=VOCAB_SIZE - 10))
    with pytest.raises(CompatibilityError, match=r"'base' and 'new' cannot be mixed: their vocab"):
        check_added_adapter(new, base)


def test_the_bases_tokens_with_others_added_pass(base: Policy, tmp_path: Path) -> None:
    assert check_added_adapter(adapter(tmp_path, with_added()), base) is None


@pytest.mark.parametrize("is_there", [True, False])
def test_the_bases_file_and_none_are_not_read(
    base: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_there: bool
) -> None:
    monkeypatch.delattr("prefmix.mixing.checkpoints.compatibility.TokenizerJson")
    new = adapter(tmp_path, build_tokenizer() if is_there else None)
    assert check_added_adapter(new, base) is None


@pytest.mark.parametrize("text", ["{", "[]", '{"model": {"vocab": 3}, "added_tokens": []}', "\xff"])
@pytest.mark.parametrize("at", ["new", "base"])
def test_a_file_that_cannot_be_read_is_told(
    base: Policy, tmp_path: Path, text: str, at: str
) -> None:
    new = adapter(tmp_path, with_added())
    (tmp_path / at / "tokenizer.json").write_text(text, encoding="latin-1")
    warning = check_added_adapter(new, base)
    assert warning is not None
    assert "policy 'new': the tokenizer beside the adapter, or the base's, cannot be" in warning
    assert "\n" not in warning
    (tmp_path / "base" / "tokenizer.json").unlink()
    assert "No such file" in str(check_added_adapter(new, base))


def test_tokens_are_those_that_transformers_finds(tmp_path: Path) -> None:
    with_added().save_pretrained(tmp_path)
    found = TokenizerJson(tmp_path / "tokenizer.json")
    assert found.get_vocab() == with_added().get_vocab()
    assert found.get_added_vocab() == with_added().get_added_vocab()
    pieces = [[*pair] for pair in (("<unk>", 0.0), ("a", -1.0))]
    state = {"model": {"type": "Unigram", "vocab": pieces}, "added_tokens": []}
    (tmp_path / "tokenizer.json").write_text(json.dumps(state))
    assert TokenizerJson(tmp_path / "tokenizer.json").get_vocab() == {"<unk>": 0, "a": 1}

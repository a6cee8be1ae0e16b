"""Prompts and completions of every kind, as tokens."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from prefmix.score_pairs import token_pairs
from prefmix.server.http.errors import RequestError

BOS, EOS = 1, 2
MERGED = "ab"
"""Two letters that make one token."""


class LetterTokenizer:
    """A token a letter, but for MERGED; a text alone begins with BOS, a turn ends with EOS."""

    eos_token_id = EOS

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        tokens = [ord(each) for each in text.replace(MERGED, "\x7f")]
        return [BOS, *tokens] if add_special_tokens else tokens

    def apply_chat_template(
        self, messages: Sequence[Any], chat_template: str | None, add_generation_prompt: bool
    ) -> list[int]:
        turns = [
            [*self.encode(message["content"], add_special_tokens=False), EOS, ord("\n")]
            for message in messages
        ]
        start = [] if chat_template is None else self.encode(chat_template, False)
        marks = [[ord("A")] if message["role"] == "assistant" else [] for message in messages]
        written = chain.from_iterable(
            [*mark, *turn] for mark, turn in zip(marks, turns, strict=True)
        )
        return [*start, *written, *([ord("A")] if add_generation_prompt else [])]


def pairs(prompts: Any, completions: Any, template: str | None = None) -> list[Any]:
    tokenizer = LetterTokenizer()

    def chat_tokens(messages: Sequence[Any], *, add_generation_prompt: bool) -> tuple[int, ...]:
        return tuple(tokenizer.apply_chat_template(messages, template, add_generation_prompt))

    return token_pairs(prompts, completions, tokenizer=tokenizer, chat_tokens=chat_tokens)


def letters(text: str) -> tuple[int, ...]:
    return tuple(map(ord, text))


def test_text_after_text() -> None:
    assert pairs("x", "yz") == [((BOS, *letters("x")), letters("yz"))]
    assert pairs(["x", "y"], ["1", "2"]) == [*pairs("x", "1"), *pairs("y", "2")]
    assert pairs({"prompt": "x"}, ["1", "2"]) == [*pairs("x", "1"), *pairs("x", "2")]


def test_text_that_merges_with_the_prompts_is_taken_alone() -> None:
    assert pairs("xa", "by") == [((BOS, *letters("xa")), letters("by"))]


def test_tokens_pass_as_they_are() -> None:
    completion = SimpleNamespace(token_ids=[8, EOS])
    expected = [((5, 6), (8, EOS))]
    assert pairs([5, 6], completion) == expected
    assert pairs([[5, 6]], [[8, EOS]]) == expected
    assert pairs({"prompt_token_ids": [5, 6]}, [8, EOS]) == expected
    assert pairs([{"prompt_token_ids": (5, 6)}], [completion]) == expected
    assert pairs([5, 6], [[]]) == [((5, 6), ())]
    assert pairs([], []) == []


def test_a_conversation_uses_the_chat_template() -> None:
    chat = [{"role": "user", "content": "x"}]
    before = (*letters("T"), *letters("x"), EOS, *letters("\nA"))
    assert pairs(chat, "yz", "T") == [(before, letters("yz"))]
    assert pairs([chat, chat], ["y", [7]], "T") == [(before, letters("y")), (before, (7,))]


def test_a_message_ends_with_the_end_of_its_turn() -> None:
    chat = [{"role": "user", "content": "x"}]
    answer = {"role": "assistant", "content": "yz"}
    assert pairs(chat, answer)[0][1] == (*letters("yz"), EOS)
    assert pairs([chat], [answer]) == pairs(chat, answer)


@pytest.mark.parametrize(
    ("prompts", "completions", "message"),
    [
        (["x", "y"], ["1"], "completions has 1 entries, for 2 prompts"),
        ([3.5], ["1"], "prompt 0 is 3.5; expected a string, token ids"),
        (["x", {"text": "y"}], ["1", "2"], "prompt 1 is .*; expected a string"),
        (["x"], [4.5], "completion 0 is 4.5; expected a string"),
        (["x"], [{"role": "assistant", "content": "y"}], "completion 0 is .*; expected"),
        ([[]], ["x"], "prompt 0 has no tokens"),
        ("x", None, "completions is None; expected one or a list"),
        (5, "x", "prompts is 5; expected one or a list"),
        ("x", SimpleNamespace(outputs=[]), "completions is namespace.*; expected one or a list"),
        (np.array([5, 6]), ["x", "y"], "prompt 0 is .*5.*; expected a string, token ids"),
    ],
)
def test_what_is_neither_is_named(prompts: Any, completions: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        pairs(prompts, completions)

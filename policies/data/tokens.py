"""Token ids of rows, as TRL's DPO trainer makes them, and a check that tokenizer and data fit.

Texts: the prompt is followed by the answer with nothing between, and by the end-of-sequence token.
Chats: the base's chat template writes prompt and answer, its own end tokens included.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from prefmix.policies.data.implicit_prompts import Content
from prefmix.policies.data.pairs import Rows
from prefmix.policies.errors import TrainError

_MARKUP = re.compile(r"<\|[A-Za-z_]+\|>|</?s>|\[/?INST\]")
"""Control tokens of the usual chat formats."""


@dataclass(frozen=True, kw_only=True)
class Example:
    """Token ids of a context and of the learned answer after it."""

    ids: tuple[int, ...]
    num_context: int
    """Number of leading ids, whose log-probability does not count."""


def check_tokenizer(tokenizer: Any, vocab_size: int, rows: Rows) -> None:
    """Refuses data written for another tokenizer, and a tokenizer of another model.

    Raises: TrainError naming the row and the token.
    """
    if rows.is_conversational and not tokenizer.chat_template:
        raise TrainError(
            f"{rows.source} holds chats, but the base model's tokenizer has no chat template; "
            "give texts, or a base with a template"
        )
    if tokenizer.eos_token_id is None:
        raise TrainError("the base model's tokenizer has no end-of-sequence token")
    known = set(tokenizer.all_special_tokens) | set(tokenizer.get_added_vocab())
    for name, row in zip(rows.names, rows.rows, strict=True):
        for field, content in row.items():
            text = content if isinstance(content, str) else "\n".join(m["content"] for m in content)
            for markup in _MARKUP.findall(text):
                if markup not in known:
                    raise TrainError(
                        f"{name}: {field!r} holds {markup!r}, which is no token of the base model: "
                        "the data was written for another tokenizer; give messages, not their "
                        "rendered text"
                    )
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            if tokenizer.unk_token_id is not None and tokenizer.unk_token_id in ids:
                raise TrainError(
                    f"{name}: {field!r} holds text that the base model's tokenizer only knows as "
                    f"{tokenizer.unk_token!r}"
                )
            if ids and max(ids) >= vocab_size:
                raise TrainError(
                    f"{name}: {field!r} becomes token {max(ids)}, but the base model's vocabulary "
                    f"ends at {vocab_size - 1}; its tokenizer belongs to another model"
                )


def encode(
    tokenizer: Any, name: str, prompt: Content, answers: Sequence[Content], *, max_length: int
) -> list[Example]:
    """Encodes answers to one prompt, all with the same context, cut at the end.

    If tokens merge across the border, the answer starts at the first token that differs.
    Raises: TrainError naming the row if the limit leaves no token of the answers.
    """
    prompt_ids = _ids(tokenizer, prompt, None)
    wholes = [_ids(tokenizer, prompt, answer) for answer in answers]
    num_context = min(_common_prefix(prompt_ids, whole) for whole in wholes)
    if num_context >= max_length:
        raise TrainError(
            f"{name}: the prompt has {num_context} tokens, which leaves none for the answer; "
            f"max_length is {max_length}"
        )
    return [Example(ids=tuple(ids[:max_length]), num_context=num_context) for ids in wholes]


def encode_text(tokenizer: Any, text: str, *, max_length: int) -> Example:
    """Encodes running text; all tokens but the first are learned."""
    ids = tokenizer(text)["input_ids"] + [tokenizer.eos_token_id]
    return Example(ids=tuple(ids[:max_length]), num_context=1)


def render(tokenizer: Any, prompt: Content, answer: Content) -> str:
    """Prompt and answer as one text, in the form that a reward model reads."""
    if isinstance(prompt, str):
        return f"{prompt}{answer}{tokenizer.eos_token}"
    assert isinstance(answer, list)
    return str(tokenizer.apply_chat_template(prompt + answer, tokenize=False))


def _ids(tokenizer: Any, prompt: Content, answer: Content | None) -> list[int]:
    if isinstance(prompt, str):
        assert answer is None or isinstance(answer, str)
        end = "" if answer is None or answer.endswith(tokenizer.eos_token) else tokenizer.eos_token
        return list(tokenizer(prompt + (answer or "") + end)["input_ids"])
    assert not isinstance(answer, str)
    encoded = tokenizer.apply_chat_template(
        prompt + (answer or []), add_generation_prompt=answer is None, return_dict=True
    )
    return list(encoded["input_ids"])


def _common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    pairs = zip(first, second, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))

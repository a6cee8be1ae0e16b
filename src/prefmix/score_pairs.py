"""Prompts and completions as tokens, for their log-probabilities.

A prompt may be a string, token ids, one of vLLM's prompt dictionaries or a conversation; a
completion a string, token ids, one of vLLM's completions or, after a conversation, a message.
"""

from __future__ import annotations

import numbers
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from prefmix.prompt_parameters import short_repr
from prefmix.server.http.errors import RequestError

Tokens = tuple[int, ...]


def token_pairs(
    prompts: Any, completions: Any, *, tokenizer: Any, chat_tokens: Callable[..., Tokens]
) -> list[tuple[Tokens, Tokens]]:
    """(prompt, completion) tokens of each pair.

    Args:
      prompts: one or several; a single prompt is used for every completion.
      completions: one or several.
      tokenizer: the mixture's, of transformers.
      chat_tokens: a conversation's tokens (LocalEngine.chat_tokens).
    Raises: RequestError naming the pair.
    """
    encoder = _Encoder(tokenizer, chat_tokens)
    return [
        encoder.pair(prompt, completion, index=index)
        for index, (prompt, completion) in enumerate(listed_pairs(prompts, completions))
    ]


def listed_pairs(prompts: Any, completions: Any) -> list[tuple[Any, Any]]:
    """(prompt, completion) of each pair, as the caller gave them. Arguments as of `token_pairs`.

    Raises: RequestError.
    """
    many_completions = _listed(completions, _is_completion(completions), name="completions")
    is_one = _is_prompt(prompts)
    many_prompts = _listed(prompts, is_one, name="prompts") * (
        len(many_completions) if is_one else 1
    )
    if len(many_prompts) != len(many_completions):
        raise RequestError(
            f"completions has {len(many_completions)} entries, for {len(many_prompts)} prompts; "
            "give one for each prompt",
            param="completions",
        )
    return list(zip(many_prompts, many_completions, strict=True))


def _listed(values: Any, is_one: bool, *, name: str) -> list[Any]:
    if is_one:
        return [values]
    if isinstance(values, Iterable):
        return list(values)
    raise RequestError(f"{name} is {short_repr(values)}; expected one or a list", param=name)


class _Encoder:
    def __init__(self, tokenizer: Any, chat_tokens: Callable[..., Tokens]) -> None:
        self._tokenizer = tokenizer
        self._chat = chat_tokens

    def pair(self, prompt: Any, completion: Any, *, index: int) -> tuple[Tokens, Tokens]:
        text, before = self._prompt(prompt, index)
        if not before:
            raise RequestError(
                f"prompt {index} has no tokens; a completion needs at least one before it",
                param="prompts",
            )
        if hasattr(completion, "token_ids"):
            completion = completion.token_ids
        if _is_tokens(completion):
            return before, tuple(map(int, completion))
        if _is_message(completion) and is_conversation(prompt):
            return before, self._message_after(prompt, completion, before, index)
        if not isinstance(completion, str):
            raise RequestError(
                f"completion {index} is {short_repr(completion)}; expected a string, token ids, "
                "one of vLLM's completions or, after a conversation, a message",
                param="completions",
            )
        return before, self._text_after(text, completion, before)

    def _prompt(self, prompt: Any, index: int) -> tuple[str | None, Tokens]:
        """(text if it is raw text, tokens)."""
        if isinstance(prompt, Mapping) and "prompt_token_ids" in prompt:
            prompt = prompt["prompt_token_ids"]
        elif isinstance(prompt, Mapping) and isinstance(prompt.get("prompt"), str):
            prompt = prompt["prompt"]
        if isinstance(prompt, str):
            return prompt, tuple(self._tokenizer.encode(prompt))
        if is_conversation(prompt):
            return None, self._chat(prompt, add_generation_prompt=True)
        if _is_tokens(prompt):
            return None, tuple(map(int, prompt))
        raise RequestError(
            f"prompt {index} is {short_repr(prompt)}; expected a string, token ids, a dictionary "
            "with prompt or prompt_token_ids, or a conversation",
            param="prompts",
        )

    def _text_after(self, prompt: str | None, completion: str, before: Tokens) -> Tokens:
        """The completion's tokens, cut from the whole text's if those begin with the prompt's.

        Otherwise the completion is encoded alone, before which some tokenizers put a blank.
        """
        if prompt is not None:
            whole = tuple(self._tokenizer.encode(prompt + completion))
            if whole[: len(before)] == before:
                return whole[len(before) :]
        return tuple(self._tokenizer.encode(completion, add_special_tokens=False))

    def _message_after(
        self, prompt: Sequence[Any], message: Mapping[str, Any], before: Tokens, index: int
    ) -> Tokens:
        """A message's tokens as the chat template writes them, up to the end of its turn."""
        whole = self._chat([*prompt, message], add_generation_prompt=False)
        if whole[: len(before)] != before:
            raise RequestError(
                f"completion {index}: the chat template writes the conversation otherwise once "
                "the message is there; give the completion as a string or as token ids",
                param="completions",
            )
        after = whole[len(before) :]
        ends = [place for place, token in enumerate(after) if token == self._tokenizer.eos_token_id]
        return after[: ends[-1] + 1] if ends else after


def _is_tokens(value: object) -> bool:
    return isinstance(value, (list, tuple)) and all(
        isinstance(token, numbers.Integral) and not isinstance(token, bool) for token in value
    )


def _is_message(value: object) -> bool:
    return isinstance(value, Mapping) and "role" in value


def is_conversation(value: object) -> bool:
    """True for a list of messages."""
    return isinstance(value, (list, tuple)) and bool(value) and all(map(_is_message, value))


def _is_prompt(value: object) -> bool:
    """True if the value is one prompt, not a list of prompts."""
    return isinstance(value, (str, Mapping)) or is_conversation(value) or _is_one_row(value)


def _is_completion(value: object) -> bool:
    """True if the value is one completion, not a list of completions."""
    return isinstance(value, (str, Mapping)) or hasattr(value, "token_ids") or _is_one_row(value)


def _is_one_row(value: object) -> bool:
    return _is_tokens(value) and bool(value)

"""Prompts files: one JSON object a line, `{"prompt": "..."}` or `{"messages": [...]}`.

`id` is optional; the default is the line number. A fit needs no answers, labels or rewards.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prefmix.mixing.shown_value import shown


class PromptsError(ValueError):
    """A prompts file that cannot be used; the message names file, line and value."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """One prompt: raw text, or a conversation for the chat template."""

    id: str
    """Unique in its file."""
    text: str | None = None
    """Raw text, tokenised without a chat template."""
    messages: tuple[dict[str, Any], ...] | None = None
    """A conversation, tokenised with the chat template and the generation prompt."""
    columns: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """The other fields of its line, which reward functions are given."""


def read_prompts(path: Path) -> list[Prompt]:
    """Reads and checks a prompts file.

    Raises: PromptsError.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise PromptsError(f"{path}: cannot be read ({error})") from None
    prompts = [
        _prompt(line, where=f"{path}, line {number}", number=number)
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]
    if not prompts:
        raise PromptsError(f"{path}: no prompts; expected one JSON object a line")
    seen: dict[str, int] = {}
    for index, prompt in enumerate(prompts):
        if prompt.id in seen:
            raise PromptsError(f"{path}: two prompts have the id {prompt.id!r}; ids are unique")
        seen[prompt.id] = index
    return prompts


def hash_of_prompts(prompts: Sequence[Prompt]) -> str:
    """The sha256 of the prompts' content, hexadecimal."""
    content = json.dumps([[prompt.id, prompt.text, prompt.messages] for prompt in prompts])
    return hashlib.sha256(content.encode()).hexdigest()


def _prompt(line: str, *, where: str, number: int) -> Prompt:
    try:
        data = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise PromptsError(f"{where}: no JSON ({error})") from None
    if not isinstance(data, dict) or ("prompt" in data) == ("messages" in data):
        raise PromptsError(
            f'{where}: expected {{"prompt": "..."}} or {{"messages": [...]}}, got {line:.80}'
        )
    prompt_id = str(data.get("id", number))
    columns = {name: data[name] for name in data if name not in ("prompt", "messages")}
    if "prompt" in data:
        if not isinstance(data["prompt"], str) or not data["prompt"]:
            raise PromptsError(f"{where}: prompt is {shown(data['prompt'])}, expected some text")
        return Prompt(id=prompt_id, text=data["prompt"], columns=columns)
    messages = data["messages"]
    if not isinstance(messages, list) or not all(_is_message(message) for message in messages):
        raise PromptsError(
            f"{where}: messages is {shown(messages)}, expected objects with role and content"
        )
    return Prompt(id=prompt_id, messages=tuple(messages), columns=columns)


def _is_message(message: object) -> bool:
    return isinstance(message, dict) and {"role", "content"} <= message.keys()

"""Training data: reads rows, and refuses rows that would silently train something else.

The formats are TRL's. Preference pairs have `prompt`, `chosen` and `rejected`, all three texts or
all three lists of messages ({"role", "content"}); `prefmix.policies.data.implicit_prompts` brings
other pairs of the hub into this form. Answers for the regulariser have `prompt` and `completion`,
in either form; pre-training text has `text`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefmix.mixing.shown_value import shown
from prefmix.policies.data.implicit_prompts import Content, with_prompt
from prefmix.policies.data.sources import Source, raw_rows
from prefmix.policies.errors import TrainError

PAIR_FIELDS = ("prompt", "chosen", "rejected")
ANSWER_FIELDS = ("prompt", "completion")
TEXT_FIELDS = ("text",)


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Checked rows of one source."""

    source: Path
    """A path or hub id."""
    rows: tuple[dict[str, Content], ...]
    names: tuple[str, ...]
    """Name of each row for messages, such as `pairs.jsonl line 3`."""
    others: tuple[Mapping[str, Any], ...] = ()
    """The other columns of each row, which reward functions are given."""

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def is_conversational(self) -> bool:
        """True if the rows are chats."""
        return not all(isinstance(value, str) for value in self.rows[0].values())

    @property
    def sha256(self) -> str:
        """Hash of the rows in their order; equal for a JSONL file and a datasets folder."""
        text = json.dumps(self.rows, sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()

    def take(self, indices: Sequence[int]) -> Rows:
        """Some of the rows, by index."""
        return Rows(
            source=self.source,
            rows=tuple(self.rows[i] for i in indices),
            names=tuple(self.names[i] for i in indices),
            others=tuple(self.others[i] for i in indices) if self.others else (),
        )

    @property
    def columns(self) -> dict[str, list[Any]]:
        """The other columns by name; None where a row has none."""
        names = dict.fromkeys(name for row in self.others for name in row)
        return {name: [row.get(name) for row in self.others] for name in names}


def read_rows(source: Path | Source, fields: Sequence[str]) -> Rows:
    """Reads and checks JSON Lines, JSON, Parquet, a folder of data, or a data set of the hub.

    Raises: TrainError naming the row and the field.
    """
    if isinstance(source, Path):
        source = Source(name=str(source), is_local=True)
    names: list[str] = []
    rows: list[dict[str, Content]] = []
    others: list[Mapping[str, Any]] = []
    for name, raw in raw_rows(source):
        row = _checked(name, raw, fields)
        names.append(name)
        rows.append(row)
        others.append({key: value for key, value in raw.items() if key not in fields})
        if _form(rows[-1]) != _form(rows[0]):
            raise TrainError(
                f"{name} is {_form(rows[-1])} but {names[0]} is {_form(rows[0])}; "
                "a file holds one kind"
            )
    if not rows:
        raise TrainError(f"{source} holds no rows")
    return Rows(
        source=Path(source.name), rows=tuple(rows), names=tuple(names), others=tuple(others)
    )


def _checked(name: str, raw: Any, fields: Sequence[str]) -> dict[str, Content]:
    if not isinstance(raw, Mapping):
        raise TrainError(f"{name} is {shown(raw)}; expected an object")
    row: dict[str, Content] = {}
    for field in fields:
        if raw.get(field) is not None:
            row[field] = _content(f"{name}: {field!r}", raw[field])
        elif field != "prompt" or "chosen" not in fields:
            has = ", ".join(map(str, raw)) or "nothing"
            raise TrainError(f"{name} has no {field!r}, only {has}; expected {', '.join(fields)}")
    if "chosen" in row:
        row = with_prompt(name, row)
    if len({isinstance(value, str) for value in row.values()}) > 1:
        raise TrainError(f"{name} mixes texts and messages; use one form for all fields")
    if "chosen" in row and row["chosen"] == row["rejected"]:
        raise TrainError(f"{name}: 'chosen' and 'rejected' are equal, so there is no preference")
    return row


def _content(what: str, value: Any) -> Content:
    if isinstance(value, str):
        if not value.strip():
            raise TrainError(f"{what} is empty")
        return value
    if not isinstance(value, list):
        raise TrainError(f"{what} is {shown(value)}; expected text or messages")
    if not value:
        raise TrainError(f"{what} is empty")
    messages: list[dict[str, str]] = []
    for message in value:
        found = message if isinstance(message, dict) else {}
        role, content = found.get("role"), found.get("content")
        if not isinstance(role, str) or not isinstance(content, str):
            raise TrainError(f"{what}: a message needs 'role' and 'content', both texts")
        if not content.strip():
            raise TrainError(f"{what} has an empty message")
        messages.append({"role": role, "content": content})
    return messages


def _form(row: Mapping[str, Content]) -> str:
    return "text" if all(isinstance(value, str) for value in row.values()) else "a chat"

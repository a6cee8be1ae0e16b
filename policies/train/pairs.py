"""Training data: reads rows, and refuses rows that would silently train something else.

The formats are TRL's. Preference pairs have `prompt`, `chosen` and `rejected`, all three texts or
all three lists of messages ({"role", "content"}). Answers for the regulariser have `prompt` and
`completion`, in either form; pre-training text has `text`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefmix.policies.train import TrainError

Content = str | list[dict[str, str]]
"""A text, or messages of a chat."""

PAIR_FIELDS = ("prompt", "chosen", "rejected")
ANSWER_FIELDS = ("prompt", "completion")
TEXT_FIELDS = ("text",)


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Checked rows of one file."""

    source: Path
    rows: tuple[dict[str, Content], ...]
    names: tuple[str, ...]
    """Name of each row for messages, such as `pairs.jsonl line 3`."""

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
        )


def read_rows(path: Path, fields: Sequence[str]) -> Rows:
    """Reads and checks a JSONL file or a folder of `datasets.Dataset.save_to_disk`.

    Raises: TrainError naming the row and the field.
    """
    source = _folder_rows(path) if path.is_dir() else _file_rows(path)
    names: list[str] = []
    rows: list[dict[str, Content]] = []
    for name, raw in source:
        names.append(name)
        rows.append(_checked(name, raw, fields))
        if _form(rows[-1]) != _form(rows[0]):
            raise TrainError(
                f"{name} is {_form(rows[-1])} but {names[0]} is {_form(rows[0])}; "
                "a file holds one kind"
            )
    if not rows:
        raise TrainError(f"{path} holds no rows")
    return Rows(source=path, rows=tuple(rows), names=tuple(names))


def _file_rows(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        raise TrainError(f"there is no file or folder {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise TrainError(f"cannot read {path} as UTF-8 text: {error}") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        name = f"{path.name} line {number}"
        try:
            yield name, json.loads(line)
        except json.JSONDecodeError as error:
            raise TrainError(f"{name} is not JSON: {error.msg}") from None


def _folder_rows(path: Path) -> Iterator[tuple[str, Any]]:
    from datasets import DatasetDict, load_from_disk

    try:
        dataset = load_from_disk(str(path))
    except (OSError, ValueError) as error:
        raise TrainError(
            f"{path} is no folder of datasets' save_to_disk: {str(error).splitlines()[0]}"
        ) from None
    if isinstance(dataset, DatasetDict):
        if "train" not in dataset:
            raise TrainError(f"{path} has the splits {', '.join(dataset)}; expected 'train'")
        dataset = dataset["train"]
    for number, row in enumerate(dataset, start=1):
        yield f"{path.name} row {number}", row


def _checked(name: str, raw: Any, fields: Sequence[str]) -> dict[str, Content]:
    if not isinstance(raw, Mapping):
        raise TrainError(f"{name} is a {type(raw).__name__}; expected an object")
    row: dict[str, Content] = {}
    for field in fields:
        if raw.get(field) is None:
            has = ", ".join(map(str, raw)) or "nothing"
            raise TrainError(f"{name} has no {field!r}, only {has}; expected {', '.join(fields)}")
        row[field] = _content(f"{name}: {field!r}", raw[field])
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
        raise TrainError(f"{what} is a {type(value).__name__}; expected text or messages")
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

"""Every kind of bad row is refused by name; good ones are read as they are."""

import json
from pathlib import Path
from typing import Any

import pytest

from prefmix.policies.data.pairs import ANSWER_FIELDS, PAIR_FIELDS, read_rows
from prefmix.policies.train import TrainError

GOOD = {"prompt": "Say hello.", "chosen": "Hello!", "rejected": "No."}


def _message(role: str, content: str) -> list[dict[str, str]]:
    return [{"role": role, "content": content}]


CHAT = {
    "prompt": _message("user", "Say hello."),
    "chosen": _message("assistant", "Hello!"),
    "rejected": _message("assistant", "No."),
}


def _write(folder: Path, *rows: Any) -> Path:
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize(("row", "is_conversational"), [(GOOD, False), (CHAT, True)])
def test_good_rows_are_read(tmp_path: Path, row: dict[str, Any], is_conversational: bool) -> None:
    rows = read_rows(_write(tmp_path, row, row), PAIR_FIELDS)
    assert rows.rows == (row, row)
    assert rows.names == ("pairs.jsonl line 1", "pairs.jsonl line 2")
    assert rows.is_conversational is is_conversational


def test_other_columns_are_ignored_and_do_not_change_the_hash(tmp_path: Path) -> None:
    plain = read_rows(_write(tmp_path, GOOD), PAIR_FIELDS)
    more = read_rows(_write(tmp_path, GOOD | {"source": "x"}), PAIR_FIELDS)
    assert plain.sha256 == more.sha256
    other = read_rows(_write(tmp_path, GOOD | {"chosen": "Hi!"}), PAIR_FIELDS)
    assert plain.sha256 != other.sha256


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a", "chosen": "b"}, "line 2 has no 'rejected', only prompt, chosen"),
        ({"chosen": "a", "rejected": "b"}, "line 2 has no 'prompt'"),
        (GOOD | {"chosen": None}, "line 2 has no 'chosen'"),
        (GOOD | {"chosen": " \n"}, "line 2: 'chosen' is empty"),
        (GOOD | {"prompt": ""}, "line 2: 'prompt' is empty"),
        (GOOD | {"chosen": []}, "line 2: 'chosen' is empty"),
        (GOOD | {"chosen": "No."}, "line 2: 'chosen' and 'rejected' are equal"),
        (GOOD | {"chosen": 7}, "line 2: 'chosen' is 7; expected text"),
        (GOOD | {"chosen": CHAT["chosen"]}, "line 2 mixes texts and messages"),
        (CHAT, "line 2 is a chat but pairs.jsonl line 1 is text"),
        (CHAT | {"prompt": [{"role": "user"}]}, "needs 'role' and 'content'"),
        (CHAT | {"chosen": _message("assistant", "")}, "'chosen' has an empty message"),
        ([1], r"line 2 is \[1\]; expected an object"),
        (None, "line 2 is null; expected an object"),
    ],
)
def test_bad_row_is_named(tmp_path: Path, row: Any, message: str) -> None:
    with pytest.raises(TrainError, match=message):
        read_rows(_write(tmp_path, GOOD, row), PAIR_FIELDS)


def test_line_that_is_not_json_is_named(tmp_path: Path) -> None:
    path = _write(tmp_path, GOOD)
    path.write_text(path.read_text() + '\n{"prompt": \n')
    with pytest.raises(TrainError, match=r"pairs\.jsonl line 3 is not JSON"):
        read_rows(path, PAIR_FIELDS)


def test_missing_and_empty_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainError, match="no file or folder"):
        read_rows(tmp_path / "absent.jsonl", PAIR_FIELDS)
    with pytest.raises(TrainError, match="holds no rows"):
        read_rows(_write(tmp_path), PAIR_FIELDS)
    with pytest.raises(TrainError, match="has no 'completion'"):
        read_rows(_write(tmp_path, GOOD), ANSWER_FIELDS)

"""Pairs in the forms of the hub: what becomes the prompt, and what is refused."""

import importlib.util
import json
import random
from pathlib import Path
from typing import Any

import pytest

from prefmix.policies.data.implicit_prompts import with_prompt
from prefmix.policies.data.pairs import PAIR_FIELDS, read_rows
from prefmix.policies.errors import TrainError


def _chat(*turns: str) -> list[dict[str, str]]:
    """Messages of the turns, `u:text` of the user and `a:text` of the assistant."""
    roles = {"u": "user", "a": "assistant", "s": "system"}
    return [{"role": roles[turn[0]], "content": turn[2:]} for turn in turns]


@pytest.mark.parametrize(
    ("chosen", "rejected", "expected"),
    [
        ("Q: 1? A: one", "Q: 1? A: two", ("Q: 1? A:", " one", " two")),
        ("Q A", "Q A and more", ("Q ", "A", "A and more")),
        ("naïve 🎈 yes", "naïve 🎈 no", ("naïve 🎈", " yes", " no")),
        (_chat("u:q", "a:x"), _chat("u:q", "a:y"), (_chat("u:q"), _chat("a:x"), _chat("a:y"))),
        (
            _chat("s:s", "u:q", "a:x", "u:r", "a:y"),
            _chat("s:s", "u:q", "a:x", "u:r", "a:z"),
            (_chat("s:s", "u:q", "a:x", "u:r"), _chat("a:y"), _chat("a:z")),
        ),
        (
            _chat("u:q", "a:x"),
            _chat("u:q", "a:x", "u:r", "a:y"),
            (_chat("u:q"), _chat("a:x"), _chat("a:x", "u:r", "a:y")),
        ),
    ],
)
def test_common_beginning_is_the_prompt(chosen: Any, rejected: Any, expected: Any) -> None:
    row = with_prompt("row", {"chosen": chosen, "rejected": rejected})
    assert (row["prompt"], row["chosen"], row["rejected"]) == expected


def test_text_prompt_of_chat_answers() -> None:
    """The prompt is in the answers, or only beside them; both are one chat in the end."""
    whole = {"chosen": _chat("u:q", "a:x"), "rejected": _chat("u:q", "a:y")}
    alone = {"chosen": _chat("a:x"), "rejected": _chat("a:y")}
    expected = {"prompt": _chat("u:q"), **alone}
    assert with_prompt("row", {"prompt": "q", **whole}) == expected
    assert with_prompt("row", {"prompt": "q", **alone}) == expected
    assert with_prompt("row", {"prompt": _chat("u:q"), **whole}) == expected


def test_explicit_prompts_stay_as_they_are() -> None:
    """A text answer may repeat the prompt's words, and that is no mistake."""
    for row in (
        {"prompt": "Say hello.", "chosen": "Say hello. Hello!", "rejected": "Say hello. No."},
        {"prompt": _chat("u:q"), "chosen": _chat("a:x"), "rejected": _chat("a:y")},
        {"prompt": _chat("a:x"), "chosen": _chat("a:x"), "rejected": _chat("a:y")},
    ):
        assert with_prompt("row", dict(row)) == row


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"chosen": "same", "rejected": "same"}, "row has no 'prompt', and .* they are equal"),
        ({"chosen": "one", "rejected": _chat("a:x")}, "they are equal, or a text and a chat"),
        ({"chosen": "yes", "rejected": "no"}, "have no common beginning that could be one"),
        ({"chosen": " yes", "rejected": " no"}, "have no common beginning"),
        ({"chosen": _chat("a:x"), "rejected": _chat("a:y")}, "have no common beginning"),
        ({"chosen": "Q  ", "rejected": "Q  A"}, "'chosen' is empty after the beginning"),
        (
            {"chosen": _chat("s:s", "u:q", "a:x"), "rejected": _chat("s:s", "u:r", "a:x")},
            "'chosen' goes on with a message of 'user'; expected one of 'assistant'",
        ),
    ],
)
def test_pairs_without_a_prompt_are_refused(row: Any, message: str) -> None:
    with pytest.raises(TrainError, match=message):
        with_prompt("row", row)


@pytest.mark.train
@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="needs the train extra")
@pytest.mark.filterwarnings("ignore")
def test_prompts_are_those_of_trl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "ERROR")  # an import of TRL's sets it
    from trl.data_utils import maybe_extract_prompt

    rng = random.Random(0)
    compared = 0
    for _ in range(500):
        turns = [rng.choice(["u:a", "a:b", "u:c", "a:d"]) for _ in range(rng.randint(1, 3))]
        first, second = (
            _chat(*turns, *(f"a:{rng.choice('xy')}" for _ in range(rng.randint(1, 2))))
            for _ in "12"
        )
        texts = ["".join(rng.choice("ab ") for _ in range(rng.randint(2, 9))) for _ in "12"]
        for chosen, rejected in ((first, second), texts):
            row = {"chosen": chosen, "rejected": rejected}
            try:
                ours = with_prompt("row", dict(row))
            except TrainError:
                continue
            compared += 1
            assert ours == maybe_extract_prompt(dict(row)), row
    assert compared > 300


def test_rows_without_prompts_are_read(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    rows = [{"chosen": f"Q{i} yes", "rejected": f"Q{i} no", "score": i} for i in range(3)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read_rows(path, PAIR_FIELDS)
    assert [row["prompt"] for row in found.rows] == ["Q0", "Q1", "Q2"]
    assert found.columns == {"score": [0, 1, 2]}
    assert found.take([2]).columns == {"score": [2]}

"""The data of the comparisons: labels as asked for, and other answers to stay close to."""

import json
import random
from pathlib import Path

import pytest

from examples.mixed_comparison import wrong_labels
from examples.training_runs import Label, bradley_terry, deterministic, flipped, table, write_data
from prefmix.policies.demo.reviews.rewards import concise
from prefmix.policies.demo.training.sampling import Response


def _answer(prompt: int, length: int) -> Response:
    text = f"{prompt} " + "word " * length
    return Response(
        context=f"p{prompt}", context_ids=(0,), ids=(1,), text=text.strip(), logprob=0.0
    )


def test_shorter_answer_is_always_chosen_and_pairs_are_not_among_the_sft_rows(
    tmp_path: Path,
) -> None:
    answers = [_answer(p, n) for p in range(5) for n in (3, 9, 8, 1, 4, 6)]
    assert write_data(tmp_path, answers, concise, deterministic, seed=0) == 10
    rows = {
        name: [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        for name in ("pairs", "sft")
    }
    assert (len(rows["pairs"]), len(rows["sft"])) == (10, 10)
    assert all(concise(row["chosen"]) > concise(row["rejected"]) for row in rows["pairs"])
    paired = {row[answer] for row in rows["pairs"] for answer in ("chosen", "rejected")}
    assert not paired & {row["completion"] for row in rows["sft"]}


@pytest.mark.parametrize(
    ("label", "expected"),
    [(deterministic, 1.0), (flipped(0.2), 0.8), (bradley_terry(1.0), 0.731)],
)
def test_labels_prefer_the_better_answer_as_often_as_asked(label: Label, expected: float) -> None:
    rng = random.Random(0)
    gaps = [1.0, -1.0] * 2000
    right = [label(gap, rng) == (gap > 0) for gap in gaps]
    assert sum(right) / len(gaps) == pytest.approx(expected, abs=0.02)


def test_wrong_labels_are_counted_among_the_rows_asked_for(tmp_path: Path) -> None:
    pairs = [
        {"prompt": "p", "chosen": "superb", "rejected": "awful"},
        {"prompt": "p", "chosen": "awful", "rejected": "superb"},
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    assert [wrong_labels(tmp_path, rows) for rows in ([0], [1], [0, 1])] == [0.0, 1.0, 0.5]


def test_table_shows_mean_and_deviation_over_seeds() -> None:
    found = {"l: a": [{"reward": 1.0}, {"reward": 2.0}], "l: b": [{"other": 3.0}]}
    lines = [line.split("|")[1:-1] for line in table(found).splitlines()]
    assert [[cell.strip() for cell in line] for line in (lines[0], *lines[2:])] == [
        ["labels", "method", "reward", "other"],
        ["l", "a", "1.50 ± 0.71", ""],
        ["", "b", "", "3.00 ± 0.00"],
    ]
    assert len({len(line) for line in table(found).splitlines()}) == 1
    assert all(set(cell) <= {"-", " "} for cell in lines[1])

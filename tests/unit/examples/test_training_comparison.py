"""The data of the comparison: deterministic preferences, and other answers to stay close to."""

import json
from pathlib import Path

from examples.training_comparison import table, write_data
from policies.demo.rewards import concise
from policies.demo.sampling import Response


def _answer(prompt: int, length: int) -> Response:
    text = f"{prompt} " + "word " * length
    return Response(
        context=f"p{prompt}", context_ids=(0,), ids=(1,), text=text.strip(), logprob=0.0
    )


def test_shorter_answer_is_always_chosen_and_pairs_are_not_among_the_sft_rows(
    tmp_path: Path,
) -> None:
    write_data(tmp_path, [_answer(p, n) for p in range(5) for n in (3, 9, 8, 1, 4, 6)], seed=0)
    rows = {
        name: [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        for name in ("pairs", "sft")
    }
    assert (len(rows["pairs"]), len(rows["sft"])) == (10, 10)
    assert all(concise(row["chosen"]) > concise(row["rejected"]) for row in rows["pairs"])
    paired = {row[answer] for row in rows["pairs"] for answer in ("chosen", "rejected")}
    assert not paired & {row["completion"] for row in rows["sft"]}


def test_table_shows_mean_and_spread() -> None:
    lines = table({"a": [{"reward": 1.0}, {"reward": 2.0}]}).splitlines()
    assert lines[1].split() == ["a", "1.50", "±", "0.50"]

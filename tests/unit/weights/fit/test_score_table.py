from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prefmix.weights.fit import score_table
from prefmix.weights.fit.score_table import ScoreTableError


def columns(**changes: Any) -> dict[str, Any]:
    """A good table of 2 prompts x 2 responses; None removes a column."""
    table: dict[str, Any] = {
        "prompt_id": ["x", "x", "y", "y"],
        "response_id": [0, 1, 0, 1],
        "num_tokens": [3, 4, 5, 6],
        "logprob_reference": [-3.0, -4.0, -5.0, -6.0],
        "logprob_a": [-2.0, -4.5, -5.0, -7.0],
        "logprob_b": [-4.0, -3.5, -6.0, -5.0],
    }
    table.update(changes)
    return {name: values for name, values in table.items() if values is not None}


def check(**changes: Any) -> score_table.ScoreTable:
    return score_table.check(pa.table(columns(**changes)), source="t", policies=["b", "a"])


def test_a_good_table_gives_log_ratios_in_the_wanted_order(tmp_path: Path) -> None:
    path = tmp_path / "scores.parquet"
    pq.write_table(pa.table(columns()), path)
    table = score_table.read(path, policies=["b", "a"])
    assert table.names == ("b", "a")
    responses = table.responses()
    assert responses.log_ratios_PJK[0].tolist() == [[-1.0, 1.0], [0.5, -0.5]]
    assert table.lengths().tolist() == [[3, 4], [5, 6]]


def test_a_proposal_column_takes_the_references_place() -> None:
    table = check(proposal_logprob=[-1.0, -1.0, -1.0, -1.0])
    assert table.responses().log_ratios_PJK[0, 0].tolist() == [-3.0, -1.0]


def test_rewards_are_divided_by_beta_and_normalised_by_prompt() -> None:
    table = score_table.check(
        pa.table(
            columns(
                logprob_reference=None,
                logprob_a=None,
                logprob_b=None,
                reward_a=[1.0, 2.0, 3.0, 4.0],
                reward_b=[0.0, 0.0, 0.0, 0.0],
            )
        ),
        source="t",
    )
    assert table.in_reward_form
    assert table.responses(beta=0.5).log_ratios_PJK[1, 1].tolist() == pytest.approx(
        [8.0 - np.log((np.exp(6.0) + np.exp(8.0)) / 2), 0.0]
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt_id": None}, "column 'prompt_id' is missing"),
        ({"num_tokens": None}, "column 'num_tokens' is missing"),
        ({"logprob_reference": None}, "column 'logprob_reference' is missing"),
        ({"logprob_a": None}, "column 'logprob_a' is missing; it scores: b"),
        ({"logprob_c": [0.0] * 4}, "it scores 'c', which is not among the policies"),
        ({"extra": [0] * 4}, "column 'extra' is not part of a score table"),
        ({"reward_a": [0.0] * 4}, "not both"),
        ({"logprob_a": [-1.0, np.nan, -1.0, -1.0]}, "'logprob_a', row 1, is nan"),
        ({"logprob_b": [-1.0, -1.0, -np.inf, -1.0]}, "'logprob_b', row 2, is -inf"),
        ({"logprob_b": ["a", "b", "c", "d"]}, "'logprob_b' holds string, expected numbers"),
        ({"response_id": [0, 0, 0, 1]}, "row 1 repeats prompt_id 'x' with response_id 0"),
    ],
)
def test_bad_tables_are_refused_by_column_row_and_value(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ScoreTableError, match=message):
        check(**changes)


def test_no_rows_and_no_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ScoreTableError, match="no rows"):
        score_table.check(pa.table(columns()).slice(0, 0), source="t")
    with pytest.raises(ScoreTableError, match="cannot be read as Parquet"):
        score_table.read(tmp_path / "gone.parquet")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(ScoreTableError, match="cannot be read as Parquet"):
        score_table.read(tmp_path / "text")

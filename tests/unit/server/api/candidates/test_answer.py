"""An answer is left with the candidates that are picked."""

from __future__ import annotations

from typing import Any

import pytest

from prefmix.mixing.candidates import pick
from prefmix.server.api.candidates.answer import FiguresLostError, describe_pick, with_picked


def test_a_low_number_warns() -> None:
    assert set(describe_pick(pick([0.0, 0.1, 0.2, 0.3]))) == {
        "num_candidates",
        "ess",
        "log_partition",
    }
    warning = describe_pick(pick([0.0, -9.0, -9.0, -9.0]))["warning"]
    assert "the 4 candidates count as 1.00, fewer than 1.75" in warning


def nothing(rows: Any, ess: float) -> dict[str, Any]:
    return {}


def answer(num_choices: int) -> dict[str, Any]:
    choices = [
        {"index": i, "text": f"{i}", "token_ids": [7, 8], "prompt_token_ids": [1]}
        for i in range(num_choices)
    ]
    return {"choices": choices, "usage": {"completion_tokens": 99}, "prompt_token_ids": [1]}


def rows(log_partition: float, *more: float) -> list[list[float]]:
    """Figures of two tokens, and of those that were measured after the answer's end."""
    return [[each, 1.0, -0.5] for each in (log_partition, 0.0, *more)]


def test_one_candidate_of_each_choice_is_left() -> None:
    """Two prompts, two answers to each, three candidates: the figures decide."""
    best = {(0, 0): 2, (0, 1): 0, (1, 0): 1, (1, 1): 1}
    figures = [
        {
            group * 3 + index: rows(0.0 if best[prompt, group] == index else -800.0, 5000.0 * index)
            for group in range(2)
            for index in range(3)
        }
        for prompt in range(2)
    ]
    body = answer(12)
    ess = with_picked(body, figures, 3, seed=1, fields_of=nothing, shows_token_ids=False)
    assert [each["text"] for each in body["choices"]] == ["2", "3", "7", "10"]
    assert [each["index"] for each in body["choices"]] == [0, 1, 2, 3]
    assert ess == 1
    assert {each["preference_candidates"]["log_partition"] for each in body["choices"]} == {0}
    assert {each["token_ids"] for each in body["choices"]} == {None}
    assert (body["choices"][0]["prompt_token_ids"], body["prompt_token_ids"]) == (None, None)
    assert body["usage"] == {"completion_tokens": 99}, "all candidates were generated"


def test_the_smallest_effective_number_and_the_attribution_of_the_picked() -> None:
    figures = [{0: rows(0.0), 1: rows(0.0), 2: rows(-800.0), 3: rows(-0.3)}]
    body = answer(4)
    ess = with_picked(
        body,
        figures,
        2,
        seed=None,
        fields_of=lambda each, ess: {"more": (sum(row[0] for row in each), ess)},
        shows_token_ids=True,
    )
    first, second = body["choices"]
    assert ess == 1
    assert (first["preference_candidates"]["ess"], second["preference_candidates"]["ess"]) == (2, 1)
    assert (first["more"], second["more"]) == ((0, 2), (-0.3, 1))
    assert second["token_ids"] == [7, 8]


@pytest.mark.parametrize("kept", [{}, {0: rows(0.0)}, {0: rows(0.0), 1: rows(0.0)[:1]}])
def test_lost_figures_pick_nothing(kept: Any) -> None:
    with pytest.raises(FiguresLostError, match="ask again") as caught:
        with_picked(answer(2), [kept], 2, seed=0, fields_of=nothing, shows_token_ids=False)
    assert caught.value.status == 503

"""Rewards, win rates and KLs of weightings whose law is known."""

from collections.abc import Sequence

import numpy as np
import pytest
from toy_engine import ToyEngine

from weights.evaluation import Evaluation, Weighting, evaluate, simplex_grid
from weights.prompts import Prompt


def _evaluation(rewards_RPJO: np.ndarray, rows: Sequence[Weighting]) -> Evaluation:
    return Evaluation(
        rows=tuple(rows),
        objectives=("a", "b"),
        members=("p", "q", "reference"),
        rewards_RPJO=rewards_RPJO,
        kl_RM=np.zeros((len(rows), 3)),
    )


ROWS = [
    Weighting(name="reference", weights_M=(0, 0, 1)),
    Weighting(name="p", weights_M=(1, 0, 0)),
    Weighting(name="q", weights_M=(0, 1, 0)),
    Weighting(name="both", weights_M=(0.5, 0.5, 0)),
]


def test_win_rate_counts_all_pairs_and_ties_half() -> None:
    rewards = np.zeros((2, 1, 2, 2))
    rewards[0, 0, :, 0] = [0, 1]
    rewards[1, 0, :, 0] = [1, 2]
    assert _evaluation(rewards, ROWS[:2]).wins_RPO[1, 0].tolist() == [0.875, 0.5]


@pytest.mark.parametrize(("shift", "word"), [(3.0, "beats"), (-3.0, "is not shown to beat")])
def test_verdict_says_whether_the_mixture_is_worth_it(shift: float, word: str) -> None:
    rewards = np.random.default_rng(0).normal(size=(4, 40, 4, 2))
    rewards[1] += [3, -3]
    rewards[2] += [-3, 3]
    rewards[3] += shift
    found = _evaluation(rewards, ROWS)
    assert f"both, {word} the best single policy, reference," in found.verdict()
    assert len(found.table().splitlines()) == 1 + len(ROWS)
    assert found.to_dict()["verdict"] == found.verdict()


def test_equal_mixture_does_not_beat_its_members() -> None:
    rewards = np.random.default_rng(1).normal(size=(4, 60, 4, 2))
    assert "is not shown to beat" in _evaluation(rewards, ROWS).verdict()
    assert _evaluation(rewards[:3], ROWS[:3]).verdict() == "No mixture was measured."


def test_grid_covers_the_simplex_without_its_vertices() -> None:
    grid = simplex_grid(3, 4)
    assert len(grid) == len(set(grid)) == 15 - 3
    assert all(sum(weights) == 1 and max(weights) < 1 for weights in grid)


def test_kls_are_those_of_the_deployed_mixture() -> None:
    engine = ToyEngine(num_policies=2)
    rows = [
        Weighting(name="reference", weights_M=(0.0, 0.0, 1.0)),
        Weighting(name="mixture", weights_M=(0.3, 0.7, 0.0)),
    ]

    def constant(prompts: Sequence[Prompt], answers: Sequence[str]) -> Sequence[float]:
        return [1.0] * len(answers)

    found = evaluate(
        engine,
        engine.prompts,
        rows,
        {"constant": constant},
        engine.spec.member_names,
        num_responses=500,
        max_tokens=4,
        seed=0,
    )
    assert found.kl_RM[0, 2] == 0.0
    exact_K = engine.deployed_kl(np.array([0.3, 0.7]))
    assert found.kl_RM[1, :2] == pytest.approx(exact_K, abs=0.03)
    assert found.rewards_RO.tolist() == [[1.0], [1.0]]
    assert found.wins_RPO[1].tolist() == [[0.5]] * len(engine.prompts)

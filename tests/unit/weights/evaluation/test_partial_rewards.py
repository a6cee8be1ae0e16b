"""Rewards that apply to some answers only: means and win rates leave the others out."""

import warnings

import numpy as np
import pytest

from prefmix.weights.engines.prompts import Prompt
from prefmix.weights.evaluation.evaluate import _judged
from prefmix.weights.evaluation.evaluation import Evaluation
from prefmix.weights.evaluation.verdict import verdict
from prefmix.weights.evaluation.weighting import Weighting
from prefmix.weights.fit.draws import Drawn
from prefmix.weights.fit.settings import FitError

NAN = float("nan")


def _evaluation(rewards_RPJO: np.ndarray) -> Evaluation:
    rows = tuple(Weighting(name=str(i), weights={str(i): 1.0}) for i in range(len(rewards_RPJO)))
    return Evaluation(
        rows=rows,
        objectives=("everywhere", "sometimes"),
        members=(),
        rewards_RPJO=rewards_RPJO,
        kl_RPM=np.zeros((*rewards_RPJO.shape[:2], 0)),
        tokens_R=np.ones(len(rows)),
    )


def test_answers_without_a_reward_are_left_out() -> None:
    """Two rows, three prompts, two answers; to the last prompt one objective does not apply."""
    everywhere = [[[0, 0], [0, 0], [0, 0]], [[1, 1], [1, 1], [1, 1]]]
    sometimes = [[[0, NAN], [4, 2], [NAN, NAN]], [[1, 1], [3, NAN], [NAN, NAN]]]
    found = _evaluation(np.stack([everywhere, sometimes], axis=-1).astype(float))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert found.rewards_RO.tolist() == [[0.0, 2.0], [1.0, pytest.approx(5 / 3)]]
        # Means of the two prompts that it applies to: 0 and 3, 1 and 3.
        assert found.reward_errors_RO[:, 1] == pytest.approx([1.5 / 2**0.5, 1 / 2**0.5])
        # The first prompt is won twice of two, the second once of two; the third does not count.
        assert found.wins_RPO[1, :2, 1].tolist() == [1.0, 0.5]
        assert np.isnan(found.wins_RPO[1, 2, 1])
        assert [rate for rate, _ in found.wins_RO[1]] == [1.0, 0.75]
        assert found.smallest_R[1][0] == 0.75
        assert "0.750" in found.table()
        assert verdict(found)


def test_rewards_without_gaps_are_measured_as_ever() -> None:
    rewards = np.random.default_rng(0).normal(size=(2, 5, 3, 2))
    found = _evaluation(rewards)
    assert np.allclose(found.rewards_RO, rewards.mean(axis=(1, 2)))
    errors = rewards.mean(axis=2).std(axis=1) / 5**0.5
    assert np.allclose(found.reward_errors_RO, errors)


def test_reward_that_applies_nowhere_is_refused() -> None:
    nowhere = np.empty((0, 2))
    drawn = Drawn(table=None, texts=["a", "b"], tokens=[[1], [2]], shifted_SN=nowhere)
    with pytest.raises(FitError, match="'never' applies to none of the answers of 'row'"):
        _judged([Prompt(id="1", text="p")], drawn, {"never": lambda *_: [None, None]}, "row")

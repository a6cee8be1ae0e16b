"""Derivatives of log p(y) from scores at weights nearby, against functions that are known."""

from __future__ import annotations

import numpy as np
import pytest

from prefmix.weights.engines.finite_differences import STEP, Differences
from prefmix.weights.fit.sequence_level.objective import Floats


def _quadratic(weights_K: Floats, *, num_responses: int = 5) -> tuple[Floats, Floats, Differences]:
    """(true derivatives less the one that all share, found ones) of random quadratic functions, of
    which the formulas of second order are exact."""
    rng = np.random.default_rng(0)
    count = len(weights_K)
    slope_NK = rng.normal(size=(num_responses, count))
    bend_NKK = rng.normal(size=(num_responses, count, count))

    def value_N(at_K: Floats) -> Floats:
        found_N: Floats = slope_NK @ at_K + np.einsum("nij,i,j->n", bend_NKK, at_K, at_K)
        return found_N

    near = Differences(weights_K)
    shifted_SN = np.reshape([value_N(point) for point in near.points_SK], (-1, num_responses))
    truth_NK = slope_NK + np.einsum("nij,j->ni", bend_NKK + bend_NKK.transpose(0, 2, 1), weights_K)
    truth_NK -= (truth_NK @ weights_K)[:, None]
    return truth_NK, near.scores(value_N(weights_K), shifted_SN), near


@pytest.mark.parametrize(
    "weights", [(0.5, 0.5), (0.2, 0.3, 0.5), (0.9, 0.0999, 0.0001), (1.0,), (0.001, 0.998, 0.001)]
)
def test_derivatives_are_those_of_the_function_up_to_a_shared_number(
    weights: tuple[float, ...],
) -> None:
    """Small weights have no room for a step down, and get two steps up."""
    truth_NK, found_NK, near = _quadratic(np.array(weights))
    assert found_NK == pytest.approx(truth_NK, abs=1e-9)
    assert near.points_SK.shape == (2 * (len(weights) - 1), len(weights))
    assert near.points_SK.sum(axis=1) == pytest.approx(1)
    assert near.points_SK.min(initial=0.0) >= 0


def test_policies_without_weight_have_none_and_cost_nothing() -> None:
    truth_NK, found_NK, near = _quadratic(np.array([0.0, 0.4, 0.6]))
    assert np.isnan(found_NK[:, 0]).all()
    assert found_NK[:, 1:] == pytest.approx(truth_NK[:, 1:], abs=1e-9)
    assert len(near.points_SK) == 2
    assert near.points_SK[0] == pytest.approx([0.0, 0.4 + STEP * 0.6, 0.6 - STEP * 0.6])

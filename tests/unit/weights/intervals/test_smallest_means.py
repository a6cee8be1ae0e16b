"""The intervals of smallest win rates and of their leads hold the truth.

tests/bench/bench_win_intervals.py counts more worlds, of more kinds.
"""

from __future__ import annotations

import numpy as np
import pytest

from prefmix.weights.intervals.smallest_means import lead, smallest_mean

NAN = np.nan


def test_values_are_plain_minima_and_missing_numbers_are_left_out() -> None:
    first = np.array([[0.5, 1.0], [0.7, NAN], [0.9, 0.0]])
    second = np.array([[NAN, 0.2], [NAN, 0.4], [NAN, 0.3]])
    assert smallest_mean(first)[0] == pytest.approx(0.5)
    assert smallest_mean(second)[0] == pytest.approx(0.3)
    value, (low, high) = lead(first, second)
    assert value == pytest.approx(0.2)
    assert low < value < high
    nothing = np.full((3, 2), NAN)
    for found in (smallest_mean(nothing), lead(nothing, first), lead(first, nothing)):
        assert np.isnan([found[0], *found[1]]).all()


def test_what_is_certain_has_no_width() -> None:
    even = np.full((20, 3), 0.5)
    assert smallest_mean(even) == (0.5, (0.5, 0.5))
    assert lead(even, even) == (0.0, (0.0, 0.0))
    assert lead(even[:1], 0.1 + even[:1])[1] == pytest.approx((-0.1, -0.1))


def test_leads_are_antisymmetric_and_one_column_is_students_interval() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 400, 3))
    value, (low, high) = lead(first, second)
    back, (back_low, back_high) = lead(second, first)
    assert (back, back_low, back_high) == pytest.approx((-value, -high, -low), abs=0.03)
    difference = (first - second)[:, :1]
    _, (low, high) = lead(first[:, :1], second[:, :1])
    half = 1.97 * difference.std(ddof=1) / 20
    assert high - low == pytest.approx(2 * half, rel=0.1)


@pytest.mark.parametrize("spread", [0.0, 0.12])
def test_intervals_hold_the_truth_where_percentiles_do_not(spread: float) -> None:
    """60 worlds; where rows win equally often in all objectives, percentiles held it in .69."""
    held = np.zeros(2)
    for seed in range(60):
        rng = np.random.default_rng(seed)
        rates = [np.clip(centre + spread * rng.normal(size=3), 0.1, 0.9) for centre in (0.6, 0.55)]
        wins = [rng.binomial(8, rng.beta(6 * rate, 6 - 6 * rate, (64, 3))) / 8 for rate in rates]
        _, (low, high) = smallest_mean(wins[0])
        held[0] += low <= rates[0].min() <= high
        _, (low, high) = lead(*wins)
        held[1] += low <= rates[0].min() - rates[1].min() <= high
    assert held[0] >= 54
    assert held[1] >= 52

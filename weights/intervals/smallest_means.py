"""95 % intervals of the smallest of several means over prompts, and of a difference of two such.

The smallest of noisy means is too small on average, and its bootstrap copies are so once more:
percentiles miss. The interval of one smallest mean is that of the fit
(`prefmix.weights.intervals.means`). A difference of two,

    L = min_f a_f - min_g b_g = min_f max_g (a_f - b_g),

gets as its low end the same expression of (a_f - b_g) - c se_fg, and as its high end that of (a_f -
b_g) + c' se_fg. c and c' are the smallest numbers with which bootstrap copies miss in 2.5 % at
either end, whichever of four truths is assumed: of either set all but the smallest mean are AWAY
standard errors larger than they seem, or those within NEAR standard errors of the smallest are
equal to it.

An observation may lack some of the quantities (NaN). They then count as their mean, and the others
as that much more, which leaves means and standard errors as they are without the missing ones.

Shapes: P prompts, F and G means, B bootstrap copies.
"""

from __future__ import annotations

import numpy as np
from scipy.special import stdtrit

from prefmix.weights.intervals.means import Floats, Interval, interval_of_largest

NEAR, AWAY = 2.0, 0.5
_NUM_COPIES = 500
_TAIL, _NORMAL = 0.025, 1.959964
_WIDEST, _HALVINGS = 5.0, 12
"""The largest c that is looked for, and the steps in which it is found."""


def smallest_mean(values_PF: Floats, *, seed: int = 0) -> tuple[float, Interval]:
    """The smallest mean over prompts, and its interval; those without observations are left out.

    Returns: NaNs if there are no observations at all.
    """
    known_PF = _known(values_PF)
    if not known_PF.shape[1]:
        return np.nan, (np.nan, np.nan)
    value, (low, high) = interval_of_largest(-known_PF, seed=seed)
    return -value, (-high, -low)


def lead(first_PF: Floats, second_PG: Floats, *, seed: int = 0) -> tuple[float, Interval]:
    """The smallest mean of one set less that of another, and its interval.

    Args:
      first_PF, second_PG: observations of the same prompts; NaN where there is none.
      seed: seed of the bootstrap.
    Returns: NaNs if a set has no observations at all.
    """
    first_PF, second_PG = _known(first_PF), _known(second_PG)
    if not first_PF.shape[1] or not second_PG.shape[1]:
        return np.nan, (np.nan, np.nan)
    num_prompts = len(first_PF)
    mean_F, mean_G = first_PF.mean(axis=0), second_PG.mean(axis=0)
    difference_FG = mean_F[:, None] - mean_G
    if num_prompts == 1:
        only = float(_minimax(difference_FG))
        return only, (only, only)
    pairs_PFG = first_PF[:, :, None] - second_PG[:, None, :]
    error_FG = pairs_PFG.std(axis=0, ddof=1) / np.sqrt(num_prompts)
    counts_BP = np.random.default_rng(seed).multinomial(
        num_prompts, np.full(num_prompts, 1 / num_prompts), _NUM_COPIES
    )
    noise_BFG = np.tensordot(counts_BP / num_prompts, pairs_PFG, axes=1) - difference_FG
    truths = [
        own_F[:, None] - own_G for own_F in _extremes(first_PF) for own_G in _extremes(second_PG)
    ]
    low_c, high_c = (
        max(_needed(truth_FG, noise_BFG, sign * error_FG) for truth_FG in truths)
        for sign in (-1, 1)
    )
    # Below some dozen prompts the bootstrap's tails are as light as the normal distribution's.
    student = float(stdtrit(num_prompts - 1, 1 - _TAIL)) / _NORMAL
    value, low, high = (
        float(_minimax(difference_FG + student * shift * error_FG))
        for shift in (0.0, -low_c, high_c)
    )
    return value, (low, high)


def _needed(truth_FG: Floats, noise_BFG: Floats, error_FG: Floats) -> float:
    """The smallest c with which few copies' ends lie on the wrong side of the truth.

    Args:
      error_FG: negative for a low end.
    """
    truth, is_low = _minimax(truth_FG), bool((error_FG < 0).any())
    inside, outside = _WIDEST, 0.0
    for _ in range(_HALVINGS):
        middle = (inside + outside) / 2
        ends_B = _minimax(truth_FG + noise_BFG + middle * error_FG)
        missed = (ends_B > truth) if is_low else (ends_B < truth)
        if missed.mean() > _TAIL:
            outside = middle
        else:
            inside = middle
    return inside


def _extremes(values_PF: Floats) -> tuple[Floats, Floats]:
    """The means, those above the smallest further away from it, or those near it equal to it."""
    mean_F = values_PF.mean(axis=0)
    above_PF = values_PF - values_PF[:, [mean_F.argmin()]]
    error_F = above_PF.std(axis=0, ddof=1) / np.sqrt(len(values_PF))
    tied_F = np.where(mean_F - mean_F.min() <= NEAR * error_F, mean_F.min(), mean_F)
    return mean_F + AWAY * error_F, tied_F


def _minimax(difference_FG: Floats) -> Floats:
    found: Floats = difference_FG.max(axis=-1).min(axis=-1)
    return found


def _known(values_PF: Floats) -> Floats:
    """The quantities that have observations, none of them missing."""
    has_PF = np.isfinite(values_PF)
    values_PF, has_PF = values_PF[:, has_PF.any(axis=0)], has_PF[:, has_PF.any(axis=0)]
    count_F = has_PF.sum(axis=0)
    mean_F = np.where(has_PF, values_PF, 0.0).sum(axis=0) / count_F
    more_F = len(values_PF) / count_F
    found_PF: Floats = np.where(has_PF, mean_F + more_F * (values_PF - mean_F), mean_F)
    return found_PF

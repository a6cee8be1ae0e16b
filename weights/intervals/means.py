"""95 % intervals of means over prompts, and of the largest of several such means.

The largest of noisy means is too large on average, and its bootstrap copies are so once more. A
percentile interval of the maximum is therefore too high, and one that is shifted by the estimated
bias too narrow. The intervals here never look at the maximum's own distribution: the low end holds
for all means at once (the bootstrap of the largest studentised error, "max-T"), the high end holds
for the one mean that is truly largest.

Shapes: P prompts, F means, B bootstrap samples.
Source: Westfall and Young 1993, Resampling-Based Multiple Testing, for max-T.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

Floats = NDArray[np.float64]
Interval = tuple[float, float]

NUM_BOOTSTRAP = 1000
_TAIL = 0.975
_NORMAL = 1.959964
"""The same quantile of the normal distribution."""


def mean_intervals(values_PF: Floats) -> list[Interval]:
    """The interval of each mean over prompts, by Student's t; a point if there is one prompt."""
    mean_F, error_F = _errors(values_PF)
    half_F = _student(len(values_PF)) * error_F
    return list(zip((mean_F - half_F).tolist(), (mean_F + half_F).tolist(), strict=True))


def known_mean_intervals(values_PF: Floats) -> list[tuple[float, Interval]]:
    """The mean of each column and its interval, by Student's t; observations that are missing
    (NaN) are left out. NaNs for a column without any."""
    found = []
    for values_P in values_PF.T:
        known_P1 = values_P[np.isfinite(values_P), None]
        if not len(known_P1):
            found.append((np.nan, (np.nan, np.nan)))
            continue
        (interval,) = mean_intervals(known_P1)
        found.append((float(known_P1.mean()), interval))
    return found


def interval_of_largest(
    values_PF: Floats, *, is_picked: bool = False, seed: int = 0
) -> tuple[float, Interval]:
    """The largest mean over prompts, and its interval; a point if there is one prompt.

    Args:
      values_PF: one observation a prompt of each of F quantities, whose errors may be dependent.
      is_picked: the F quantities belong to a choice that was made on these very prompts, so that
        all errors count at the high end, too.
      seed: seed of the bootstrap.
    """
    mean_F, error_F = _errors(values_PF)
    value = float(mean_F.max())
    student = _student(len(values_PF))
    certain = error_F <= 1e-12 * (1 + np.abs(mean_F))
    if certain.all():
        return value, (value, value)
    # Below some dozen prompts the bootstrap's tails are as light as the normal distribution's.
    together = student / _NORMAL * _largest_error(values_PF[:, ~certain], seed=seed)
    low = float((mean_F - together * error_F).max())
    high = float((mean_F + (together if is_picked else student) * error_F).max())
    return value, (low, high)


def above_zero(found: tuple[float, Interval]) -> tuple[float, Interval]:
    """The same for a quantity that cannot be negative."""
    value, (low, high) = found
    return max(0.0, value), (max(0.0, low), max(0.0, high))


def _largest_error(values_PF: Floats, *, seed: int) -> float:
    """The 97.5 % quantile of the largest studentised error of F means."""
    num_prompts = len(values_PF)
    mean_F, error_F = _errors(values_PF)
    # A bootstrap of means needs only the number of times that each prompt is drawn.
    counts_BP = np.random.default_rng(seed).multinomial(
        num_prompts, np.full(num_prompts, 1 / num_prompts), NUM_BOOTSTRAP
    )
    errors_BF = (counts_BP @ values_PF / num_prompts - mean_F) / error_F
    return float(np.quantile(errors_BF.max(axis=1), _TAIL))


def _errors(values_PF: Floats) -> tuple[Floats, Floats]:
    """(means, their standard errors); the errors are 0 for a single prompt."""
    num_prompts = len(values_PF)
    spread_F = values_PF.std(axis=0, ddof=1) if num_prompts > 1 else np.zeros(values_PF.shape[1])
    return values_PF.mean(axis=0), spread_F / np.sqrt(num_prompts)


def _student(num_prompts: int) -> float:
    return float(stdtrit(max(1, num_prompts - 1), _TAIL))

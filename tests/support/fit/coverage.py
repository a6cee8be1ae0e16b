"""Steps of the coverage tables of tests/bench: does an interval hold the truth, and how often?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from prefmix.weights.fit.sequence_level.objective import Floats
from prefmix.weights.fit.token_level.deployed import REACH
from prefmix.weights.fit.token_level.on_policy import Measured
from support.fit.tree_world import Sample


def holds(interval: tuple[float, float], truth: float) -> bool:
    """True if the interval holds the truth, up to rounding."""
    low, high = interval
    return bool(low - 1e-9 <= truth <= high + 1e-9)


def coverage_rows(hits: Mapping[tuple[str, ...], Sequence[bool]]) -> list[list[str]]:
    """The rows of a table: the names, the share of intervals that hold, and their number."""
    return [[*name, f"{np.mean(held):.3f}", str(len(held))] for name, held in sorted(hits.items())]


def largest_fall(
    cost_A: Floats, jacobian_AK: Floats, weights_K: Floats, multiplier_A: Floats
) -> float:
    """The true value that `falls` bounds: cost over the multipliers' mean, and the way down."""
    slope_K = np.where(weights_K > 0, multiplier_A @ jacobian_AK, 0.0)
    ends = (np.eye(len(weights_K)) - weights_K)[weights_K > 0]
    return float(cost_A.max() - multiplier_A @ cost_A + REACH * (-ends @ slope_K).max())


def measured_of(found: Sample, each: int) -> Measured:
    """A sample as an engine hands it to a fit, `each` responses to a prompt one after the other."""
    return Measured(
        prompt_of_N=np.repeat(np.arange(len(found.logprob_N) // each), each),
        logprob_N=found.logprob_N,
        policy_logprobs_NK=found.policy_logprobs_NK,
        kl_NK=found.kl_NK,
        entropy_N=found.entropy_N,
    )

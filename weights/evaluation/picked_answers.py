"""Rows whose answers are picked from candidates, as `preference_candidates` does while serving."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from prefmix.mixing.candidates import pick
from prefmix.weights.fit.draws import Drawn
from prefmix.weights.fit.score_table import LOGPROB, PROPOSAL


def picked(drawn: Drawn, weights: Mapping[str, float], num_candidates: int, *, seed: int) -> Drawn:
    """Leaves one of each `num_candidates` answers that stand together.

    The sum of log Z over the tokens of an answer is sum_k w_k log pi_k(answer) less its
    log-probability under the mixture that drew it.

    Args:
      drawn: answers of the token-level mixture, scored under every member with weight.
      weights: of the members.
      num_candidates: candidates for an answer; divides the number of answers to a prompt.
      seed: of the picks.
    """
    log_partition_N = -drawn.table[PROPOSAL].to_numpy()
    for name, weight in weights.items():
        log_partition_N = log_partition_N + weight * drawn.table[f"{LOGPROB}{name}"].to_numpy()
    kept = [
        start + pick(group.tolist(), seed=seed, place=place).index
        for place, (start, group) in enumerate(
            (start, log_partition_N[start : start + num_candidates])
            for start in range(0, len(log_partition_N), num_candidates)
        )
    ]
    return replace(
        drawn,
        table=drawn.table.take(kept),
        texts=[drawn.texts[row] for row in kept],
        tokens=[drawn.tokens[row] for row in kept],
        shifted_SN=drawn.shifted_SN[:, np.array(kept)],
    )

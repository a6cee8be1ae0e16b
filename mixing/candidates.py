"""The choice of one answer among candidates, which makes an answer of the token-level mixture one
of the sequence-level product.

The served mixture normalises every token by its own Z_t = sum_v prod_k pi_k(v)^w_k. The product of
whole sequences, prod_k pi_k(y)^w_k up to one constant, has the density prod_t Z_t relative to it.
So of n answers drawn from the mixture one is picked with probability

    a_j = prod_t Z_t(y_j) / sum_i prod_t Z_t(y_i)

whose law is the sequence-level product as n grows; with finite n it lies between the two. The
effective number of candidates, 1 / sum_j a_j^2, is n if all weigh the same and 1 if one outweighs
all others: then the mixture has hardly drawn what the product wants, and more candidates are
needed than there were.

Source: Rubin 1987, sampling-importance-resampling; Kish 1965 for the effective number.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

LOW_SHARE = 0.25
"""The share of the way from 1 to n below which the effective number of n candidates is low."""

_TAG = b"prefmix candidates"


@dataclass(frozen=True, kw_only=True, slots=True)
class Picked:
    """One of n candidates."""

    index: int
    ess: float
    """The effective number of candidates, from 1 to n."""
    log_partition: float
    """sum_t log Z_t of the candidate, in nats."""
    num_candidates: int

    @property
    def is_low(self) -> bool:
        """True if the effective number is below `floor`."""
        return self.ess < floor(self.num_candidates)


def floor(num_candidates: int) -> float:
    """The effective number below which n candidates are too few."""
    return 1 + LOW_SHARE * (num_candidates - 1)


def shares(log_partitions: Sequence[float]) -> list[float]:
    """The probability a_j of each candidate.

    Args:
      log_partitions: sum_t log Z_t of each, in nats.
    Raises: ValueError if one is NaN or plus infinity, or all are minus infinity.
    """
    highest = max(log_partitions)
    if not math.isfinite(highest) or any(map(math.isnan, log_partitions)):
        raise ValueError(f"the log partitions of the candidates are {list(log_partitions)!r:.200}")
    masses = [math.exp(each - highest) for each in log_partitions]
    total = math.fsum(masses)
    return [mass / total for mass in masses]


def pick(log_partitions: Sequence[float], *, seed: int | None = None, place: int = 0) -> Picked:
    """Picks one candidate with probability a_j.

    Args:
      log_partitions: sum_t log Z_t of each candidate, in nats; at least one.
      seed: the same seed and place pick alike; None picks at random.
      place: of the pick among those that have one seed.
    Raises: ValueError as `shares`.
    """
    share_of = shares(log_partitions)
    at = random.random() if seed is None else _uniform(seed, place)
    # Rounded shares may add up to less than 1, even to less than `at`.
    heaviest = share_of.index(max(share_of))
    index = next((i for i, passed in enumerate(accumulate(share_of)) if at < passed), heaviest)
    return Picked(
        index=index,
        ess=1 / math.fsum(share * share for share in share_of),
        log_partition=log_partitions[index],
        num_candidates=len(log_partitions),
    )


def _uniform(seed: int, place: int) -> float:
    """A number in [0, 1) that depends on seed and place alone.

    It is hashed, not drawn from a generator with this seed: the candidates' own numbers come from
    such generators.
    """
    digest = hashlib.blake2b(f"{seed}.{place}".encode(), digest_size=8, person=_TAG[:16]).digest()
    return (int.from_bytes(digest) >> 11) * 2.0**-53

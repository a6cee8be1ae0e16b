"""Prometheus metrics of answers that are picked from candidates."""

from __future__ import annotations

from prometheus_client import Counter

_ANSWERS = Counter("prefmix_candidate_answers", "Answers that were picked from several candidates.")
_CANDIDATES = Counter("prefmix_candidates", "Candidates of prefmix_candidate_answers_total.")
_EFFECTIVE = Counter(
    "prefmix_candidates_effective",
    "Sum of the effective numbers of candidates of prefmix_candidate_answers_total.",
)
_LOW = Counter(
    "prefmix_candidates_low",
    "Answers of prefmix_candidate_answers_total whose effective number is low.",
)


def count_picked(num_candidates: int, ess: float, *, is_low: bool) -> None:
    """Counts one answer.

    Args:
      num_candidates: the candidates that it was picked from.
      ess: their effective number.
      is_low: true if that is below the floor of `prefmix.mixing.candidates`.
    """
    _ANSWERS.inc()
    _CANDIDATES.inc(num_candidates)
    _EFFECTIVE.inc(ess)
    _LOW.inc(is_low)

"""`preference_attribution`: which policy carried an answer, computed from the engine's figures.

A request asks with `"preference_attribution": true`, or `"tokens"` for every token; each choice of
the answer (when streaming, its last chunk) then has

    {"num_tokens": 12, "mean_logprob": -0.8, "mean_entropy": 1.1, "log_partition": -2.3,
     "policies": {"helpful": {"mean_logprob": -0.7, "mean_kl": 0.3, "agreement": 0.75}, ...},
     "tokens": [{"wanted_by": "helpful", "logprobs": {"helpful": -0.2, ...}}, ...]}

in nats. `mean_kl` is KL(mixture || policy), `agreement` the share of tokens that were the policy's
own first choice, `log_partition` the sum of log Z over the tokens: the log importance weight from
the served, token-level mixture to the sequence-level product. `wanted_by` is the policy that gave
the token the highest probability. A policy with weight 0 has null everywhere: it takes no part in
the mixture, and an answer must not show that the policy ran because of other requests.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from prefmix.mixing.shown_value import shown
from prefmix.mixing.ways_to_mix import Mixing
from prefmix.server.http.errors import RequestError

FIELD = "preference_attribution"


class Attribution:
    """The attribution that a request asks for, and the keys of its figures in the engine.

    The engine keeps the figures of each prompt under a key of its own.
    """

    def __init__(self, wish: object, *, for_candidates: bool = False) -> None:
        """Args:
        wish: the body's field, unchecked.
        for_candidates: true has the figures kept, whatever the wish is.
        Raises: RequestError unless the wish is true, "tokens", false or absent.
        """
        if wish not in (None, False, True, "tokens") or (
            isinstance(wish, int | float) and (not isinstance(wish, bool))
        ):
            raise RequestError(
                f'{FIELD} is {shown(wish)}; expected true, false or "tokens"',
                param=FIELD,
            )
        self.is_wanted = bool(wish)
        self.is_measured = self.is_wanted or for_candidates
        """True if the engine keeps figures for the request."""
        self.by_token = wish == "tokens"
        self._name = uuid.uuid4().hex if self.is_measured else ""
        self._num_prompts = 0

    def check(self, mixing: Mixing) -> None:
        """Raises RequestError if it cannot be measured of an answer that is mixed so."""
        if self.is_wanted and mixing == "parameters":
            raise RequestError(
                f"{FIELD} cannot be measured where parameters are mixed, as the policies do not "
                'run one by one; ask with preference_mixing "logits", or score the finished answer '
                'under each policy alone (preference_weights {"POLICY": 1})',
                param=FIELD,
            )

    def next_key(self) -> str:
        """The key for the figures of the request's next prompt."""
        self._num_prompts += 1
        return f"{self._name}.{self._num_prompts - 1}"

    @property
    def keys(self) -> list[str]:
        """The keys returned so far."""
        return [f"{self._name}.{prompt}" for prompt in range(self._num_prompts)]

    def key_and_sample(self, choice: int, *, num_samples: int) -> tuple[str, int]:
        """The key of a choice's prompt, and the index of the choice among the prompt's samples."""
        return f"{self._name}.{choice // num_samples}", choice % num_samples


def describe(
    rows: Sequence[Sequence[float]], weights: Mapping[str, float], *, by_token: bool
) -> dict[str, Any]:
    """Computes the field of one choice.

    Args:
      rows: a row of figures per token, as MixtureStatisticsCollector.take_request returns them.
      weights: the request's weight of each member, in weight order.
      by_token: True describes each token as well.
    """
    count = len(weights)
    by_name: dict[str, Any] = {}
    for index, (name, weight) in enumerate(weights.items()):
        if weight == 0:
            by_name[name] = dict.fromkeys(("mean_logprob", "mean_kl", "agreement"))
            continue
        by_name[name] = {
            "mean_logprob": _mean(row[3 + count + index] for row in rows),
            "mean_kl": _mean(row[3 + index] for row in rows),
            "agreement": _mean(
                row[3 + 2 * count + index] for row in rows if not math.isnan(row[3 + count + index])
            ),
        }
    described: dict[str, Any] = {
        "num_tokens": len(rows),
        "mean_logprob": _mean(row[2] for row in rows),
        "mean_entropy": _mean(row[1] for row in rows),
        "log_partition": _number(math.fsum(row[0] for row in rows)),
        "policies": by_name,
    }
    if by_token:
        described["tokens"] = [
            _token(dict(zip(weights, row[3 + count : 3 + 2 * count], strict=True)), weights)
            for row in rows
        ]
    return described


def _token(logprobs: Mapping[str, float], weights: Mapping[str, float]) -> dict[str, Any]:
    known = {
        name: value
        for name, value in logprobs.items()
        if weights[name] != 0 and not math.isnan(value)
    }
    return {
        "wanted_by": max(known, key=lambda name: known[name]) if known else None,
        "logprobs": {name: _number(known.get(name, math.nan)) for name in logprobs},
    }


def _mean(values: Any) -> float | None:
    known = [value for value in values if not math.isnan(value)]
    return _number(math.fsum(known) / len(known)) if known else None


def _number(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None

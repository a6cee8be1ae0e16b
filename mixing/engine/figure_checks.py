"""Checks of the figures that the engine's check of itself has measured.

A policy beside others, and as a mean of parameters, must predict what it predicts alone.

Shapes: M members, F = 3 + 3 M figures of a token (prefmix.mixing.batch.statistics).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from prefmix.mixing.spec import MixtureSpec


class SelfCheckError(ValueError):
    """An engine that cannot serve its mixture; the text is one sentence."""


def is_sound(figures_F: Sequence[float], weights_M: Sequence[float]) -> bool:
    """True if no figure of a token is NaN or +inf that should be a number."""
    num_members = len(weights_M)
    log_partition, entropy, logprob = figures_F[:3]
    by_member = figures_F[3 + num_members : 3 + 2 * num_members]
    numbers = [
        logprob,
        *(each for each, weight in zip(by_member, weights_M, strict=True) if weight),
    ]
    return (
        math.isfinite(log_partition)
        and math.isfinite(entropy)
        and all(each < math.inf for each in numbers)
    )


def check_agreement(
    spec: MixtureSpec,
    alone: Sequence[Sequence[Sequence[float]]],
    together: Sequence[Sequence[float]],
    *,
    tolerance: float,
) -> None:
    """Checks that the mixture's log-probabilities are those of its policies.

    Args:
      alone: per member with a KV cache, the F figures of each token that it drew alone.
      together: the figures of the same tokens under equal weights.
      tolerance: in nats.
    Raises: SelfCheckError naming the first policy that differs.
    """
    num_members = spec.num_kv_members
    first = 3 + spec.num_members
    for place, figures in enumerate(together):
        own = [alone[member][place][first + member] for member in range(num_members)]
        for name, one, other in zip(
            spec.member_names[:num_members],
            own,
            figures[first : first + num_members],
            strict=True,
        ):
            if not (one == other or abs(one - other) <= tolerance):
                raise SelfCheckError(
                    f"policy {name!r} gives a token the log-probability {other:.3f} beside the "
                    f"others and {one:.3f} alone, so the mixture would be wrong; serve it without "
                    "the vLLM flags that change how layers are computed, and report it"
                )
        expected = sum(own) / num_members - figures[0]
        if math.isfinite(expected) and not abs(expected - figures[2]) <= tolerance:
            raise SelfCheckError(
                f"the mixture of {', '.join(spec.member_names)} gives a token the log-probability "
                f"{figures[2]:.3f}, but its policies' own make {expected:.3f}; serve it without "
                "the vLLM flags that change how logits are computed, and report it"
            )


def check_parameters(
    name: str,
    alone: Sequence[Sequence[float]],
    averaged: Sequence[Sequence[float]],
    *,
    tolerance: float,
) -> None:
    """Checks that all the weight on one policy is that policy where parameters are mixed, too.

    Args:
      alone, averaged: the F figures of the same tokens, by logits and by parameters.
      tolerance: in nats.
    Raises: SelfCheckError naming the policy.
    """
    for one, other in zip(alone, averaged, strict=True):
        if not (one[2] == other[2] or abs(one[2] - other[2]) <= tolerance):
            raise SelfCheckError(
                f"policy {name!r} gives a token the log-probability {other[2]:.3f} as a mean of "
                f"parameters and {one[2]:.3f} alone, so mixed parameters would be wrong; serve it "
                "without the vLLM flags that change how layers are computed, and report it"
            )

"""The two ways to mix policies, from which each request may choose.

logits: every policy predicts the next token, and the predictions are mixed. parameters: one model
predicts it, whose parameters are the policies' mean by the same weights, at the cost of one policy.
"""

from __future__ import annotations

from typing import Literal, get_args

from prefmix.mixing.shown_value import shown

Mixing = Literal["logits", "parameters"]
MIXINGS: tuple[Mixing, ...] = get_args(Mixing)


class MixingError(ValueError):
    """A way to mix that does not exist, or not for these policies."""


def check_mixing(mixing: object, *, has_base: bool) -> Mixing:
    """Returns `mixing` if the policies can be mixed so.

    Args:
      has_base: true if the policies are adapters of one base.
    Raises: MixingError.
    """
    for allowed in MIXINGS:
        if mixing == allowed:
            if allowed == "parameters" and not has_base:
                raise MixingError(
                    "full checkpoints have no parameters to mix by request; mix logits, serve "
                    "adapters of one base, or average them once with `prefmix average`"
                )
            return allowed
    raise MixingError(f"{shown(mixing)} is no way to mix; allowed: {', '.join(MIXINGS)}")

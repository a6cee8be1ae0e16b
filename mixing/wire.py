"""Keys under which a request's weights and way of mixing travel from the front process to the
engine.

`SamplingParams.extra_args[WEIGHTS_KEY]` is a list of M floats in member order. Users of plain
`vllm serve` can send the same through vLLM's own `vllm_xargs` body field.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prefmix.mixing.ways_to_mix import Mixing

WEIGHTS_KEY = "prefmix_weights"

MIXING_KEY = "prefmix_mixing"
"""Key of one of prefmix.mixing.ways_to_mix.MIXINGS; without it a request
mixes as the server does by default."""
HEADS_KEY = "prefmix_heads"
"""Key of M lists of token ids in member order, the beginnings of the policies' own prompts, or None
for a policy that reads the engine's (prefmix.mixing.prompts.request_heads)."""
MEASURE_KEY = "prefmix_measure"
"""Key of a string. The request's tokens are measured and their figures kept under the string
(prefmix.mixing.batch.statistics)."""

SELF_CHECK_METHOD = "prefmix_self_check"
"""The name under which vLLM's EngineCore has prefmix.mixing.engine.self_check."""

PULSE_METHOD = "prefmix_pulse"
"""The name under which vLLM's EngineCore has prefmix.mixing.engine.pulse."""

SLOT_METHOD = "prefmix_slot"
"""The name under which vLLM's EngineCore has prefmix.mixing.slots.commands."""

FAILED_REASON = "error"
"""Finish reason of a request that the engine has given up. No client can bring it about: a stop
string that the text contains always comes with the finish reason `stop` (vLLM 0.32)."""

FAILED_PREFIX = "prefmix_failed:"
"""Beginning of the stop reason of a request that policies have failed; their names follow."""


def to_extra_args(
    weights_M: Sequence[float],
    mixing: Mixing = "logits",
    heads_M: Sequence[Sequence[int] | None] | None = None,
) -> dict[str, Any]:
    """The entries of `extra_args` that carry weights, way of mixing and own prompts."""
    carried: dict[str, Any] = {WEIGHTS_KEY: list(weights_M), MIXING_KEY: mixing}
    if heads_M is not None:
        carried[HEADS_KEY] = [None if each is None else list(each) for each in heads_M]
    return carried


def from_extra_args(extra_args: Mapping[str, Any] | None) -> Any | None:
    """The value under the key, unchecked (see `simplex.check_weights`); None without one."""
    return None if extra_args is None else extra_args.get(WEIGHTS_KEY)


def mixing_of(extra_args: Mapping[str, Any] | None) -> object:
    """The value under the key, unchecked; None without one."""
    return None if extra_args is None else extra_args.get(MIXING_KEY)


def heads_of(extra_args: Mapping[str, Any] | None) -> object:
    """The value under the key, unchecked; None without one."""
    return None if extra_args is None else extra_args.get(HEADS_KEY)


def measured_as(extra_args: Mapping[str, Any] | None) -> str | None:
    """The key under which a request's figures are kept; None if it is not measured."""
    key = None if extra_args is None else extra_args.get(MEASURE_KEY)
    return key if isinstance(key, str) else None


def to_stop_reason(policies: Sequence[str]) -> str:
    """The stop reason of a request that `policies` have failed."""
    return FAILED_PREFIX + ",".join(policies)


def failed_policies(finish_reason: object, stop_reason: object) -> tuple[str, ...]:
    """The policies that have failed a request; none if it ended in another way.

    A stop reason alone proves nothing, for it may be any stop string of a client's.

    Args:
      finish_reason: of vLLM's completion; None while it runs.
      stop_reason: of vLLM's completion.
    """
    if finish_reason != FAILED_REASON:
        return ()
    if not isinstance(stop_reason, str) or not stop_reason.startswith(FAILED_PREFIX):
        return ()
    return tuple(stop_reason.removeprefix(FAILED_PREFIX).split(","))

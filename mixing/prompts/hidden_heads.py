"""Keeps prompts out of vLLM's log, which prints sampling parameters: of each request if it is asked
to, and of all requests of a step that failed.
"""

from __future__ import annotations

import functools
from typing import Any

from prefmix.mixing import wire


def hide_heads() -> None:
    """Makes vLLM print the lengths of heads instead of their tokens. May run repeatedly."""
    from vllm.sampling_params import SamplingParams

    original = SamplingParams.__repr__
    if hasattr(original, "__wrapped__"):
        return

    @functools.wraps(original)
    def shown(self: Any) -> str:
        heads = wire.heads_of(self.extra_args)
        if heads is None:
            return original(self)
        copy = self.clone()
        copy.extra_args = {**self.extra_args, wire.HEADS_KEY: _lengths(heads)}
        return original(copy)

    SamplingParams.__repr__ = shown


def _lengths(heads: object) -> str:
    if not isinstance(heads, list):
        return "hidden"
    return f"{[len(each) if isinstance(each, list) else None for each in heads]} tokens"

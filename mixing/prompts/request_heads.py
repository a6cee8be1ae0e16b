"""Heads of a request: each member may read a beginning of its own before the text that all share.

A prompt is a *head*, of which each member may have its own, and a *tail* for all. The engine's
prompt is the longest head and the tail. Member m's prompt is aligned with it on the right, so that
the tail has the same engine positions for all:

    engine position i is position i - s_m of member m,  s_m = (longest head) - (head of m)

s_m is the member's *shift*. It has no row for i < s_m.

Nothing here raises on user data, because an exception in a worker ends the server: wrong heads are
refused in the front process (prefmix.mixing.engine.logits_processor).

Shapes: M members, H_m tokens in the head of member m.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from prefmix.mixing import wire

_LARGEST_ID = 2**31 - 1


@dataclass(frozen=True, eq=False)
class RequestHeads:
    """The heads of one request."""

    ids_M: tuple[np.ndarray | None, ...]
    """Per member int64 [H_m]; None for a member that reads the engine's prompt as it is, or that
    does not run."""

    @classmethod
    def of_request(
        cls, extra_args: Mapping[str, Any] | None, num_members: int
    ) -> RequestHeads | None:
        """Reads what a request carries; None if all members read the same prompt. Never raises."""
        raw = wire.heads_of(extra_args)
        if not isinstance(raw, Sequence) or len(raw) != num_members:
            return None
        if not all(each is None or are_ids(each) for each in raw) or all(not each for each in raw):
            return None
        return cls(tuple(None if each is None else np.array(each, dtype=np.int64) for each in raw))

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest head: the part of the engine's prompt that is no tail."""
        return max(len(ids) for ids in self.ids_M if ids is not None)

    @cached_property
    def shifts_M(self) -> tuple[int, ...]:
        """The shift of each member."""
        return tuple(0 if ids is None else self.longest - len(ids) for ids in self.ids_M)

    def digest(self) -> str:
        """A name of the heads: members that have read others have other cache blocks."""
        state = hashlib.sha256()
        for ids in self.ids_M:
            state.update(b"-" if ids is None else b"+" + len(ids).to_bytes(8, "big"))
            state.update(b"" if ids is None else ids.tobytes())
        return state.hexdigest()[:32]


def are_ids(value: object) -> bool:
    """True for a list of token ids that fit the engine's messages."""
    return isinstance(value, list) and all(
        type(each) is int and 0 <= each <= _LARGEST_ID for each in value
    )

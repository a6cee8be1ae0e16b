"""Requests that the engine ended with an error: a policy has failed, or a structured output has.

A policy that computed NaN or infinity is named in the stop reason (prefmix.mixing.engine.scheduler)
and becomes an error 500, a metric, and a log line, at most one a minute for each policy. What a
client writes as a stop string is never taken for the engine's word: that comes with a finish reason
of its own, and names members of the mixture only.

A structured output that allows no token is the client's error. It may refer to itself alone, or ask
for text that the policies have no tokens for, and shows only when its turn comes.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextvars import ContextVar
from typing import Any

from prefmix.mixing import wire
from prefmix.server.telemetry.metrics import POLICY_FAILURES, policy_label
from prefmix.server.telemetry.stderr_logger import to_stderr

LOG_INTERVAL_S = 60.0
"""Shortest interval between two log lines about one policy."""

failure: ContextVar[str | None] = ContextVar("failure", default=None)
"""The failure of the request that this task answers; None if it has not failed."""

_CONSTRAINTS = ("json", "regex", "choice", "grammar", "structural_tag", "json_object")

_LOGGER = logging.getLogger("prefmix.faults")


def set_up() -> None:
    """Sends the lines to stderr, whatever vLLM's log level is."""
    to_stderr(_LOGGER, logging.Formatter("%(asctime)s prefmix: %(message)s"))


class FailedPolicies:
    """A wrapper of an engine client's `generate`; one per API process."""

    def __init__(
        self,
        generate: Callable[..., Any],
        member_names: Sequence[str],
        *,
        named: Callable[[str], str] = str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Args:
        generate: the engine client's own method.
        member_names: the members of the mixture, which alone can fail.
        named: the name for people of a member, which differs for members that are slots.
        clock: seconds since any fixed moment.
        """
        self._named = named
        self._generate = generate
        self._member_names = frozenset(member_names)
        self._clock = clock
        self._num_silent: dict[str, int] = {}
        self._said_at: dict[str, float] = {}

    async def generate(self, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        """Yields the engine's outputs.

        Raises: vLLM's GenerationError, an HTTP 500, which names the policy; VLLMValidationError, an
          HTTP 400, which names the structured output.
        """
        from vllm.exceptions import GenerationError, VLLMValidationError

        constraint = _constraint((*args, *kwargs.values()))  # before vLLM turns it into another
        async with contextlib.aclosing(self._generate(*args, **kwargs)) as outputs:
            async for output in outputs:
                for answer in output.outputs:
                    failed = wire.failed_policies(answer.finish_reason, answer.stop_reason)
                    if failed and self._member_names.issuperset(failed):
                        failed = tuple(map(self._named, failed))
                        self._note(failed)
                        failure.set(describe(failed))
                        raise GenerationError(describe(failed))
                    if constraint is not None and _ended_without_reason(answer):
                        message = describe_constraint(constraint)
                        raise VLLMValidationError(message, parameter="structured_outputs")
                yield output

    def _note(self, policies: Sequence[str]) -> None:
        now = self._clock()
        for name in policies:
            POLICY_FAILURES.labels(policy_label(name)).inc()
            if now - self._said_at.get(name, -LOG_INTERVAL_S) < LOG_INTERVAL_S:
                self._num_silent[name] = self._num_silent.get(name, 0) + 1
                continue
            self._said_at[name] = now
            more = self._num_silent.pop(name, 0)
            since = f" ({more} more requests since this was last said)" if more else ""
            _LOGGER.error("%s%s", describe(policies), since)


def describe(policies: Sequence[str]) -> str:
    """Says in one sentence which policies failed, and what to do."""
    names = ", ".join(repr(name) for name in policies)
    who = f"policy {names}" if len(policies) == 1 else f"one of the policies {names}"
    return (
        f"{who} computed NaN or infinity where the next token's logits should be, so none could be "
        "drawn; give it weight 0 or change the text, and check its checkpoint"
    )


def describe_constraint(field: str) -> str:
    """Says in one sentence that a structured output cannot go on. Args: field: its kind."""
    return (
        f"the structured output's {field} came to a place where it allows no token of this model: "
        "look for rules that only refer to themselves, and for characters that the tokenizer does "
        "not have"
    )


def _ended_without_reason(answer: Any) -> bool:
    """True if the engine could not go on and blames nobody, as when a grammar refuses a token."""
    return bool(answer.finish_reason == wire.FAILED_REASON and answer.stop_reason is None)


def _constraint(given: Iterable[Any]) -> str | None:
    """The kind of structured output that sampling parameters among `given` ask for; or None."""
    for each in given:
        found = getattr(each, "structured_outputs", None)
        for field in _CONSTRAINTS if found is not None else ():
            if getattr(found, field, None) is not None:
                return field
    return None

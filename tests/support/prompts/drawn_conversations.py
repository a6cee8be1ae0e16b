"""Conversations whose policies have prompts of their own, drawn from a seed and sent at random.

Each turn of a conversation is one request: its prompt is all that was said before, so it meets the
blocks that earlier turns have cached. Turns of many conversations are in flight at once; some are
aborted. `largest_error` compares every token, those of aborted requests too, with transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from prefmix.mixing import wire
from support.exactness import Job, Oracle

LONGEST_HEAD = 99
TOLERANCE_NATS = 2e-4

_NUM_POOLS = 5
"""Sets of heads: conversations share them, so that blocks of different tails lie side by side."""


@dataclass
class Conversation:
    """A conversation before its next turn."""

    weights: tuple[float, ...]
    heads: tuple[tuple[int, ...] | None, ...] | None
    tail: tuple[int, ...]
    """The text that all policies have read after their heads."""
    num_turns: int
    salt: str | None = None
    mixing: Any = "logits"

    @property
    def longest_head(self) -> tuple[int, ...]:
        """The beginning of the engine's prompt."""
        given = [head for head in self.heads or () if head is not None]
        return max(given, key=len, default=())


@dataclass
class Turn:
    """One request and what came of it."""

    conversation: Conversation
    job: Job
    num_answers: int
    tokens: dict[int, list[int]] = field(default_factory=dict)
    """By answer, as many as it had when it ended or was aborted."""
    logprobs: dict[int, list[float]] = field(default_factory=dict)
    was_aborted: bool = False


class Draw:
    """Draws all that a run is made of."""

    def __init__(
        self,
        seed: int,
        *,
        num_members: int,
        vocab_size: int,
        block_size: int,
        weight_space: str = "simplex",
        has_parameters: bool = False,
    ) -> None:
        """Args:
        has_parameters: true for a trunk, of whose plain requests some mix parameters.
        """
        self.rng = np.random.default_rng(seed)
        self._num_members, self._vocab_size = num_members, vocab_size
        self._weight_space, self._has_parameters = weight_space, has_parameters
        self._pools = [self._heads(block_size) for _ in range(_NUM_POOLS)]
        self._tails = [self.tokens(int(self.rng.integers(1, 80))) for _ in range(2)]

    def tokens(self, count: int) -> tuple[int, ...]:
        """That many random tokens."""
        return tuple(map(int, self.rng.integers(2, self._vocab_size, size=count)))

    def _heads(self, block_size: int) -> tuple[tuple[int, ...], ...]:
        rng, count = self.rng, self._num_members
        lengths = rng.integers(0, LONGEST_HEAD + 1, size=count)
        kind = rng.integers(5)
        if kind == 0:  # whole blocks apart
            lengths = block_size * rng.integers(0, LONGEST_HEAD // block_size + 1, size=count)
        elif kind == 1:  # all of one length
            lengths = np.full(count, rng.integers(1, LONGEST_HEAD + 1))
        elif kind == 2:  # a token apart
            lengths = rng.integers(0, 90) + rng.permutation(count)
        return tuple(self.tokens(int(length)) for length in lengths)

    def _weights(self) -> tuple[float, ...]:
        rng, count = self.rng, self._num_members
        kind = rng.integers(5)
        if kind == 0:
            return tuple(map(float, np.eye(count)[rng.integers(count)]))
        if self._weight_space == "affine" and kind < 4:
            weights = rng.uniform(-1.0, 2.0, size=count)
            weights[0] += 1.0 - weights.sum()
        else:
            weights = rng.dirichlet(np.full(count, 0.7))
        if kind == 1 and count > 2:
            weights[1], weights[0] = 0.0, weights[0] + weights[1]
        return tuple(map(float, weights / weights.sum()))

    def conversation(self) -> Conversation:
        """One conversation, before its first turn."""
        rng = self.rng
        weights = self._weights()
        heads: tuple[tuple[int, ...] | None, ...] | None = None
        if rng.random() < 0.75:
            pool = self._pools[rng.integers(_NUM_POOLS)]
            if rng.random() < 0.2:  # the same heads, read by other members
                pool = tuple(pool[at] for at in rng.permutation(len(pool)))
            heads = tuple(
                None if weight == 0 or rng.random() < 0.1 else head
                for head, weight in zip(pool, weights, strict=True)
            )
        tail = self.tokens(int(rng.integers(1, 60)))
        if rng.random() < 0.5:
            shared = self._tails[rng.integers(2)]
            tail = (*shared, *tail[:12])
        averages = self._has_parameters and heads is None and rng.random() < 0.3
        return Conversation(
            weights=weights,
            heads=heads,
            tail=tail,
            num_turns=int(rng.integers(1, 5)),
            salt="mine" if rng.random() < 0.1 else None,
            mixing="parameters" if averages else "logits",
        )

    def turn(self, conversation: Conversation, *, longest: int) -> Turn | None:
        """The next turn; None if the conversation has ended or grown too long."""
        conversation.num_turns -= 1
        job = Job(
            prompt=conversation.longest_head + conversation.tail,
            weights=conversation.weights,
            mixing=conversation.mixing,
            max_tokens=int(self.rng.integers(2, 40)),
            seed=int(self.rng.integers(2**31)),
            heads=conversation.heads,
        )
        if conversation.num_turns < 0 or len(job.prompt) + job.max_tokens > longest:
            return None
        return Turn(conversation, job, num_answers=int(self.rng.choice([1, 1, 1, 2, 3])))

    def go_on(self, turn: Turn) -> Conversation:
        """The conversation after one of the turn's answers, which may be a part of it."""
        answer = turn.tokens.get(int(self.rng.integers(turn.num_answers)), [])
        more = self.tokens(int(self.rng.integers(1, 12)))
        said = turn.conversation
        return replace(said, tail=(*said.tail, *answer, *more))


def send(
    llm: Any,
    draw: Draw,
    *,
    num_requests: int,
    in_flight: int,
    longest: int,
    aborted_a_step: float = 0.02,
) -> list[Turn]:
    """Sends that many requests, up to `in_flight` at once; returns all, the aborted ones too."""
    engine, rng = llm.llm_engine, draw.rng
    sent: list[Turn] = []
    running: dict[str, int] = {}
    ready: list[Conversation] = []
    while len(sent) < num_requests or running:
        while len(sent) < num_requests and len(running) < in_flight:
            again = ready.pop(int(rng.integers(len(ready)))) if ready else draw.conversation()
            turn = draw.turn(again, longest=longest)
            if turn is not None:
                running[_add(engine, turn, str(len(sent)))] = len(sent)
                sent.append(turn)
            if rng.random() < 0.1:  # the others come later
                break
        for output in engine.step():
            turn = sent[int(output.request_id)]
            for answer in output.outputs:
                turn.tokens[answer.index] = list(answer.token_ids)
                steps = zip(answer.token_ids, answer.logprobs, strict=True)
                turn.logprobs[answer.index] = [step[token].logprob for token, step in steps]
            if output.finished:
                running.pop(output.request_id, None)
                ready.append(draw.go_on(turn))
        if running and rng.random() < aborted_a_step:
            victim = str(rng.choice(sorted(running)))
            engine.abort_request([victim])
            turn = sent[running.pop(victim)]
            turn.was_aborted = True
            ready.append(draw.go_on(turn))
    return sent


def _add(engine: Any, turn: Turn, request_id: str) -> str:
    from vllm import SamplingParams

    job = turn.job
    params = SamplingParams(
        n=turn.num_answers,
        max_tokens=job.max_tokens,
        seed=job.seed,
        logprobs=0,
        ignore_eos=True,
        extra_args=wire.to_extra_args(job.weights, job.mixing, job.heads),
    )
    prompt: dict[str, Any] = {"prompt_token_ids": list(job.prompt)}
    if turn.conversation.salt is not None:
        prompt["cache_salt"] = turn.conversation.salt
    engine.add_request(request_id, prompt, params)
    return request_id


def largest_error(turns: Sequence[Turn], oracle: Oracle) -> float:
    """The largest error of a token's log-probability, in nats."""
    return max(
        float(np.abs(oracle.errors(turn.job, tokens, turn.logprobs[answer])).max())
        for turn in turns
        for answer, tokens in turn.tokens.items()
        if tokens
    )


def cache_of(llm: Any) -> Any:
    """vLLM's manager of the cache blocks of an engine in this process."""
    return llm.llm_engine.engine_core.engine_core.scheduler.kv_cache_manager

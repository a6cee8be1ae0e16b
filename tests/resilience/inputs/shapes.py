"""Requests of every shape that the server takes, and some that it refuses, drawn by a seed."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from typing import Any, Literal

from prefmix.policies.demo.reviews.prompts import EVALUATION_PROMPTS
from resilience.harness.demo_server import MAX_MODEL_LEN, MEMBERS

Expectation = Literal["ok", "refused", "either"]

LASTING = ("balanced", "short-and-kind", "glowing-letter")
"""Profiles that nobody deletes during a run, though their weights change."""
PASSING = ("passing-1", "passing-2", "passing-3")
"""Profiles that come and go."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """One request as it is sent."""

    path: str
    content: bytes
    expects: Expectation
    num_choices: int
    """The number of choices in a whole answer; 0 if the answer has none."""
    streams: bool
    hangs_up_after_s: float | None
    """The client hangs up after this time; None waits for the whole answer."""


def draw(rng: random.Random, *, hang_up_share: float = 0.1, bad_share: float = 0.1) -> Shape:
    """One request. Args: shares: of requests whose client hangs up; that have to be refused."""
    if rng.random() < bad_share:
        return _bad(rng)
    path, body, num_choices = _prompt(rng)
    streams = path != "/v1/responses" and rng.random() < 0.5
    body |= _sampling(rng, path)
    expects = _weights(rng, body)
    if streams:
        body["stream"] = True
        if rng.random() < 0.3:
            body["stream_options"] = {"include_usage": True}
    if path != "/v1/responses" and rng.random() < 0.15:
        body["preference_attribution"] = rng.choice([True, "tokens"])
    hangs_up = rng.random() < hang_up_share
    if hangs_up:
        body["max_output_tokens" if path == "/v1/responses" else "max_tokens"] = 150
    return Shape(
        path=path,
        content=json.dumps(body).encode(),
        expects=expects,
        num_choices=num_choices,
        streams=streams,
        hangs_up_after_s=rng.choice([0.003, rng.uniform(0, 0.5)]) if hangs_up else None,
    )


def _prompt(rng: random.Random) -> tuple[str, dict[str, Any], int]:
    text = f"{rng.choice(EVALUATION_PROMPTS)} {rng.randrange(1000)}"
    n = rng.choice([1, 1, 1, 1, 2, 3])
    kind = rng.random()
    if kind < 0.08:
        return "/v1/responses", {"input": text, "max_output_tokens": rng.randint(1, 12)}, 1
    body: dict[str, Any] = {"max_tokens": rng.choice([1, 2, 4, 8, 8, 16, 24]), "n": n}
    if kind < 0.45:
        messages = [{"role": "user", "content": text}]
        return "/v1/chat/completions", {**body, "messages": messages}, n
    if kind < 0.55:
        return "/v1/completions", {**body, "prompt": [text, "Tell me more."]}, 2 * n
    return "/v1/completions", {**body, "prompt": text}, n


def _sampling(rng: random.Random, path: str) -> dict[str, Any]:
    # Not 0, with which n > 1 is refused.
    body: dict[str, Any] = {"temperature": rng.choice([0.01, 0.7, 1.0, 1.3])}
    if path == "/v1/responses":
        return body
    body |= rng.choice(
        [
            {},
            {},
            {"seed": rng.randrange(2**31)},
            {"top_p": 0.9},
            {"min_p": 0.05},
            {"presence_penalty": 0.5},
            {"stop": ["."]},
            {"logit_bias": {"5": -2}},
        ]
    )
    if rng.random() < 0.25:
        is_chat = path == "/v1/chat/completions"
        body |= {"logprobs": True, "top_logprobs": 2} if is_chat else {"logprobs": 2}
    return body


def _weights(rng: random.Random, body: dict[str, Any]) -> Expectation:
    """Adds weights to a body in one of the possible ways; returns the expected outcome."""
    way = rng.randrange(7)
    body["model"] = "demo"
    if way == 1:
        body["preference_weights"] = {name: rng.randint(1, 9) for name in rng.sample(MEMBERS, 2)}
    elif way == 2:
        body["preference_profile"] = rng.choice(LASTING)
    elif way == 3:
        body["model"] = f"demo@{rng.choice(LASTING)}"
    elif way == 4:
        body["preference_profile"] = rng.choice(PASSING)
        return "either"
    elif way == 5:
        body["model"] = f"demo@{rng.choice(PASSING)}"
        return "either"
    elif way == 6:
        body["vllm_xargs"] = {"prefmix_weights": [0.25, 0.5, 0.25, 0]}
    return "ok"


def _bad(rng: random.Random) -> Shape:
    path = rng.choice(["/v1/completions", "/v1/chat/completions"])
    good: dict[str, Any] = {"model": "demo", "max_tokens": 4}
    if path == "/v1/completions":
        good["prompt"] = "Hi."
    else:
        good["messages"] = [{"role": "user", "content": "Hi."}]
    wrong: dict[str, Any] = rng.choice(
        [
            {"preference_weights": {"nobody": 1}},
            {"preference_weights": {"polite": -1}},
            {"preference_weights": {"polite": float("nan")}},
            {"preference_weights": {}},
            {"preference_weights": [1, 2]},
            {"preference_profile": "nobody"},
            {"preference_profile": "balanced", "preference_weights": {"polite": 1}},
            {"model": "demo@nobody"},
            {"model": "other"},
            {"vllm_xargs": {"prefmix_weights": [1, 1, 1, 1]}},
            {"preference_attribution": "much"},
            {"preference_candidates": rng.choice([0, -3, 10**30, 2.5, True, "8", [8]])},
            {"preference_candidates": 4, "stream": True},
            {"temperature": -1},
            {"max_tokens": MAX_MODEL_LEN * 10},
            {"n": 0},
            {"use_beam_search": True},
        ]
    )
    content = json.dumps({**good, **wrong}).encode()
    if rng.random() < 0.1:
        content = content[:-1]
    return Shape(
        path=path,
        content=content,
        expects="refused",
        num_choices=0,
        streams=False,
        hangs_up_after_s=None,
    )

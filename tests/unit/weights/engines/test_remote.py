"""A fit against a running server takes no more of it than there is, and waits while it is busy."""

from __future__ import annotations

import asyncio
import contextlib
import math
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp

from prefmix.mixing.ways_to_mix import MIXINGS
from prefmix.weights.engines.remote import RemoteEngine, RemoteError, _figures
from support.loopback_server import LoopbackServer, serving

AT_ONCE = 12


class Server:
    """Answers each sample with its seed, and every third request that it is busy."""

    def __init__(self, *, retry_after: str = "0") -> None:
        self.retry_after = retry_after
        self.in_flight = self.most = self.num_requests = 0
        self.bodies: list[dict[str, Any]] = []
        self.described: dict[str, Any] = {}

    def __call__(self) -> ASGIApp:
        return Router(
            [
                Route("/v1/mixture", self.mixture),
                Route("/v1/completions", self.complete, methods=["POST"]),
            ]
        )

    async def mixture(self, request: Request) -> Response:
        policy = {"name": "one", "model": "org/one", "revision": None}
        return JSONResponse(
            {
                "model": "mix",
                "policies": [policy],
                "reference": None,
                "weight_space": "simplex",
                "profiles": {},
                "answers_at_once": AT_ONCE,
                **self.described,
            }
        )

    async def complete(self, request: Request) -> Response:
        self.num_requests += 1
        if self.num_requests % 3 == 0:
            return JSONResponse({}, status_code=503, headers={"retry-after": self.retry_after})
        body = await request.json()
        self.bodies.append(body)
        cost = body.get("n", 1) * len(body["prompt"])
        self.in_flight += cost
        self.most = max(self.most, self.in_flight)
        await asyncio.sleep(0.01)
        self.in_flight -= cost
        scores: dict[str, Any] = {"prompt_logprobs": [None, {"7": {"logprob": -2.0}}]}
        return JSONResponse(
            {
                "choices": [
                    {
                        "index": index,
                        "token_ids": [body.get("seed", 0) + index],
                        "logprobs": {"token_logprobs": [-1.0]},
                        "text": "x",
                        **scores,
                    }
                    for index in range(cost)
                ]
            }
        )


def connected(running: LoopbackServer) -> contextlib.closing[RemoteEngine]:
    return contextlib.closing(RemoteEngine(f"http://127.0.0.1:{running.port}"))


def test_many_samples_come_in_pieces_with_the_seeds_of_the_whole() -> None:
    server = Server()
    with serving(server) as running, connected(running) as engine:
        found = engine.sample([(5,), (6,)], [1.0], num_responses=7, max_tokens=3, seed=100)
    seeds = [[response.tokens[0] for response in responses] for responses in found]
    assert seeds == [list(range(100, 107)), list(range(107, 114))]
    assert server.most <= AT_ONCE / 2
    assert server.num_requests > 6, "it was told to come back"


def test_scores_come_back_in_order() -> None:
    server = Server()
    with serving(server) as running, connected(running) as engine:
        assert engine.score([((5,), (7,))] * 20, [1.0]) == [-2.0] * 20
    assert server.most <= AT_ONCE / 2


def test_parameters_are_mixed_without_attribution_which_the_server_would_refuse() -> None:
    server = Server()
    base = {"name": "base", "model": "org/base", "revision": "abc"}
    server.described = {"base": "org/base", "reference": base, "mixing": "parameters"}
    with serving(server) as running, connected(running) as engine:
        assert (engine.spec.base, engine.spec.base_revision) == ("org/base", "abc")
        assert engine.spec.mixing == "parameters"
        weights = [0.5, 0.5]
        for mixing in MIXINGS:
            engine.sample([(5,)], weights, num_responses=1, max_tokens=3, seed=0, mixing=mixing)
            engine.score([((5,), (7,))], weights, mixing=mixing)
    asked = [
        (body["preference_mixing"], body.get("preference_attribution")) for body in server.bodies
    ]
    assert asked == [
        ("logits", True),
        ("logits", None),
        ("parameters", False),
        ("parameters", None),
    ]


def test_a_server_that_stays_busy_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prefmix.weights.engines.remote.PATIENCE_S", 0.5)
    with (
        serving(Server(retry_after="1")) as running,
        connected(running) as engine,
        pytest.raises(RemoteError, match="answered 503"),
    ):
        engine.sample([(5,)] * 9, [1.0], num_responses=1, max_tokens=3, seed=0)


def test_figures_are_sums_of_an_attribution_over_its_tokens() -> None:
    described = {
        "num_tokens": 4,
        "mean_entropy": 0.5,
        "log_partition": -1.5,
        "policies": {
            "a": {"mean_logprob": -0.25, "mean_kl": 0.75, "agreement": 1.0},
            "b": {"mean_logprob": None, "mean_kl": None, "agreement": None},
        },
    }
    found = _figures(described, ("a", "b"))
    assert found is not None
    assert (found.entropy, found.log_partition) == (2.0, -1.5)
    assert (found.kl_M[0], found.logprob_M[0]) == (3.0, -1.0)
    assert math.isnan(found.kl_M[1])
    assert math.isnan(found.logprob_M[1])
    assert _figures(None, ("a", "b")) is None


def test_a_server_that_keeps_its_policies_prompts_is_refused() -> None:
    server = Server()
    policy = {"name": "kind", "model": "org/one", "revision": None, "has_prompt": True}
    server.described = {"policies": [policy]}
    message = "gives 'kind' a prompt of its own, which it does not tell"
    with serving(server) as running, pytest.raises(RemoteError, match=message), connected(running):
        pass

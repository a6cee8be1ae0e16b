"""A MixtureRequest without an engine and without HTTP, for tests of a request's course, and the
routes that take vLLM's bodies, in an app without an engine.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import httpx
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.types import Message, Send

from prefmix.mixing.spec import MixtureSpec, Policy
from prefmix.server.api.candidates.wish import NEUTRAL, CandidateLimits
from prefmix.server.api.mixture_request import MixtureRequest
from prefmix.server.api.prompts.request_prompts import RequestPrompts
from prefmix.server.api.resolve import Preferences
from prefmix.server.api.state import MixtureState
from prefmix.server.config.limits import Limits
from prefmix.server.slots.policy_set import CurrentPolicies, PolicySet
from prefmix.server.traffic.admission_control import AdmissionController
from prefmix.server.traffic.drain import Drain
from prefmix.server.traffic.middleware import BodyLimitMiddleware, TrafficMiddleware
from prefmix.server.traffic.request_lifetime import RequestLifetime
from prefmix.server.traffic.shared_counts import SharedCounts
from prefmix.weights.store.profiles import CurrentProfiles, build_profile_set

SPEC = MixtureSpec(policies=tuple(Policy(name=name, model=f"org/{name}") for name in ("a", "b")))


@dataclass(kw_only=True)
class Body:
    """A request's body with prefmix's fields only."""

    model: str | None = None
    weights: object = None
    mixing: object = None
    preference_attribution: object = None
    preference_candidates: object = None
    stream: bool = False
    echo: bool = False
    return_token_ids: bool = False
    seed: int | None = None
    num_prompts: int = 1
    num_samples: int = 1
    background_id: str | None = None
    extra_args: dict[str, Any] | None = None
    """The client's own entries in vLLM's sampling parameters."""
    start_prompt: Callable[[Any], None] | None = None
    prompt_kind: str = "completion"
    preference_prompts: object = None
    negative_prompt: object = None
    own_prompts: RequestPrompts | None = None

    @property
    def asks_for_prompts(self) -> bool:
        return self.preference_prompts is not None or self.negative_prompt is not None

    def preferences(self) -> Preferences:
        return Preferences(model=self.model, weights=self.weights, mixing=self.mixing)

    def show_token_ids(self) -> bool:
        asked, self.return_token_ids = self.return_token_ids, True
        return asked

    def bind(
        self,
        *,
        model: str,
        start_prompt: Callable[[Any], None],
        own_prompts: RequestPrompts | None = None,
    ) -> None:
        self.model, self.start_prompt, self.own_prompts = model, start_prompt, own_prompts

    def sampling_params(self) -> Any:
        """Makes one prompt's sampling parameters, as vLLM's handlers do."""
        assert self.start_prompt is not None
        params = SimpleNamespace(
            **{field: values[0] for field, values in NEUTRAL.items()},
            extra_args=self.extra_args,
            n=self.num_samples,
            seed=self.seed,
            max_tokens=64,
        )
        self.start_prompt(params)
        return params


def mixture_state(*, counts: SharedCounts | None = None, statistics: Any = None) -> MixtureState:
    """Two policies, one engine that runs four answers and lets two wait."""
    return MixtureState(
        policies=CurrentPolicies(PolicySet.of(SPEC)),
        model_names=("m",),
        profiles=CurrentProfiles(build_profile_set({"even": {"a": 1, "b": 1}}, SPEC, version=3)),
        statistics=statistics,
        max_model_len=64,
        candidates=CandidateLimits(most=4, max_tokens=64),
        unread_fields=frozenset({"kv_transfer_params", "ec_transfer_params"}),
        admission=AdmissionController(
            counts or SharedCounts(None), max_running=4, num_engines=1, max_waiting=2
        ),
    )


def text_request(
    state: MixtureState, send: Send, *, path: str = "/v1/completions", app: Any = None
) -> tuple[MixtureRequest, RequestLifetime]:
    """A request whose client never hangs up."""

    async def receive() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    scope: dict[str, Any] = {"type": "http", "path": path, "headers": [], "method": "POST"}
    scope["app"] = app
    lifetime = RequestLifetime(scope, receive, send)
    return MixtureRequest(Request(scope), state), lifetime


GOOD: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "Hi."},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "Hi."}]},
    "/v1/responses": {"input": "Hi."},
    "/tokenize": {"prompt": "Hi."},
    "/detokenize": {"tokens": [5]},
}
"""A small good body for each route."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """An answer and what it cost the process."""

    response: httpx.Response
    stall_s: float
    """The longest that the event loop ran nothing else, in CPU seconds of this process: other
    processes on a busy machine do not count."""
    grown_bytes: int
    """Resident memory at its largest during the request, less that before it."""

    @property
    def error(self) -> dict[str, Any]:
        """The refusal's error."""
        error: dict[str, Any] = self.response.json()["error"]
        return error


def text_app(patch: Callable[[Any, str, Any], None], *, state: MixtureState | None = None) -> Any:
    """Makes the app, in which a request that passes all checks is answered with the type of its
    body. Imports vLLM.

    Args:
      patch: replaces an attribute of an object for the test's time.
      state: of the routes; by default that of `mixture_state`.
    """
    from prefmix.server.api import generate, vllm_handlers
    from prefmix.server.api.state import STATE_KEY

    async def handled(body: Any, _: Request) -> Response:
        return JSONResponse({"reached": type(body).__name__})

    for name in ("complete", "complete_chat", "respond"):
        patch(vllm_handlers, name, handled)
    for name in ("tokenize", "detokenize"):
        patch(vllm_handlers, name, handled)
    app = FastAPI()
    state = state or mixture_state()
    setattr(app.state, STATE_KEY, state)
    app.include_router(generate.router)
    drain = Drain(timeout_s=1, unfinished=lambda: 0)
    inner = BodyLimitMiddleware(app, max_body_bytes=Limits().max_body_bytes)
    return TrafficMiddleware(inner, admission=state.admission, drain=drain, limits=Limits())


def post(app: Any, path: str, body: Any) -> Answer:
    """Sends a body, JSON or bytes, and measures what the answer costs."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()

    async def main() -> Answer:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://a") as client:
            watch = _Watch()
            async with asyncio.TaskGroup() as group:
                watching = group.create_task(watch.run())
                await asyncio.sleep(0.01)  # it is awake
                response = await client.post(
                    path, content=content, headers={"Content-Type": "application/json"}
                )
                await asyncio.sleep(0)
                watching.cancel()
        return Answer(
            response=response, stall_s=watch.stall_s, grown_bytes=watch.peak - watch.before
        )

    return asyncio.run(main())


class _Watch:
    """Wakes up all the time and notes the longest sleep and the largest memory."""

    def __init__(self) -> None:
        self.before = self.peak = _resident()
        self.stall_s = 0.0

    async def run(self) -> None:
        woken = time.process_time()
        try:
            while True:
                await asyncio.sleep(0.002)
                self._look(woken)
                woken = time.process_time()
        finally:
            self._look(woken)

    def _look(self, woken: float) -> None:
        self.stall_s = max(self.stall_s, time.process_time() - woken)
        self.peak = max(self.peak, _resident())


def _resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

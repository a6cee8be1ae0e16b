"""A MixtureRequest without an engine and without HTTP, for tests of a request's course."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from fastapi import Request
from starlette.types import Message, Send

from prefmix.mixing.spec import MixtureSpec, Policy
from prefmix.server.api.mixture_request import MixtureRequest
from prefmix.server.api.resolve import Preferences
from prefmix.server.api.state import MixtureState
from prefmix.server.traffic.admission_control import AdmissionController
from prefmix.server.traffic.request_lifetime import RequestLifetime
from prefmix.server.traffic.shared_counts import SharedCounts
from prefmix.weights.store.profiles import CurrentProfiles, build_profile_set

SPEC = MixtureSpec(policies=tuple(Policy(name=name, model=f"org/{name}") for name in ("a", "b")))


@dataclass(kw_only=True)
class Body:
    """A request's body with prefmix's fields only."""

    model: str | None = None
    weights: object = None
    preference_attribution: object = None
    num_prompts: int = 1
    num_samples: int = 1
    extra_args: dict[str, Any] | None = None
    """The client's own entries in vLLM's sampling parameters."""
    start_prompt: Callable[[Any], None] | None = None

    def preferences(self) -> Preferences:
        return Preferences(model=self.model, weights=self.weights)

    def bind(self, *, model: str, start_prompt: Callable[[Any], None]) -> None:
        self.model, self.start_prompt = model, start_prompt

    def sampling_params(self) -> Any:
        """Makes one prompt's sampling parameters, as vLLM's handlers do."""
        assert self.start_prompt is not None
        params = SimpleNamespace(extra_args=self.extra_args)
        self.start_prompt(params)
        return params


def mixture_state(*, counts: SharedCounts | None = None, statistics: Any = None) -> MixtureState:
    """Two policies, one engine that runs four answers and lets two wait."""
    return MixtureState(
        spec=SPEC,
        model_names=("m",),
        profiles=CurrentProfiles(build_profile_set({"even": {"a": 1, "b": 1}}, SPEC, version=3)),
        statistics=statistics,
        admission=AdmissionController(
            counts or SharedCounts(None), max_running=4, num_engines=1, max_waiting=2
        ),
    )


def text_request(
    state: MixtureState, send: Send, *, path: str = "/v1/completions"
) -> tuple[MixtureRequest, RequestLifetime]:
    """A request whose client never hangs up."""

    async def receive() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    scope: dict[str, Any] = {"type": "http", "path": path, "headers": [], "method": "POST"}
    lifetime = RequestLifetime(scope, receive, send)
    return MixtureRequest(Request(scope), state), lifetime

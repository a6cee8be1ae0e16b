"""A request is admitted or refused, handed to the engine, answered, and counted once."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from http import HTTPStatus
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import Response
from fastapi.responses import JSONResponse, StreamingResponse
from prometheus_client import REGISTRY
from starlette.background import BackgroundTask
from starlette.types import Message

from prefmix.mixing.wire import MEASURE_KEY, MIXING_KEY, WEIGHTS_KEY
from prefmix.server.api.mixture_request import MixtureRequest
from prefmix.server.http.errors import RequestError
from prefmix.server.slots.policy_set import CurrentPolicies, PolicySet
from prefmix.server.telemetry.metrics import MIXED, NO_PROFILE, REJECTED, REQUESTS
from prefmix.server.traffic.admission_control import OverloadedError
from prefmix.server.traffic.request_lifetime import RequestLifetime, Termination
from prefmix.server.traffic.shared_counts import SharedCounts
from support.text_requests import Body, mixture_state, text_request

ROW = [-0.1, 1.0, -0.5, 0.2, 0.4, -0.3, -0.9, 1.0, 0.0]
ANSWER = {"choices": [{"index": 0, "text": "x", "finish_reason": "stop"}]}


class Counted:
    """The rise of the counter of requests with one profile and outcome."""

    def __init__(self, profile: str, outcome: str) -> None:
        self._counter = REQUESTS.labels(profile, outcome)
        self._before = self._counter._value.get()

    def __call__(self) -> int:
        return int(self._counter._value.get() - self._before)


class Statistics:
    """The engine's figures: the same for every key, with only a prompt's first sample."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int | None]] = []

    async def take(self, key: str, sample: int | None = None) -> dict[int, list[list[float]]]:
        self.asked.append((key, sample))
        return {0: [ROW]}


Work = Callable[[MixtureRequest, RequestLifetime], Coroutine[Any, Any, None]]


def run(work: Work, *, counts: SharedCounts | None = None, statistics: Any = None) -> list[Message]:
    """Does work with a request; returns what its client was sent."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def main() -> None:
        state = mixture_state(counts=counts, statistics=statistics)
        request, lifetime = text_request(state, send)
        try:
            await work(request, lifetime)
        finally:
            await lifetime.close()

    asyncio.run(main())
    return sent


def admitted(request: MixtureRequest, **fields: Any) -> Body:
    body = Body(**fields)
    request.admit(body)  # type: ignore[arg-type]
    return body


def test_a_request_holds_its_room_from_admission_to_its_end() -> None:
    counts = SharedCounts(None)

    async def work(request: MixtureRequest, _: RequestLifetime) -> None:
        body = admitted(request, model="m@even", num_prompts=2, num_samples=2)
        assert counts.in_flight == 4
        assert body.model == "m"
        body.sampling_params()
        assert counts.in_flight == 2, "the engine counts the first prompt's answers from here on"

    run(work, counts=counts)
    assert counts.in_flight == 0


def test_an_answer_in_the_background_holds_its_room_until_it_ends() -> None:
    counts = SharedCounts(None)
    tasks: dict[str, asyncio.Task[None]] = {}

    async def main() -> None:
        state = mixture_state(counts=counts)
        app = SimpleNamespace(state=SimpleNamespace())
        app.state.openai_serving_responses = SimpleNamespace(background_tasks=tasks)
        for name in ("goes on", "has failed"):
            request, lifetime = text_request(state, _nobody, app=app)
            admitted(request, background_id=name)
            if name == "goes on":
                tasks[name] = asyncio.create_task(asyncio.sleep(0.01))
            await lifetime.close()
        assert counts.in_flight == 1
        await tasks["goes on"]
        await asyncio.sleep(0)

    asyncio.run(main())
    assert counts.in_flight == 0


async def _nobody(message: Message) -> None: ...


def test_the_weights_replace_what_a_client_has_put_in_their_place() -> None:
    async def work(request: MixtureRequest, _: RequestLifetime) -> None:
        others = {
            WEIGHTS_KEY: [9, 9],
            MIXING_KEY: "parameters",
            MEASURE_KEY: "of another request",
            "own": 1,
        }
        body = admitted(request, weights={"a": 3, "b": 1}, extra_args=others)
        carried = {WEIGHTS_KEY: [0.75, 0.25], MIXING_KEY: "logits", "own": 1}
        assert body.sampling_params().extra_args == carried
        assert others[MEASURE_KEY] == "of another request", "the client's own is left as it is"

    run(work)


def on_a_trunk(request: MixtureRequest) -> MixtureRequest:
    spec = dataclasses.replace(request._state.spec, base="org/base")
    request._state = dataclasses.replace(
        request._state, policies=CurrentPolicies(PolicySet.of(spec))
    )
    return request


def test_a_way_to_mix_goes_to_the_engine_and_is_counted() -> None:
    before = MIXED.labels("parameters")._value.get()

    async def work(request: MixtureRequest, _: RequestLifetime) -> None:
        body = admitted(on_a_trunk(request), mixing="parameters")
        assert body.sampling_params().extra_args[MIXING_KEY] == "parameters"

    run(work)
    assert MIXED.labels("parameters")._value.get() == before + 1


def test_attribution_needs_the_policies_one_by_one() -> None:
    async def work(request: MixtureRequest, _: RequestLifetime) -> None:
        wish = {"mixing": "parameters", "preference_attribution": True}
        with pytest.raises(RequestError, match="score the finished answer") as caught:
            admitted(on_a_trunk(request), **wish)
        assert caught.value.param == "preference_attribution"

    run(work)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [({"weights": {"nobody": 1}}, "unknown_policy"), ({"model": "m@none"}, "unknown_profile")],
)
def test_refused_weights_are_counted_by_their_reason(fields: Any, reason: str) -> None:
    counts, counted = SharedCounts(None), Counted(NO_PROFILE, "rejected")
    before = REJECTED.labels(reason)._value.get()

    async def work(request: MixtureRequest, _: RequestLifetime) -> None:
        with pytest.raises(RequestError):
            admitted(request, **fields)

    run(work, counts=counts)
    assert (counted(), REJECTED.labels(reason)._value.get() - before) == (1, 1)
    assert counts.in_flight == 0


def test_a_full_server_refuses_and_counts_no_profile() -> None:
    counts, counted = SharedCounts(None), Counted(NO_PROFILE, "refused")
    counts.add_pending(6)
    counts.add_reserved(6)

    async def work(request: MixtureRequest, _: RequestLifetime) -> None:
        with pytest.raises(OverloadedError):
            admitted(request)

    run(work, counts=counts)
    assert (counted(), counts.in_flight) == (1, 6)


@pytest.mark.parametrize(
    ("status", "outcome"), [(200, "ok"), (400, "rejected"), (499, "cancelled"), (500, "error")]
)
def test_an_answer_says_its_weights_and_is_counted_by_its_status(status: int, outcome: str) -> None:
    counted = Counted("even", outcome)

    async def work(request: MixtureRequest, _: RequestLifetime) -> None:
        admitted(request)
        response = await request.answer(Response(status_code=status))
        assert response.headers["x-prefmix-profile"] == "even"
        assert response.headers["x-prefmix-weights"] == "a=0.5,b=0.5"
        assert response.headers["x-prefmix-weights-version"] == "3"
        assert response.headers["x-request-id"].startswith("request-")

    run(work)
    assert counted() == 1


def test_a_termination_is_what_is_counted() -> None:
    cancelled, late = Counted("even", "cancelled"), Counted("even", "timeout")

    async def work(request: MixtureRequest, lifetime: RequestLifetime) -> None:
        admitted(request)
        status = HTTPStatus.GATEWAY_TIMEOUT
        lifetime.terminate(Termination(outcome="timeout", status=status, message="too late"))
        await request.answer(Response(status_code=499))

    run(work)
    assert (cancelled(), late()) == (0, 1)


def test_attribution_is_added_to_an_answer_with_its_headers() -> None:
    statistics = Statistics()

    async def work(request: MixtureRequest, _: RequestLifetime) -> None:
        body = admitted(request, preference_attribution=True)
        key = body.sampling_params().extra_args[MEASURE_KEY]
        ended = BackgroundTask(list)
        plain = JSONResponse(ANSWER, headers={"x-some": "header"}, background=ended)
        response = await request.answer(plain)
        (choice,) = json.loads(bytes(response.body))["choices"]
        assert choice["text"] == "x"
        assert choice["preference_attribution"]["num_tokens"] == 1
        assert response.headers["x-some"] == "header"
        assert response.headers["x-prefmix-profile"] == "even"
        assert int(response.headers["content-length"]) == len(response.body)
        assert statistics.asked == [(key, None)]
        assert response.background is ended, "where vLLM counts the request as ended"

    run(work, statistics=statistics)


def test_the_last_chunk_of_a_choice_has_its_attribution() -> None:
    async def chunks() -> AsyncIterator[str]:
        yield 'data: {"choices": [{"index": 0, "text": "x", "finish_reason": null}]}\n\n'
        yield f"data: {json.dumps(ANSWER)}\n\ndata: [DONE]\n\n"

    async def work(request: MixtureRequest, lifetime: RequestLifetime) -> None:
        admitted(request, preference_attribution=True).sampling_params()
        response = await request.answer(StreamingResponse(chunks()))
        await response(request.raw_request.scope, lifetime.receive, lifetime.send)

    *_, first, second, end = run(work, statistics=Statistics())
    assert b"preference_attribution" not in first["body"]
    ended, done, nothing = second["body"].decode().split("\n\n")
    (choice,) = json.loads(ended.removeprefix("data: "))["choices"]
    assert choice["preference_attribution"]["mean_logprob"] == -0.5
    assert (done, nothing, end["body"]) == ("data: [DONE]", "", b"")


@pytest.mark.parametrize("status", [400, 500])
def test_figures_that_no_answer_shows_are_taken_from_the_engine(status: int) -> None:
    statistics, keys = Statistics(), list[str]()

    async def work(request: MixtureRequest, _: RequestLifetime) -> None:
        body = admitted(request, preference_attribution=True, num_prompts=2)
        keys.extend(body.sampling_params().extra_args[MEASURE_KEY] for _ in range(2))
        if status == HTTPStatus.INTERNAL_SERVER_ERROR:
            await request.fail(status)
        else:
            await request.answer(Response(status_code=status))

    run(work, statistics=statistics)
    assert statistics.asked == [(key, None) for key in keys]


def test_each_choice_gets_the_figures_of_its_prompt_and_sample() -> None:
    statistics = Statistics()

    async def work(request: MixtureRequest, _: RequestLifetime) -> None:
        body = admitted(request, preference_attribution=True, num_prompts=2, num_samples=2)
        keys = [body.sampling_params().extra_args[MEASURE_KEY] for _ in range(2)]
        answer = {"choices": [{"index": index} for index in range(4)]}
        response = await request.answer(JSONResponse(answer))
        shown = [
            each["preference_attribution"] for each in json.loads(bytes(response.body))["choices"]
        ]
        assert [each is None for each in shown] == [False, True, False, True]
        assert statistics.asked == [(keys[0], 0), (keys[0], 1), (keys[1], 0), (keys[1], 1)]

    run(work, statistics=statistics)


class Weighed:
    """The engine's figures: of every prompt, one token of each of four samples."""

    def __init__(self, *log_partitions: float) -> None:
        self._figures = {index: [[each, *ROW[1:]]] for index, each in enumerate(log_partitions)}

    async def take(self, key: str, sample: int | None = None) -> dict[int, list[list[float]]]:
        return self._figures


def test_candidates_take_their_room_and_one_is_the_answer() -> None:
    counts = SharedCounts(None)

    async def work(request: MixtureRequest, _: RequestLifetime) -> None:
        body = admitted(request, preference_candidates=2, num_samples=2, seed=3)
        assert counts.in_flight == 4, "each candidate is an answer to the engine"
        params = body.sampling_params()
        assert (params.n, counts.in_flight) == (4, 0)
        assert MEASURE_KEY in params.extra_args
        assert body.return_token_ids
        choices = [{"index": i, "text": str(i), "token_ids": [1]} for i in range(4)]
        response = await request.answer(JSONResponse({"choices": choices}))
        found = json.loads(bytes(response.body))["choices"]
        assert [each["text"] for each in found] == ["1", "2"]
        assert found[0]["preference_candidates"]["ess"] == 1
        assert "preference_attribution" not in found[0]
        assert response.headers["x-prefmix-ess"] == "1"
        assert response.headers["x-prefmix-profile"] == "even"
        assert int(response.headers["content-length"]) == len(response.body)

    before = candidate_counts()
    run(work, counts=counts, statistics=Weighed(-900, 0, 0, -900))
    grown = {name: value - before[name] for name, value in candidate_counts().items()}
    # Two answers from two candidates each, of which one outweighs the other: 1 is low.
    assert grown == {"_answers": 2, "s": 4, "s_effective": 2, "s_low": 2}


def candidate_counts() -> dict[str, float]:
    """The counters of candidates, by what follows `prefmix_candidate` in their names."""
    names = ("_answers", "s", "s_effective", "s_low")
    return {
        name: REGISTRY.get_sample_value(f"prefmix_candidate{name}_total") or 0.0 for name in names
    }


def test_candidates_without_their_figures_are_refused_and_counted() -> None:
    counted, ended = Counted("even", "error"), BackgroundTask(list)

    async def work(request: MixtureRequest, _: RequestLifetime) -> None:
        admitted(request, preference_candidates=3).sampling_params()
        choices = [{"index": i, "text": str(i), "token_ids": [1]} for i in range(3)]
        response = await request.answer(JSONResponse({"choices": choices}, background=ended))
        assert response.status_code == HTTPStatus.SERVICE_UNAVAILABLE
        assert response.background is ended

    run(work, statistics=Statistics())
    assert counted() == 1


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"preference_candidates": 5}, "preference_candidates"),
        ({"preference_candidates": 2, "stream": True}, "stream"),
        ({"preference_candidates": 2, "echo": True}, "echo"),
    ],
)
def test_candidates_that_cannot_be_are_refused_before_they_take_room(
    fields: Any, param: str
) -> None:
    counts = SharedCounts(None)

    async def work(request: MixtureRequest, _: RequestLifetime) -> None:
        with pytest.raises(RequestError) as caught:
            admitted(request, **fields)
        assert (caught.value.param, counts.in_flight) == (param, 0)

    run(work, counts=counts)


def test_more_candidates_than_ever_fit_are_refused() -> None:
    async def work(request: MixtureRequest, _: RequestLifetime) -> None:
        with pytest.raises(RequestError, match="takes at most 6 at once"):
            admitted(request, preference_candidates=4, num_prompts=2)

    run(work)


def test_a_picked_choice_has_its_own_attribution() -> None:
    async def work(request: MixtureRequest, _: RequestLifetime) -> None:
        wish = {"preference_candidates": 2, "preference_attribution": True}
        admitted(request, **wish).sampling_params()
        choices = [{"index": i, "token_ids": [1]} for i in range(2)]
        ended = BackgroundTask(list)
        plain = JSONResponse({"choices": choices}, headers={"x-some": "header"}, background=ended)
        response = await request.answer(plain)
        (found,) = json.loads(bytes(response.body))["choices"]
        assert found["preference_attribution"]["log_partition"] == -3
        assert found["preference_attribution"]["ess"] == 1
        assert (response.headers["x-some"], response.background) == ("header", ended)

    run(work, statistics=Weighed(-900, -3))

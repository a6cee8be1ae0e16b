"""One request for text, from its admission to its last byte.

`admit` resolves the weights and reserves room in the engine, `start_prompt` hands the weights to
the engine, and `answer` adds to vLLM's answer what this server says about it. However the request
ends, its account is closed once.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterable, Callable, Sequence
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from fastapi import Request, Response
from fastapi.responses import StreamingResponse
from starlette._utils import get_route_path
from starlette.types import Send

from prefmix.mixing.wire import HEADS_KEY, MEASURE_KEY, to_extra_args
from prefmix.server.api.accounting import CLIENT_GONE, Account
from prefmix.server.api.answer_fields import (
    RESPONSES_PATH,
    add_to_answer,
    add_to_chunk,
    copied,
    mixture_field,
    usage_of_answer,
    usage_of_event,
    with_field,
)
from prefmix.server.api.answer_headers import ESS_HEADER, answer_headers
from prefmix.server.api.answer_stream import ERROR_EVENT, AnswerStream, failure_event
from prefmix.server.api.attribution import FIELD as ATTRIBUTION_FIELD
from prefmix.server.api.attribution import Attribution, describe
from prefmix.server.api.candidates.answer import FiguresLostError, with_picked
from prefmix.server.api.candidates.wish import FIELD as CANDIDATES_FIELD
from prefmix.server.api.candidates.wish import Candidates
from prefmix.server.api.prompts.request_prompts import RequestPrompts, prompts_of_request
from prefmix.server.api.resolve import Resolution
from prefmix.server.api.state import MixtureState
from prefmix.server.http.errors import RequestError
from prefmix.server.slots.policy_set import PolicySet
from prefmix.server.telemetry import request_log
from prefmix.server.telemetry.candidate_metrics import count_picked
from prefmix.server.telemetry.metrics import PROMPT_TOKENS, policy_label
from prefmix.server.traffic.admission_control import OverloadedError, Reservation
from prefmix.server.traffic.request_lifetime import SCOPE_KEY, RequestLifetime

if TYPE_CHECKING:  # schemas imports vLLM
    from prefmix.server.api.schemas import PreferenceFields


_REPLACED_IN_S = 1
"""Seconds after which a client may try again to name a policy that is being replaced."""

_BROUGHT_IN_S = 5
"""The same for a policy whose adapter has to be brought; manifests are looked at as often."""


def _held_error(name: str, *, is_empty: bool) -> OverloadedError:
    """The refusal of a policy that no new request may use. Args: is_empty: for want of adapter."""
    if not is_empty:
        return OverloadedError(
            f"policy {name!r} is being replaced or removed; try again",
            retry_after_s=_REPLACED_IN_S,
        )
    return OverloadedError(
        f"policy {name!r} is not served now, as its adapter could not be brought into the engine: "
        "its files were missing or had changed when the server started, or a replacement of it "
        "failed; whoever runs the server puts the files back, brings another adapter or removes "
        "the policy (the server's log says more)",
        retry_after_s=_BROUGHT_IN_S,
    )


class MixtureRequest:
    """A request for text and what belongs to it: weights, reservation, attribution, account."""

    # Set by `admit`:
    asked_model: str
    """The model as the client named it, with its @PROFILE; answers repeat it."""
    _policies: PolicySet
    _resolution: Resolution
    _end_use: Callable[[], None]
    _attribution: Attribution
    _candidates: Candidates
    _prompts: RequestPrompts | None = None
    _shows_token_ids: bool
    _seed: int | None = None
    _reservation: Reservation
    _num_samples: int

    def __init__(self, raw_request: Request, state: MixtureState) -> None:
        """Opens the request's account."""
        self.raw_request = raw_request
        self.lifetime: RequestLifetime = raw_request.scope[SCOPE_KEY]
        self._state = state
        self._account = Account(raw_request)

    def admit(self, body: PreferenceFields) -> None:
        """Resolves the weights, reserves room in the engine, and binds the body to this request.

        Raises: RequestError, after it has been counted, if the weights or the load forbid it.
        """
        try:
            # Together, with nothing between them that could put others in force.
            self._policies = self._state.policies.current
            self._resolution = self._state.resolve(body.preferences())
            slots = self._policies.slots_of(self._resolution.weights)
            if name := self._state.policies.held_name(slots):
                raise _held_error(name, is_empty=self._state.policies.is_empty(name))
            self._candidates = Candidates(body.preference_candidates, self._state.candidates)
            self._candidates.check(
                self._resolution.mixing,
                stream=bool(getattr(body, "stream", False)),
                echo=bool(getattr(body, "echo", False)),
            )
            self._attribution = Attribution(
                body.preference_attribution, for_candidates=self._candidates.is_wanted
            )
            self._attribution.check(self._resolution.mixing)
            if self._state.prompts.systems or body.asks_for_prompts:
                self._prompts = prompts_of_request(
                    body,
                    self._state.prompt_rules,
                    self._resolution.weights,
                    self._resolution.mixing,
                )
            self._num_samples = body.num_samples * self._candidates.number
            self._reservation = self._state.admission.reserve(body.num_prompts * self._num_samples)
        except RequestError as error:
            self._account.refused(error.status, reason=error.reason)
            raise
        self._end_use = self._state.policies.use(slots)
        background_id = body.background_id
        self.lifetime.on_close(lambda: self._release(background_id))
        self._account.admitted(self._resolution)
        self.asked_model = getattr(body, "model", None) or self._resolution.model
        if self._candidates.is_wanted:
            self._shows_token_ids = body.show_token_ids()
        body.bind(
            model=self._resolution.model,
            start_prompt=self.start_prompt,
            own_prompts=self._prompts,
        )

    def _release(self, background_id: str | None) -> None:
        """Ends the reservation with the HTTP request, or with the answer if that goes on alone."""
        if background_id is not None:
            serving = self.raw_request.app.state.openai_serving_responses
            task = serving.background_tasks.get(background_id)
            if task is not None:
                task.add_done_callback(lambda ended: self._end_background(background_id, ended))
                return
        self._let_go()

    def _let_go(self) -> None:
        self._end_use()
        self._reservation.release()

    def _end_background(self, response_id: str, task: asyncio.Task[Any]) -> None:
        """Ends the reservation of an answer without HTTP request; says if it has failed.

        vLLM 0.32 leaves such an answer `queued` for ever if its task has raised.
        """
        self._let_go()
        error = None if task.cancelled() else task.exception()
        if error is None:
            return
        stored = self.raw_request.app.state.openai_serving_responses.response_store.get(response_id)
        if stored is not None and stored.status not in ("completed", "cancelled"):
            stored.status = "failed"
        if failure_event(error) is None:  # a mistake of ours
            context = {"message": "an answer in the background failed", "exception": error}
            task.get_loop().call_exception_handler(context)

    def start_prompt(self, sampling_params: Any) -> None:
        """Adds the weights to the sampling parameters of one prompt, which then enters the engine.

        vLLM asks for the sampling parameters once a prompt, just before it adds the prompt.

        Raises: RequestError if candidates are not defined under these parameters.
        """
        self._candidates.prepare(sampling_params)
        self._seed = getattr(sampling_params, "seed", None)
        self._reservation.hand_over(self._num_samples)
        heads = None
        if self._prompts is not None:
            heads = self._policies.placed_heads(self._prompts.heads_M)
            for name, length in self._prompts.lengths.items():
                PROMPT_TOKENS.labels(policy_label(name)).inc(length)
        placed = self._policies.placed(self._resolution.weights)
        carried = to_extra_args(placed, self._resolution.mixing, heads)
        given = sampling_params.extra_args or {}
        extra_args = {name: each for name, each in given.items() if name != HEADS_KEY} | carried
        extra_args.pop(MEASURE_KEY, None)  # a client's own key could find others' figures
        if self._attribution.is_measured:
            extra_args[MEASURE_KEY] = self._attribution.next_key()
        sampling_params.extra_args = extra_args

    async def answer(self, response: Response) -> Response:
        """Adds headers and fields to vLLM's answer; closes the account with its last byte."""
        headers = answer_headers(
            self._resolution, self._account.request_id(), self._account.ignored_fields
        )
        response.raw_headers += [(name.encode(), each.encode()) for name, each in headers.items()]
        if isinstance(response, StreamingResponse):
            return AnswerStream(response, self._send_chunks)
        if response.status_code == HTTPStatus.OK:
            response.body = with_field(bytes(response.body), self._about())
            response.headers["content-length"] = str(len(response.body))
        if self._attribution.is_measured:
            if response.status_code != HTTPStatus.OK:
                await self._discard_attribution()
            elif self._candidates.is_wanted:
                response = await self._picked(response)
            else:
                response = await add_to_answer(response, self._fields_of)
        elif self._reports_usage() and response.status_code == HTTPStatus.OK:
            self._account.used(usage_of_answer(bytes(response.body)))
        self._account.close(response.status_code)
        return response

    async def fail(self, status: int) -> None:
        """Closes the account of a request whose handler raised an error, answered with `status`."""
        await self._discard_attribution()
        self._account.close(status)

    async def _send_chunks(self, chunks: AsyncIterable[Any], send: Send) -> None:
        outcome, status = "cancelled", CLIENT_GONE
        is_first, has_failed, is_attributed = True, False, self._attribution.is_wanted
        reports_usage = self._reports_usage()
        try:
            async for chunk in chunks:
                data = chunk.encode() if isinstance(chunk, str) else chunk
                has_failed = has_failed or data.startswith(ERROR_EVENT)
                if is_first:
                    is_first = False
                    self._account.first_byte()
                    if not has_failed:
                        data = with_field(data, self._about())
                if reports_usage:
                    self._account.used(usage_of_event(data))
                if is_attributed:
                    data = await add_to_chunk(data, self._fields_of)
                await send({"type": "http.response.body", "body": data, "more_body": True})
            outcome, status = ("error" if has_failed else "ok"), HTTPStatus.OK
        except Exception as error:
            outcome, status = "error", HTTPStatus.INTERNAL_SERVER_ERROR
            event = failure_event(error)
            if event is None:
                raise
            await send({"type": "http.response.body", "body": event, "more_body": True})
        finally:
            self._account.close(status, outcome)
            if outcome != "ok":
                await self._discard_attribution()

    def _about(self) -> bytes:
        """The answer's field about its mixture."""
        tokens = {} if self._prompts is None else self._prompts.lengths
        return mixture_field(self._resolution, prompt_tokens=tokens)

    def _reports_usage(self) -> bool:
        """True if the request log needs the counts of tokens that the answer has in itself."""
        return request_log.is_on() and get_route_path(self.raw_request.scope) == RESPONSES_PATH

    async def _fields_of(self, choice: int) -> dict[str, Any]:
        """The fields that this server adds to a choice."""
        return {ATTRIBUTION_FIELD: await self._attribution_of(choice)}

    async def _picked(self, response: Response) -> Response:
        """The answer with one of each choice's candidates; 503 if their figures are lost."""
        figures = [await self._state.statistics.take(key) for key in self._attribution.keys]
        body = json.loads(bytes(response.body))
        try:
            ess = with_picked(
                body,
                figures,
                self._candidates.number,
                seed=self._seed,
                fields_of=self._fields_of_picked,
                shows_token_ids=self._shows_token_ids,
            )
        except FiguresLostError as error:
            lost = error.response()
            lost.background = response.background  # where vLLM counts the request as ended
            return lost
        for choice in body["choices"]:
            told = choice[CANDIDATES_FIELD]
            is_low = "warning" in told
            count_picked(told["num_candidates"], told["ess"], is_low=is_low)
        answer = copied(response, body)
        answer.headers[ESS_HEADER] = f"{ess:.4g}"
        return answer

    def _fields_of_picked(self, rows: Sequence[Sequence[float]], ess: float) -> dict[str, Any]:
        """The fields that this server adds to a picked choice."""
        if not self._attribution.is_wanted:
            return {}
        return {ATTRIBUTION_FIELD: {**self._describe(rows), "ess": ess}}

    async def _attribution_of(self, choice: int) -> dict[str, Any] | None:
        key, sample = self._attribution.key_and_sample(choice, num_samples=self._num_samples)
        only = sample if self._num_samples > 1 else None
        rows = (await self._state.statistics.take(key, only)).get(sample)
        if rows is None:  # another engine of a data-parallel group has the figures
            return None
        return self._describe(rows)

    def _describe(self, rows: Sequence[Sequence[float]]) -> dict[str, Any]:
        """The attribution of a choice. Args: rows: of figures, one a token."""
        members, weights = self._resolution.member_names, self._resolution.weights
        by_member = dict(zip(members, weights, strict=True))
        own = self._policies.figures(rows)
        return describe(own, by_member, by_token=self._attribution.by_token)

    async def _discard_attribution(self) -> None:
        """Makes the engine forget figures that no answer will show."""
        for key in self._attribution.keys:
            await self._state.statistics.take(key)

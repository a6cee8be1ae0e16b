"""The generation routes: resolve the weights, hand over to vLLM's serving code, report what ran.

Streaming, cancellation, load tracking, tools, grammars and logprobs are vLLM's own.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from http import HTTPStatus
from typing import Any

from fastapi import APIRouter, Depends, Request, Response
from vllm.entrypoints.openai.chat_completion import api_router as vllm_chat
from vllm.entrypoints.openai.completion import api_router as vllm_completion
from vllm.entrypoints.openai.responses import api_router as vllm_responses
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.entrypoints.serve.exception_handling.error_response import create_error_response
from vllm.entrypoints.serve.tokenize import api_router as vllm_tokenize
from vllm.entrypoints.serve.tokenize.protocol import DetokenizeRequest, TokenizeRequest
from vllm.entrypoints.serve.utils.api_utils import decrement_server_load, validate_json_request

from prefmix.server.api.accounting import CLIENT_GONE, REQUEST_ID_HEADER, Account
from prefmix.server.api.attribution import Attribution
from prefmix.server.api.resolve import PROFILE_HEADER, VERSION_HEADER, WEIGHTS_HEADER, split_model
from prefmix.server.api.schemas import (
    MixtureChatCompletionRequest,
    MixtureCompletionRequest,
    MixtureResponsesRequest,
    PreferenceFields,
)
from prefmix.server.api.state import mixture_state
from prefmix.server.http.errors import RequestError, error_response
from prefmix.server.http.openai_route import OpenAIRoute
from prefmix.server.traffic.request_lifetime import SCOPE_KEY, RequestEndedError, RequestLifetime


class TextRoute(OpenAIRoute):
    """Accounts for requests whose body is refused before anything else is known of them, too."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Wraps OpenAIRoute's handler."""
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            response = await handler(request)
            if response.status_code >= HTTPStatus.BAD_REQUEST and not Account.is_open(request):
                statistics = mixture_state(request).statistics
                Account(request, statistics).refused(None, response.status_code)
            return response

        return handle


router = APIRouter(route_class=OpenAIRoute, dependencies=[Depends(validate_json_request)])
text_router = APIRouter(route_class=TextRoute)

_ANSWER = {
    "content": {"text/event-stream": {}},
    "headers": {
        PROFILE_HEADER: {
            "description": "The profile the weights came from, or custom.",
            "schema": {"type": "string"},
        },
        WEIGHTS_HEADER: {
            "description": "The weights used, such as helpful=0.75,harmless=0.25.",
            "schema": {"type": "string"},
        },
        VERSION_HEADER: {
            "description": "Version of the profiles in force at admission.",
            "schema": {"type": "integer"},
        },
        REQUEST_ID_HEADER: {
            "description": "The id that came with the request, or a new one.",
            "schema": {"type": "string"},
        },
    },
}
_ERROR = {"model": ErrorResponse}
_RESPONSES: dict[int | str, dict[str, Any]] = {
    HTTPStatus.OK.value: _ANSWER,
    HTTPStatus.BAD_REQUEST.value: _ERROR,
    HTTPStatus.UNAUTHORIZED.value: _ERROR,
    HTTPStatus.NOT_FOUND.value: _ERROR,
    HTTPStatus.REQUEST_TIMEOUT.value: _ERROR,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE.value: _ERROR,
    HTTPStatus.INTERNAL_SERVER_ERROR.value: _ERROR,
    HTTPStatus.SERVICE_UNAVAILABLE.value: _ERROR,
    HTTPStatus.GATEWAY_TIMEOUT.value: _ERROR,
}
_PLAIN_RESPONSES = {status: _ERROR for status in _RESPONSES if status != HTTPStatus.OK.value}

Handler = Callable[[Any, Request], Awaitable[Response | None]]


@text_router.post("/v1/completions", responses=_RESPONSES)
async def create_completion(request: MixtureCompletionRequest, raw_request: Request) -> Response:
    """Completes a prompt with the mixture."""
    return await _generate(vllm_completion.create_completion, request, raw_request)


@text_router.post("/v1/chat/completions", responses=_RESPONSES)
async def create_chat_completion(
    request: MixtureChatCompletionRequest, raw_request: Request
) -> Response:
    """Answers a conversation with the mixture."""
    return await _generate(vllm_chat.create_chat_completion, request, raw_request)


@text_router.post("/v1/responses", responses=_RESPONSES)
async def create_response(request: MixtureResponsesRequest, raw_request: Request) -> Response:
    """Answers with the mixture in the Responses API."""
    return await _generate(vllm_responses.create_responses, request, raw_request)


router.include_router(text_router)


@router.post("/tokenize", responses=_PLAIN_RESPONSES)
async def tokenize(request: TokenizeRequest, raw_request: Request) -> Response:
    """Token ids of a prompt or conversation. All policies share one tokenizer."""
    _strip_profile(request, raw_request)
    return _answer(await vllm_tokenize.tokenize(request, raw_request))


@router.post("/detokenize", responses=_PLAIN_RESPONSES)
async def detokenize(request: DetokenizeRequest, raw_request: Request) -> Response:
    """Text of token ids."""
    _strip_profile(request, raw_request)
    return _answer(await vllm_tokenize.detokenize(request, raw_request))


async def _generate(handler: Handler, request: PreferenceFields, raw_request: Request) -> Response:
    """Runs one of vLLM's handlers with the request's weights, and reports them."""
    state = mixture_state(raw_request)
    account = Account(raw_request, state.statistics)
    try:
        resolution = state.resolve(request.preferences())
        attribution = Attribution(request.preference_attribution)
        reservation = state.admission.reserve(request.num_prompts * request.num_samples)
    except RequestError as error:
        account.refused(error.reason, error.status)
        raise
    request.bind(resolution, attribution, reservation)
    lifetime: RequestLifetime = raw_request.scope[SCOPE_KEY]
    lifetime.on_close(reservation.release)
    account.admitted(resolution, attribution, num_samples=request.num_samples)
    try:
        response = _answer(await lifetime.run(_unlistening(handler)(request, raw_request)))
    except RequestEndedError:
        if getattr(raw_request.app.state, "enable_server_load_tracking", False):
            decrement_server_load(raw_request)  # as vLLM does where it listens itself
        response = _answer(None)
    except Exception as error:
        # vLLM answers many a wrong parameter by an exception that it turns into a 400 later.
        refusal = create_error_response(error).error
        status = HTTPStatus(refusal.code)
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            await account.failed(status)
            raise
        response = error_response(refusal.message, status=status, param=refusal.param)
    return await account.answered(response)


def _unlistening(handler: Handler) -> Handler:
    """A handler of vLLM's without `with_cancellation` around it: the lifetime listens already."""
    inner: Handler = handler.__wrapped__  # type: ignore[attr-defined]
    return inner


def _answer(response: Response | None) -> Response:
    """What vLLM's handler returned; it returns nothing if the client has gone."""
    return Response(status_code=CLIENT_GONE) if response is None else response


def _strip_profile(request: Any, raw_request: Request) -> None:
    """Lets NAME@PROFILE, a name that /v1/models lists, pass wherever a model is named."""
    state = mixture_state(raw_request)
    request.model, _ = split_model(
        request.model, state.profiles.current, model_names=state.model_names
    )

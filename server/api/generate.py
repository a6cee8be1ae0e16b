"""The routes that generate text, and /tokenize and /detokenize.

Every request for text goes through `_generate`: `MixtureRequest.admit` checks its weights and the
load, vLLM's handler computes the answer, and `MixtureRequest.answer` adds headers and fields.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from http import HTTPStatus
from typing import Any

from fastapi import APIRouter, Depends, Request, Response
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.entrypoints.serve.utils.api_utils import validate_json_request

from prefmix.server.api import vllm_handlers
from prefmix.server.api.accounting import IGNORED_ATTRIBUTE, Account
from prefmix.server.api.answer_headers import HEADER_DESCRIPTIONS
from prefmix.server.api.field_names import check_names
from prefmix.server.api.mixture_request import MixtureRequest
from prefmix.server.api.resolve import split_model
from prefmix.server.api.schemas import (
    BoundedDetokenizeRequest,
    BoundedTokenizeChatRequest,
    BoundedTokenizeCompletionRequest,
    MixtureChatCompletionRequest,
    MixtureCompletionRequest,
    MixtureResponsesRequest,
    PreferenceFields,
)
from prefmix.server.api.state import mixture_state
from prefmix.server.api.vllm_handlers import Handler, run_handler, run_tokenizer
from prefmix.server.http.body_limits import check_engine_fields, check_limits, check_token_ids
from prefmix.server.http.openai_route import OpenAIRoute


class BoundedRoute(OpenAIRoute):
    """A route whose body vLLM validates and works on."""

    def check_body(self, request: Request, body: Any) -> None:
        """Checks the body's structure and numbers. Raises: RequestError."""
        super().check_body(request, body)
        if isinstance(body, dict):
            check_limits(body)


class TextRoute(BoundedRoute):
    """A route for text, which also counts requests whose body is refused before `_generate`."""

    def check_body(self, request: Request, body: Any) -> None:
        """Checks the names of the fields as well. Raises: RequestError."""
        super().check_body(request, body)
        if isinstance(body, dict):
            assert self.body_field is not None
            model: Any = self.body_field.field_info.annotation
            setattr(request.state, IGNORED_ATTRIBUTE, check_names(body, model.model_fields))
            check_engine_fields(body, mixture_state(request).unread_fields)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Wraps OpenAIRoute's handler."""
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            response = await handler(request)
            if response.status_code >= HTTPStatus.BAD_REQUEST and not Account.exists(request):
                Account(request).refused(response.status_code)
            return response

        return handle


class TokenRoute(BoundedRoute):
    """A route for token ids."""

    def check_body(self, request: Request, body: Any) -> None:
        """Checks the number of token ids as well. Raises: RequestError."""
        if isinstance(body, dict):
            check_token_ids(body, mixture_state(request).max_model_len)
        super().check_body(request, body)


router = APIRouter(route_class=TokenRoute, dependencies=[Depends(validate_json_request)])
text_router = APIRouter(route_class=TextRoute)

_ANSWER = {"content": {"text/event-stream": {}}, "headers": HEADER_DESCRIPTIONS}
_ERROR = {"model": ErrorResponse}
_RESPONSES: dict[int | str, dict[str, Any]] = {
    HTTPStatus.OK.value: _ANSWER,
    HTTPStatus.BAD_REQUEST.value: _ERROR,
    HTTPStatus.UNAUTHORIZED.value: _ERROR,
    HTTPStatus.NOT_FOUND.value: _ERROR,
    HTTPStatus.REQUEST_TIMEOUT.value: _ERROR,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE.value: _ERROR,
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE.value: _ERROR,
    HTTPStatus.INTERNAL_SERVER_ERROR.value: _ERROR,
    HTTPStatus.SERVICE_UNAVAILABLE.value: _ERROR,
    HTTPStatus.GATEWAY_TIMEOUT.value: _ERROR,
}
_PLAIN_RESPONSES = {status: _ERROR for status in _RESPONSES if status != HTTPStatus.OK.value}


@text_router.post("/v1/completions", responses=_RESPONSES)
async def create_completion(body: MixtureCompletionRequest, raw_request: Request) -> Response:
    """Completes a prompt with the mixture."""
    return await _generate(vllm_handlers.complete, body, raw_request)


@text_router.post("/v1/chat/completions", responses=_RESPONSES)
async def create_chat_completion(
    body: MixtureChatCompletionRequest, raw_request: Request
) -> Response:
    """Answers a conversation with the mixture."""
    return await _generate(vllm_handlers.complete_chat, body, raw_request)


@text_router.post("/v1/responses", responses=_RESPONSES)
async def create_response(body: MixtureResponsesRequest, raw_request: Request) -> Response:
    """Answers with the mixture in the Responses API."""
    return await _generate(vllm_handlers.respond, body, raw_request)


async def _generate(handler: Handler, body: PreferenceFields, raw_request: Request) -> Response:
    """Answers one request for text."""
    request = MixtureRequest(raw_request, mixture_state(raw_request))
    request.admit(body)
    response = await run_handler(handler, body, request)
    return await request.answer(response)


router.include_router(text_router)


@router.post("/tokenize", responses=_PLAIN_RESPONSES)
async def tokenize(
    request: BoundedTokenizeCompletionRequest | BoundedTokenizeChatRequest, raw_request: Request
) -> Response:
    """Token ids of a prompt or conversation. All policies share one tokenizer."""
    _strip_profile(request, raw_request)
    return await run_tokenizer(vllm_handlers.tokenize, request, raw_request)


@router.post("/detokenize", responses=_PLAIN_RESPONSES)
async def detokenize(request: BoundedDetokenizeRequest, raw_request: Request) -> Response:
    """Text of token ids."""
    _strip_profile(request, raw_request)
    return await run_tokenizer(vllm_handlers.detokenize, request, raw_request)


def _strip_profile(body: Any, raw_request: Request) -> None:
    """Reduces NAME@PROFILE, a name that /v1/models lists, to the name that vLLM knows."""
    state = mixture_state(raw_request)
    body.model, _ = split_model(body.model, state.profiles.current, model_names=state.model_names)

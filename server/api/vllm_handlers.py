"""vLLM's route handlers, called for a MixtureRequest: cancelled with it, with errors as responses.

Streaming, load tracking, tools, grammars and log-probabilities are the handlers' own.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from http import HTTPStatus
from typing import Any

from fastapi import Request, Response
from pydantic import ValidationError
from vllm.entrypoints.openai.chat_completion import api_router as vllm_chat
from vllm.entrypoints.openai.completion import api_router as vllm_completion
from vllm.entrypoints.openai.responses import api_router as vllm_responses
from vllm.entrypoints.serve.exception_handling import error_response as vllm_error_response
from vllm.entrypoints.serve.exception_handling.error_response import create_error_response
from vllm.entrypoints.serve.exception_handling.handlers import http as vllm_http_errors
from vllm.entrypoints.serve.exception_handling.handlers import validation as vllm_validation_errors
from vllm.entrypoints.serve.exception_handling.utils import sanitize_message
from vllm.entrypoints.serve.tokenize import api_router as vllm_tokenize
from vllm.entrypoints.serve.utils.api_utils import decrement_server_load

from prefmix.server.api.accounting import CLIENT_GONE
from prefmix.server.api.mixture_request import MixtureRequest
from prefmix.server.api.schemas import PreferenceFields
from prefmix.server.http.errors import RequestError, error_response, sendable
from prefmix.server.http.validation_errors import describe_validation
from prefmix.server.traffic.request_lifetime import SCOPE_KEY, RequestEndedError, RequestLifetime

_DEEP_PATH = re.compile(r"(?:/[\w.\-]*+){8,}+")

Handler = Callable[[Any, Request], Awaitable[Response | None]]

_asked_model: ContextVar[str | None] = ContextVar("asked_model", default=None)
"""The model that the request of this context has named."""

_FLAG = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]+")
_AFTER = "vLLM's flags stand after '--' in the command: prefmix serve ... -- "


def _without_listener(handler: Handler) -> Handler:
    """A handler without vLLM's `with_cancellation`, as the request's lifetime cancels it."""
    inner: Handler = handler.__wrapped__  # type: ignore[attr-defined]
    return inner


complete = _without_listener(vllm_completion.create_completion)
complete_chat = _without_listener(vllm_chat.create_chat_completion)
respond = _without_listener(vllm_responses.create_responses)
tokenize = _without_listener(vllm_tokenize.tokenize)
detokenize = _without_listener(vllm_tokenize.detokenize)


async def run_handler(
    handler: Handler, body: PreferenceFields, request: MixtureRequest
) -> Response:
    """Runs one of the handlers above for an admitted request.

    Returns: vLLM's answer, which may be a stream that has yet to begin; a 4xx if vLLM refuses a
      parameter; an answer with CLIENT_GONE if nobody waits any more.
    Raises: the handler's exception if it is the server's fault, after it has been counted.
    """
    raw_request = request.raw_request
    _asked_model.set(request.asked_model)
    try:
        return or_client_gone(await request.lifetime.run(handler(body, raw_request)))
    except RequestEndedError:
        if getattr(raw_request.app.state, "enable_server_load_tracking", False):
            decrement_server_load(raw_request)  # vLLM's own listener would have done so
        return or_client_gone(None)
    except RequestError as error:
        return error.response()
    except Exception as error:
        # vLLM raises for many wrong parameters; its own route would answer them with 400, too.
        refusal = create_error_response(_in_a_sentence(error)).error
        status = HTTPStatus(refusal.code)
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            await request.fail(status)
            raise
        return error_response(refusal.message, status=status, param=refusal.param)


async def run_tokenizer(handler: Handler, body: Any, raw_request: Request) -> Response:
    """Runs `tokenize` or `detokenize`, as long as someone waits for the answer."""
    lifetime: RequestLifetime = raw_request.scope[SCOPE_KEY]
    try:
        return or_client_gone(await lifetime.run(handler(body, raw_request)))
    except RequestEndedError:
        return or_client_gone(None)
    except ValidationError as error:
        raise _in_a_sentence(error) from None


def _in_a_sentence(error: Exception) -> Exception:
    """The error; pydantic's list of them as a sentence. vLLM validates the parts of a message late.

    Their names begin with the part's index.
    """
    if not isinstance(error, ValidationError):
        return error
    errors = [
        {**each, "loc": ("content", *each["loc"])} for each in error.errors(include_url=False)
    ]
    return ValueError(f"a message is wrong: {describe_validation(errors)[0]}")


def bound_messages(patch: Callable[[Any, str, Any], None] = setattr) -> None:
    """Makes vLLM shorten its error messages. May run repeatedly.

    vLLM repeats what it refuses, such as the role of a message, at any length. It then searches the
    text for paths in cubic time: `/a` 4,000 times keeps the event loop for 9 s.

    Args: patch: sets an attribute of a module.
    """
    for module in (vllm_error_response, vllm_http_errors, vllm_validation_errors):
        patch(module, "sanitize_message", _sanitize)


def _sanitize(message: str) -> str:
    return with_place_of_flags(sanitize_message(_DEEP_PATH.sub("<path>", sendable(message))))


def with_place_of_flags(message: str) -> str:
    """A message of vLLM that asks for its flags, with the place where they stand here."""
    flags = list(dict.fromkeys(_FLAG.findall(message)))[:3]
    return f"{message}; {_AFTER}{' '.join(flags)}" if flags else message


def repeat_asked_model(models: Any) -> None:
    """Makes answers name the model as their request did; vLLM names what it serves.

    Args: models: vLLM's OpenAIServingModels.
    """
    served = models.model_name

    def model_name(lora_request: Any = None) -> str:
        return _asked_model.get() or str(served(lora_request))

    models.model_name = model_name


def or_client_gone(response: Response | None) -> Response:
    """A handler's response; a handler returns None if its client has disconnected."""
    return Response(status_code=CLIENT_GONE) if response is None else response

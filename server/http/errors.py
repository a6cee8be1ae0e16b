"""Error responses in OpenAI's shape: {"error": {message, type, param, code}}.

  RequestError                a request that cannot be served; 400 unless it says otherwise
  ├── UnknownModelError       404, the model does not exist
  └── EncodedBodyError        415, the body is compressed

`type` and `code` have vLLM's values (BadRequestError, NotFoundError; code is the HTTP status), so
that clients see the same vocabulary whichever layer refused.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

_TYPES = {
    HTTPStatus.BAD_REQUEST: "BadRequestError",
    HTTPStatus.UNAUTHORIZED: "AuthenticationError",
    HTTPStatus.NOT_FOUND: "NotFoundError",
    HTTPStatus.METHOD_NOT_ALLOWED: "MethodNotAllowedError",
    HTTPStatus.REQUEST_TIMEOUT: "RequestTimeoutError",
    HTTPStatus.CONFLICT: "ConflictError",
    HTTPStatus.PRECONDITION_FAILED: "PreconditionFailedError",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "RequestTooLargeError",
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: "UnsupportedMediaTypeError",
    HTTPStatus.INTERNAL_SERVER_ERROR: "InternalServerError",
    HTTPStatus.SERVICE_UNAVAILABLE: "ServiceUnavailableError",
    HTTPStatus.GATEWAY_TIMEOUT: "GatewayTimeoutError",
    HTTPStatus.INSUFFICIENT_STORAGE: "InsufficientStorageError",
}

MAX_MESSAGE_CHARS = 2000
"""Longest text of an error response."""

_NOTE_CHARS = 40


class RequestError(ValueError):
    """A request that cannot be served; the message says what was wrong and what is allowed."""

    status = HTTPStatus.BAD_REQUEST

    def __init__(
        self, message: str, *, param: str | None = None, reason: str | None = None
    ) -> None:
        """Args:
        message: one sentence.
        param: the field that the message is about.
        reason: one of prefmix.server.telemetry.metrics.REASONS if the weights are wrong.
        """
        super().__init__(message)
        self.param = param
        self.reason = reason

    def response(self) -> JSONResponse:
        """The response to send."""
        return error_response(str(self), status=self.status, param=self.param)


class UnknownModelError(RequestError):
    """The `model` of a request is not served here."""

    status = HTTPStatus.NOT_FOUND


class EncodedBodyError(RequestError):
    """The body has a Content-Encoding, such as gzip."""

    status = HTTPStatus.UNSUPPORTED_MEDIA_TYPE

    def response(self) -> JSONResponse:
        """The response to send, with the encoding that is taken (RFC 9110, section 12.5.3)."""
        response = super().response()
        response.headers["Accept-Encoding"] = "identity"
        return response


def error_body(message: str, *, status: HTTPStatus, param: str | None = None) -> dict[str, Any]:
    """The JSON body of an error response."""
    kind = _TYPES.get(status, status.phrase)
    param = None if param is None else sendable(param)
    message = sendable(message)
    return {"error": {"message": message, "type": kind, "param": param, "code": status.value}}


def error_response(message: str, *, status: HTTPStatus, param: str | None = None) -> JSONResponse:
    """An error response."""
    return JSONResponse(error_body(message, status=status, param=param), status_code=status)


async def http_exception(request: Request, error: Exception) -> JSONResponse:
    """An application's exception handler: answers 404, 405 and the like in OpenAI's shape."""
    assert isinstance(error, HTTPException)
    status = HTTPStatus(error.status_code)
    message = error.detail
    if status in (HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED):
        message = f"{request.method} {request.url.path} is not served here"
    response = error_response(message, status=status)
    response.headers.update(error.headers or {})
    return response


def sendable(text: str) -> str:
    """`text` as an error response may hold it: its beginning, in UTF-8.

    A text of more than MAX_MESSAGE_CHARS ends with the number of characters left out.
    """
    left_out = len(text) - (MAX_MESSAGE_CHARS - _NOTE_CHARS)
    if left_out > _NOTE_CHARS:
        text = f"{text[:-left_out]}... ({left_out} characters left out)"
    # JSON can name half a surrogate pair, which UTF-8 cannot encode.
    return text.encode(errors="backslashreplace").decode()


def one_line(text: str) -> str:
    """`text` with each run of white space replaced by one blank."""
    return " ".join(text.split())

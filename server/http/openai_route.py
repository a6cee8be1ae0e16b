"""A FastAPI route whose error responses have OpenAI's shape."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Coroutine
from http import HTTPStatus
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from prefmix.server.http.errors import RequestError, one_line, validation_response

_ESCAPED_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


class OpenAIRoute(APIRoute):
    """Answers broken JSON, bodies that do not validate and RequestError with one sentence each."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Wraps FastAPI's handler."""
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            try:
                refuse_half_pairs(await request.body())
                return await handler(request)
            except RequestError as error:
                return error.response()
            except RequestValidationError as error:
                return validation_response(error)
            except HTTPException as error:
                # FastAPI raises this for a body that makes the JSON parser fail in other ways.
                if error.status_code != HTTPStatus.BAD_REQUEST or error.__cause__ is None:
                    raise
                return RequestError(
                    f"the request body cannot be read as JSON: {one_line(str(error.__cause__))}"
                ).response()

        return handle


def refuse_half_pairs(body: bytes) -> None:
    """Refuses JSON that names half a surrogate pair, which UTF-8 cannot encode.

    Raises: RequestError. Invalid JSON is left for FastAPI to refuse.
    """
    if not _ESCAPED_SURROGATE.search(body):
        return
    try:
        json.dumps(json.loads(body), ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        raise RequestError(
            f"the request body names half a surrogate pair, {half!r}, which is no character; "
            "write both halves, or the character itself"
        ) from None
    except (ValueError, RecursionError):
        return

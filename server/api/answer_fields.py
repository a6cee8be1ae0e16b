"""Fields that this server adds to the choices of vLLM's answers, whole or streamed."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import Response
from fastapi.responses import JSONResponse

FieldsOf = Callable[[int], Awaitable[dict[str, Any]]]
"""The fields to add to a choice, by its index."""


async def add_to_answer(response: Response, fields_of: FieldsOf) -> JSONResponse:
    """Copies a complete answer, with the fields added to each choice."""
    body = json.loads(bytes(response.body))
    for choice in body["choices"]:
        choice.update(await fields_of(choice["index"]))
    headers = {
        name: value
        for name, value in response.headers.items()
        if name not in ("content-length", "content-type")
    }
    # vLLM counts the request as ended in its response's background task.
    return JSONResponse(body, headers=headers, background=response.background)


async def add_to_chunk(chunk: bytes, fields_of: FieldsOf) -> bytes:
    """Adds the fields to those choices of a stream's chunk that end with it."""
    events = chunk.decode().split("\n\n")
    for place, event in enumerate(events):
        if not event.startswith("data: {"):
            continue
        body = json.loads(event.removeprefix("data: "))
        ended = [each for each in body.get("choices", []) if each.get("finish_reason")]
        for choice in ended:
            choice.update(await fields_of(choice["index"]))
        if ended:
            events[place] = "data: " + json.dumps(body, ensure_ascii=False)
    return "\n\n".join(events).encode()

"""Fields of vLLM's answers, whole or streamed: those that are added here, and counts of tokens."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import Response
from fastapi.responses import JSONResponse

FieldsOf = Callable[[int], Awaitable[dict[str, Any]]]
"""The fields to add to a choice, by its index."""

RESPONSES_PATH = "/v1/responses"
"""The route whose counts of tokens vLLM puts into its answers, not into its metadata."""

Usage = tuple[int, int]
"""Numbers of tokens of a prompt and of its answer."""

_ENDS = (b"event: response.completed\n", b"event: response.incomplete\n")


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


def usage_of_answer(body: bytes) -> Usage | None:
    """The counts in an answer; None if it has none."""
    return _usage(json.loads(body))


def usage_of_event(event: bytes) -> Usage | None:
    """The counts in an event of a stream; None unless it is the stream's last."""
    if not event.startswith(_ENDS):
        return None
    data = event.partition(b"\ndata: ")[2]
    return _usage(json.loads(data).get("response"))


def _usage(response: Any) -> Usage | None:
    usage = response.get("usage") if isinstance(response, dict) else None
    return None if not usage else (usage["input_tokens"], usage["output_tokens"])

"""Fields of vLLM's answers, whole or streamed: those that are added here, and counts of tokens."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from fastapi import Response
from fastapi.responses import JSONResponse

from prefmix.server.api.resolve import Resolution

FieldsOf = Callable[[int], Awaitable[dict[str, Any]]]
"""The fields to add to a choice, by its index."""

RESPONSES_PATH = "/v1/responses"
"""The route whose counts of tokens vLLM puts into its answers, not into its metadata."""

Usage = tuple[int, int]
"""Numbers of tokens of a prompt and of its answer."""

_DATA = b"data: "
_ENDS = (b"event: response.completed\n", b"event: response.incomplete\n")

MIXTURE_FIELD = "prefmix"
"""The field of an answer that says which weights it was drawn with."""


def mixture_field(
    resolution: Resolution, *, prompt_tokens: Mapping[str, int] | None = None
) -> bytes:
    """That field as a JSON object's only member, without the braces.

    Args: prompt_tokens: of each policy's own prompt; empty if all read the same one.
    """
    pairs = zip(resolution.member_names, resolution.weights, strict=True)
    about = {
        "profile": resolution.profile,
        "weights": {name: float(f"{weight:.9g}") for name, weight in pairs},
        "weights_version": resolution.version,
        "mixing": resolution.mixing,
        **({"prompt_tokens": prompt_tokens} if prompt_tokens else {}),
    }
    return json.dumps({MIXTURE_FIELD: about}, ensure_ascii=False)[1:-1].encode()


def with_field(answer: bytes, field: bytes) -> bytes:
    """An answer, whole or an event of a stream, whose first JSON object has one member more.

    Args:
      answer: it is returned unchanged unless it is an object, or an event with one.
      field: as `mixture_field` returns it.
    """
    data = 0
    if not answer.startswith(b"{"):
        data = answer.find(_DATA) + len(_DATA)
        if data < len(_DATA):
            return answer
    if not answer.startswith(b'{"', data):
        return answer
    return b"".join([answer[:data], b"{", field, b",", answer[data + 1 :]])


async def add_to_answer(response: Response, fields_of: FieldsOf) -> JSONResponse:
    """Copies a complete answer, with the fields added to each choice."""
    body = json.loads(bytes(response.body))
    for choice in body["choices"]:
        choice.update(await fields_of(choice["index"]))
    return copied(response, body)


def copied(response: Response, body: Any) -> JSONResponse:
    """Copies a complete answer with another body."""
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

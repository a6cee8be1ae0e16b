"""Sends bytes over a socket and reads whatever comes back."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence

from resilience.inputs.hostile_requests import DOCUMENTED_5XX, Hostile

TIMEOUT_S = 90.0
_PATIENCE_S = 0.3
"""A connection that may stay open is left after this time without a byte."""

_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3}) ")
_LONGEST_REFUSAL = 8 * 2**10
_SHOWN = 400


async def send_all(port: int, batch: Sequence[Hostile], *, at_once: int) -> list[bytes]:
    """The bytes that come back for each request of a batch."""
    turn = asyncio.Semaphore(at_once)

    async def send(hostile: Hostile) -> bytes:
        async with turn:
            return await _send(port, hostile)

    return list(await asyncio.gather(*map(send, batch)))


def wrong(hostile: Hostile, answer: bytes) -> str:
    """The fault of an answer, or an empty text."""
    found = [int(status) for status in _STATUS.findall(answer)]
    shown = f"it got {answer[:_SHOWN]!r}"
    if any(status >= 500 and status not in DOCUMENTED_5XX for status in found):
        return f"a 5xx: {shown}"
    if not found and not hostile.keeps_open and hostile.answers is not None:
        return "no answer"
    if hostile.answers is not None and len(found) > hostile.answers:
        return f"{len(found)} answers: {shown}"
    if hostile.statuses and found and found[0] not in {*hostile.statuses, 503}:
        return f"not one of {sorted(hostile.statuses)[:8]}: {shown}"
    if hostile.says and hostile.says.encode() not in answer and found[0] != 503:
        return f"no word of {hostile.says!r}: {shown}"
    if hostile.lacks and hostile.lacks.encode() in answer:
        return f"it names {hostile.lacks!r}: {shown}"
    if found and found[0] >= 400 and len(answer) > _LONGEST_REFUSAL and len(found) == 1:
        return f"a refusal of {len(answer)} bytes: {shown}"
    if b"Traceback" in answer:
        return f"a traceback: {shown}"
    return ""


async def _send(port: int, hostile: Hostile) -> bytes:
    answer = bytearray()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)

    async def write() -> None:
        writer.write(hostile.data)
        await writer.drain()

    writing = asyncio.create_task(write())
    patience_s = _PATIENCE_S if hostile.keeps_open else TIMEOUT_S
    try:
        while chunk := await asyncio.wait_for(reader.read(2**18), timeout=patience_s):
            answer += chunk
    except (ConnectionError, TimeoutError):
        pass  # the server may hang up on such a client
    finally:
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)
        writer.transport.abort()
    return bytes(answer)

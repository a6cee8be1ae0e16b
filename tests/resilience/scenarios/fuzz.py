"""Hostile bytes over raw sockets: no crash, no 5xx, no traceback, and right answers afterwards.

python -m resilience.scenarios.fuzz [--inputs 4000] [--seed 0] [--record]
"""

from __future__ import annotations

import asyncio
import random
import re
import socket
import sys
import time
from collections import Counter
from typing import Any

from resilience.harness.demo_server import DemoServer, running
from resilience.harness.report import publish, run_parser, table
from resilience.inputs import attacks
from resilience.inputs.fields import Fields
from resilience.scenarios.mixed_run import check_rest, resting

_STATUS = re.compile(rb"(?:^|\r\n\r\n|\})HTTP/1\.[01] (\d{3})")
_ANSWER_WITHIN_S = 60.0
_BATCH = 100
_AT_ONCE = 24
_LONELY_S = 0.15
"""A connection without an answer is kept this long: the server may rightly wait for more."""


def run(demo: DemoServer, *, num_inputs: int, seed: int = 0) -> tuple[str, dict[str, Any]]:
    """Sends the inputs. Returns: a table, and the figures.

    Raises: AssertionError showing the input that was answered wrong.
    """
    rng = random.Random(seed)
    fields = Fields(demo.ask("GET", "/openapi.json").body)
    right = _right_answer(demo)
    at_rest = resting(demo)
    kinds: Counter[str] = Counter()
    statuses: Counter[int] = Counter()
    bad: list[str] = []
    began = time.monotonic()
    while kinds.total() < num_inputs:
        # A third attacks the fields of good JSON, which reach the deepest.
        batch = [
            fields.draw(rng) if rng.random() < 1 / 3 else attacks.draw(rng) for _ in range(_BATCH)
        ]
        kinds.update(attack.kind for attack in batch)
        for attack, answer in zip(batch, asyncio.run(_send_all(demo, batch)), strict=True):
            found = [int(status) for status in _STATUS.findall(answer)]
            statuses.update(found or [0])
            if any(status >= 500 for status in found) or b"Traceback" in answer:
                bad.append(f"{attack.kind}: {b''.join(attack.pieces)[:1500]!r} -> {answer[:800]!r}")
        assert demo.server.process.poll() is None, demo.server.stderr[-3000:]
        assert _right_answer(demo) == right, "it answers otherwise than before"
    with SlowLoris(demo, 100):
        assert _right_answer(demo) == right
        kinds["slow loris"] += 100
    seconds = time.monotonic() - began
    assert not bad, f"{len(bad)} answers were wrong:\n" + "\n".join(bad[:20])
    demo.settle()
    demo.assert_sound()
    left = check_rest(demo, at_rest)
    rows: list[tuple[object, ...]] = [("hostile input", "count"), *sorted(kinds.items())]
    rows += [
        (f"answered {status}" if status else "no answer", count)
        for status, count in sorted(statuses.items())
    ]
    figures = {
        "inputs": kinds.total(),
        "seconds": round(seconds, 1),
        "statuses": {str(status): count for status, count in sorted(statuses.items())},
        **left,
    }
    return table(rows), figures


async def _send_all(demo: DemoServer, batch: list[attacks.Attack]) -> list[bytes]:
    turn = asyncio.Semaphore(_AT_ONCE)

    async def send(attack: attacks.Attack) -> bytes:
        async with turn:
            return await _send(demo.server.port, attack)

    return list(await asyncio.gather(*map(send, batch)))


async def _send(port: int, attack: attacks.Attack) -> bytes:
    """The bytes that come back until the server closes, or nothing more comes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    answer = b""
    try:
        for piece in attack.pieces:
            writer.write(piece)
            await asyncio.wait_for(writer.drain(), timeout=_ANSWER_WITHIN_S)
            await asyncio.sleep(attack.pause_s)
        if attack.half_closes:
            writer.write_eof()
        patience_s = _ANSWER_WITHIN_S if attack.wants_answer else _LONELY_S
        while chunk := await asyncio.wait_for(reader.read(2**16), timeout=patience_s):
            answer += chunk
            patience_s = _LONELY_S
    except (ConnectionError, TimeoutError):
        pass  # the server may hang up on such a client
    finally:
        writer.transport.abort()
    return answer


def _right_answer(demo: DemoServer) -> str:
    answer = demo.complete(prompt="Review the Park Hotel.", temperature=0, max_tokens=8)
    assert answer.status == 200, answer
    return str(answer.body["choices"][0]["text"])


class SlowLoris:
    """Connections that begin a request, go on with a byte at a time, and never end it."""

    def __init__(self, demo: DemoServer, count: int) -> None:
        self._sockets = [
            socket.create_connection(("127.0.0.1", demo.server.port)) for _ in range(count)
        ]

    def __enter__(self) -> None:
        for byte in (b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n", b"X", b"-", b"a"):
            for each in self._sockets:
                each.sendall(byte)
            time.sleep(0.05)

    def __exit__(self, *_: object) -> None:
        for each in self._sockets:
            each.close()


def main() -> int:
    """Runs the command; returns the exit code."""
    parser = run_parser(__doc__)
    parser.add_argument("--inputs", type=int, default=4000)
    args = parser.parse_args()
    with running() as demo:
        text, figures = run(demo, num_inputs=args.inputs, seed=args.seed)
    publish("fuzz", text, figures, record=args.record)
    return 0


if __name__ == "__main__":
    sys.exit(main())

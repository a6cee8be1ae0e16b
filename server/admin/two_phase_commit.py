"""Two-phase commit between the API processes of one server: a change in all of them, or in none.

Each process listens on a Unix socket in a folder that only this server uses. A change is sent to
all processes twice: first `prepare`, which every process must accept, then `commit`, which puts the
change in force. If a process is missing or refuses to prepare, nothing changes. A single process
sends no messages.

A message and its answer are one line of JSON each, on a connection of their own.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from prefmix.weights.store.durable_file import file_lock

Message = dict[str, Any]
Receive = Callable[[Message], Awaitable[Message]]
TellAll = Callable[[Message], Awaitable[None]]
"""Sends a message to every other API process; raises CommitError unless all accept it."""

ANSWER_TIMEOUT_S = 5.0
"""Seconds a process may take to answer. Its event loop is busy for milliseconds, not seconds."""

LOCK_TIMEOUT_S = 20.0
"""Seconds a change waits for the change before it."""

_MAX_MESSAGE_BYTES = 64 * 2**20


class CommitError(ValueError):
    """A change that could not be made in all API processes, and the reason."""


class NotAcceptedError(CommitError):
    """A process that is up has not accepted a message."""


class ApiProcesses:
    """The API processes of one server, as one of them reaches the others.

    The caller makes only one change at a time itself.
    """

    def __init__(
        self, folder: Path, *, num_processes: int, receive: Receive, name: str | None = None
    ) -> None:
        """The process joins the others in `start`.

        Args:
          folder: the sockets' folder, private to this server.
          num_processes: number of API processes, this one included.
          receive: answers the messages of other processes; raises ValueError to refuse one.
          name: this process's name in messages; None uses its process id.
        """
        self._folder = folder
        self._num_processes = num_processes
        self._receive = receive
        self._own = folder / f"{name or os.getpid()}.sock"
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Begins to listen for messages."""
        self._server = await asyncio.start_unix_server(
            self._answer, path=str(self._own), limit=_MAX_MESSAGE_BYTES
        )

    def close(self) -> None:
        """Stops listening and removes the socket."""
        if self._server is not None:
            self._server.close()
        self._own.unlink(missing_ok=True)

    @contextlib.asynccontextmanager
    async def lock(self, *, timeout_s: float = LOCK_TIMEOUT_S) -> AsyncIterator[None]:
        """Holds the lock that lets one process at a time make a change.

        Raises: CommitError if the lock cannot be had within `timeout_s` seconds.
        """
        if self._num_processes == 1:
            yield
            return
        lock = file_lock(self._folder / "lock", timeout_s=timeout_s)
        try:
            await asyncio.to_thread(lock.__enter__)
        except OSError as error:
            if not isinstance(error, TimeoutError):
                raise CommitError(
                    f"the API processes' folder {self._folder} cannot be locked: {error.strerror}"
                ) from None
            raise CommitError(
                f"another change has been under way for {timeout_s:.2g} s; try again"
            ) from None
        try:
            yield
        finally:
            lock.__exit__(None, None, None)

    async def tell_all(self, message: Message) -> None:
        """Sends a message to every other process and waits until each has accepted it.

        Raises: CommitError naming how many processes are up, or which process refused and why.
        """
        if self._num_processes == 1:
            return
        sockets = sockets_in(self._folder)
        if len(sockets) != self._num_processes:
            raise CommitError(
                f"{len(sockets)} of {self._num_processes} API processes are up; try again when "
                "all are"
            )
        others = [path for path in sockets if path != self._own]
        line = await asyncio.to_thread(_line, message)
        answers = await asyncio.gather(*(_ask(path, line) for path in others))
        for path, answer in zip(others, answers, strict=True):
            if not answer.get("ok"):
                raise NotAcceptedError(
                    f"API process {path.stem} did not follow: {answer.get('reason', 'no reason')}"
                )

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            answer = await self._reply(await reader.readline())
            writer.write(json.dumps(answer).encode() + b"\n")
            await writer.drain()
        except (ConnectionError, asyncio.LimitOverrunError, ValueError):
            pass  # the asking process takes a missing answer for a refusal
        finally:
            writer.close()

    async def _reply(self, line: bytes) -> Message:
        try:
            message = await asyncio.to_thread(json.loads, line)  # a whole store may be in it
            return {"ok": True, **await self._receive(message)}
        except ValueError as error:
            return {"ok": False, "reason": str(error)}


def sockets_in(folder: Path) -> list[Path]:
    """The sockets of the API processes that are up."""
    return sorted(folder.glob("*.sock"))


def ask_any(folder: Path, message: Message, *, timeout_s: float) -> Message:
    """Sends a message to any one of the processes, from outside their event loops.

    Returns: the process's answer. Raises: CommitError if none can be reached.
    """
    reason = "none is up yet"
    for path in sockets_in(folder):
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                connection.settimeout(timeout_s)
                connection.connect(str(path))
                connection.sendall(_line(message))
                with connection.makefile("rb") as answer:
                    return dict(json.loads(answer.readline()))
        except (OSError, ValueError) as error:
            reason = str(error)
    raise CommitError(f"no API process can be reached: {reason}")


def _line(message: Message) -> bytes:
    return json.dumps(message).encode() + b"\n"


async def _ask(path: Path, line: bytes) -> Message:
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            reader, writer = await asyncio.open_unix_connection(str(path), limit=_MAX_MESSAGE_BYTES)
            try:
                writer.write(line)
                await writer.drain()
                return dict(json.loads(await reader.readline()))
            finally:
                writer.close()
    except TimeoutError:
        return {"ok": False, "reason": f"no answer within {ANSWER_TIMEOUT_S:g} s"}
    except (OSError, ValueError) as error:
        return {"ok": False, "reason": f"it cannot be reached: {error}"}

"""An application on a real uvicorn on loopback, for tests of what happens on sockets."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable, Coroutine, Generator, Iterator
from typing import Any

import uvicorn
from starlette.types import ASGIApp


class LoopbackServer(uvicorn.Server):
    """uvicorn without signal handlers."""

    port: int
    loop: asyncio.AbstractEventLoop

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield

    def run_in_loop(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Does something in the server's loop and waits for it."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(30)


@contextlib.contextmanager
def serving(
    make_app: Callable[[], ASGIApp],
    change: Callable[[uvicorn.Config], None] = lambda config: None,
    new_loop: Callable[[], asyncio.AbstractEventLoop] | None = None,
    **settings: Any,
) -> Iterator[LoopbackServer]:
    """A server that answers.

    Args:
      make_app: called in the server's event loop.
      change: called with the server's configuration before it begins.
      new_loop: makes the event loop; None takes asyncio's.
      settings: of uvicorn.
    """
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    ready = threading.Event()
    found: list[LoopbackServer] = []

    async def main() -> None:
        config = uvicorn.Config(
            make_app(), log_level="critical", lifespan="off", http="httptools", **settings
        )
        config.load()
        change(config)
        server = LoopbackServer(config)
        server.port, server.loop = listener.getsockname()[1], asyncio.get_running_loop()
        found.append(server)
        listener.listen(128)
        ready.set()
        await server.serve(sockets=[listener])

    def run() -> None:
        with asyncio.Runner(loop_factory=new_loop) as runner:
            runner.run(main())

    thread = threading.Thread(target=run)
    thread.start()
    assert ready.wait(10)
    try:
        yield found[0]
    finally:
        found[0].should_exit = found[0].force_exit = True
        thread.join(20)
    assert not thread.is_alive()

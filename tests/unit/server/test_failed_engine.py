"""A start does not wait for an engine that has died; an API process whose engine failed ends with
exit code 1, any other with 0."""

from __future__ import annotations

import asyncio
import multiprocessing
from functools import partial

import pytest

from prefmix.server.failed_engine import await_while_alive, end_with_error


class Client:
    """The shutdown of vLLM's engine client, after which it counts as failed."""

    errored = False

    def shutdown(self, timeout: float | None = None) -> None:
        self.errored = True


def serve(*, fails: bool, has_signal: bool) -> None:
    """Ends as vLLM's API process does."""
    client = Client()

    async def main() -> None:
        end_with_error(client)
        client.errored = fails
        try:
            if has_signal:
                loop = asyncio.get_running_loop()
                await loop.run_in_executor(None, partial(client.shutdown, timeout=1))
        finally:
            client.shutdown(timeout=1)

    asyncio.run(main())


@pytest.mark.parametrize("has_signal", [False, True])
@pytest.mark.parametrize("fails", [False, True])
def test_a_child_of_the_launcher_ends_with_an_error(fails: bool, has_signal: bool) -> None:
    kwargs = {"fails": fails, "has_signal": has_signal}
    child = multiprocessing.get_context("fork").Process(target=serve, kwargs=kwargs)
    child.start()
    child.join(60)
    assert child.exitcode == int(fails)


def test_the_launcher_itself_raises_its_own_error() -> None:
    serve(fails=True, has_signal=False)


def test_a_start_ends_with_its_engine() -> None:
    client = Client()
    was_cancelled = False

    async def asks_the_engine() -> None:
        nonlocal was_cancelled
        client.errored = True
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            was_cancelled = True
            raise

    async def start() -> None:
        await asyncio.wait_for(await_while_alive(client, asks_the_engine()), 60)

    with pytest.raises(RuntimeError, match="the engine's process died"):
        asyncio.run(start())
    assert was_cancelled


def test_a_start_with_its_engine_alive_ends_as_its_work_does() -> None:
    async def work(error: Exception | None) -> None:
        await asyncio.sleep(0)
        if error is not None:
            raise error

    asyncio.run(await_while_alive(Client(), work(None)))
    with pytest.raises(ValueError, match="own"):
        asyncio.run(await_while_alive(Client(), work(ValueError("its own"))))

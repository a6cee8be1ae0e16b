"""Memory of large bodies is given back once they are answered, not at every request."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from prefmix.server.traffic import freed_memory
from prefmix.server.traffic.freed_memory import LARGE_BYTES, FreedMemory


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(freed_memory, "DELAY_S", 0.01)


async def noted(freed: FreedMemory, *sizes: int) -> None:
    for size in sizes:
        freed.note(size)
    await asyncio.sleep(0.05)
    await asyncio.get_running_loop().shutdown_default_executor()


def test_large_bodies_have_it_given_back_once_and_in_a_thread() -> None:
    freed = FreedMemory()
    threads: list[int] = []
    freed._trim = lambda _: threads.append(threading.get_ident())
    asyncio.run(noted(freed, 0, LARGE_BYTES - 1))
    assert threads == []
    asyncio.run(noted(freed, LARGE_BYTES, 10, 4 * LARGE_BYTES))
    assert len(threads) == 1
    assert threads != [threading.get_ident()]
    asyncio.run(noted(freed, LARGE_BYTES))
    assert len(threads) == 2


def test_the_process_holds_less_afterwards() -> None:
    def used() -> list[bytes]:
        """Pieces that the thread's arena keeps, and a few between them that stay in use."""
        return [b"x" * 60_000 for _ in range(2000)][::20]

    with ThreadPoolExecutor(1) as executor:
        stays = executor.submit(used).result()
        before = psutil.Process().memory_info().rss
        asyncio.run(noted(FreedMemory(), LARGE_BYTES))
        given_back = before - psutil.Process().memory_info().rss
    assert len(stays) == 100
    assert given_back > 50 * 2**20

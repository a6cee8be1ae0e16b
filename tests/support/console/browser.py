"""A real browser for the tests of the console's pages."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from playwright.sync_api import Browser, ConsoleMessage, Page, expect, sync_playwright

from support import tools


@contextmanager
def chromium() -> Iterator[Browser]:
    """One headless browser that can reach loopback and nothing else."""
    path = tools.find("chromium")
    flags = ["--disable-dev-shm-usage", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
    if os.geteuid() == 0:  # Chromium's own sandbox refuses root
        flags.append("--no-sandbox")
    expect.set_options(timeout=60_000)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=flags)
        yield browser
        browser.close()


@contextmanager
def new_tab(browser: Browser, url: str, **settings: Any) -> Iterator[Page]:
    """A fresh tab; no request of it may leave the server and no script of it may fail.

    Args:
      url: the server's.
      settings: of the browser's context.
    """
    context = browser.new_context(**({"viewport": {"width": 1440, "height": 900}} | settings))
    context.set_default_timeout(60_000)
    requests: list[str] = []
    problems: list[str] = []

    def note(message: ConsoleMessage) -> None:
        # The browser also logs every refused request, which these tests provoke on purpose.
        if message.type == "error" and "Failed to load resource" not in message.text:
            problems.append(message.text)

    context.on("request", lambda request: requests.append(request.url.removeprefix("blob:")))
    page = context.new_page()
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", note)
    yield page
    context.close()
    assert not problems
    assert [place for place in requests if not place.startswith((f"{url}/", "about:"))] == []

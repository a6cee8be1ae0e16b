"""The console in a browser, before stand-ins."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from support.console.browser import chromium, new_tab
from support.console.page import THREE, Opened
from support.console.stand_in import stand_in
from support.loopback_server import serving


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def opened(browser: Browser) -> Iterator[Opened]:
    """Opens the console before a stand-in with these settings."""
    with ExitStack() as stack:

        def open_page(
            policies: tuple[str, ...] = THREE, *, state: str = "", tab: Any = None, **settings: Any
        ) -> Page:
            app = stand_in(policies, **({"prompt": "Ask"} | settings))
            url = f"http://127.0.0.1:{stack.enter_context(serving(lambda: app)).port}"
            page = stack.enter_context(new_tab(browser, url, **(tab or {})))
            page.goto(f"{url}/console{state}")
            expect(page.locator(".mix").first).to_be_visible()
            page.asked = app.state.asked  # type: ignore[attr-defined]
            page.policies = app.state.policies  # type: ignore[attr-defined]
            return page

        yield open_page

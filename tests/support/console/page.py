"""Steps that tests take on the console's page."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from playwright.sync_api import Locator, Page, expect

PHONE = {"width": 390, "height": 844}
THREE = ("positive", "concise", "polite")

Opened = Callable[..., Page]
"""The fixture `opened`: it opens the console before a stand-in with the settings it is given."""


def asked(page: Page) -> list[dict[str, Any]]:
    """The bodies of all requests so far, in their order."""
    return list(page.asked)  # type: ignore[attr-defined]


def run(page: Page) -> None:
    """Presses Run and waits for the ends of all answers."""
    page.get_by_role("button", name="Run", exact=True).click()
    finished(page)


def finished(page: Page) -> None:
    expect(page.locator(".mix.running")).to_have_count(0)
    expect(page.locator(".text.shaded")).to_have_count(page.locator(".mix").count())


def mix(page: Page, letter: str) -> Locator:
    return page.get_by_role("region", name=f"Mix {letter}", exact=True)

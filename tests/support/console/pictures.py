"""The pictures of the console in docs/images, taken from the demo.

    .venv/bin/prefmix serve policies/demo/serve.yaml
    .venv/bin/python tests/support/console/pictures.py http://127.0.0.1:8000

The machine needs chromium and a font that most readers have (fonts-liberation, which stands for
Arial).
"""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Browser, Page, expect

from support.console.browser import chromium, new_tab
from support.console.page import PHONE, finished, mix, run

FOLDER = Path(__file__).resolve().parents[3] / "docs" / "images"
MIXES = "#p=Review+the+Park+Hotel.&s=233&mix=@balanced&mix=@short-and-kind&mix=concise:1"
NUM_COLOURS = 256


def main(url: str) -> None:
    """Takes the console in light, in dark and on a phone."""
    desk = {"viewport": {"width": 1440, "height": 820}, "device_scale_factor": 1.5}
    with chromium() as browser:
        for name, scheme, tab in (
            ("console", "light", desk),
            ("console-dark", "dark", desk),
            ("console-phone", "light", {"viewport": PHONE, "device_scale_factor": 2}),
        ):
            take(browser, url, FOLDER / f"{name}.png", color_scheme=scheme, **tab)


def take(browser: Browser, url: str, file: Path, **tab: Any) -> None:
    """One picture, after a run, a change of the first mix's weights and a look at one token."""
    with new_tab(browser, url, **tab) as page:
        page.goto(f"{url}/console{MIXES}")
        expect(page.locator(".mix").first).to_be_visible()
        run(page)
        mix(page, "A").get_by_role("slider", name="positive", exact=True).fill("0.6")
        expect(mix(page, "A").locator(".change")).to_be_visible()
        finished(page)
        widest(page).hover()
        page.wait_for_timeout(500)  # shades and bars move to their places
        is_phone = tab["viewport"] == PHONE
        picture = Image.open(io.BytesIO(page.screenshot(full_page=not is_phone)))
        picture.quantize(NUM_COLOURS, dither=Image.Dither.NONE).save(file, optimize=True)


def widest(page: Page) -> Any:
    """The longest token that a policy claims in the first answer."""
    spans = mix(page, "A").locator(".text span")
    texts = spans.all_text_contents()
    return spans.nth(texts.index(max(texts, key=len)))


if __name__ == "__main__":
    main(sys.argv[1])

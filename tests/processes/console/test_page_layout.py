"""The console in a browser, as it looks: long names, other fonts, a phone, many policies.

No engine: the answers are the stand-in's. test_console.py has the demo's own.
"""

from __future__ import annotations

import itertools
import re

import pytest
from playwright.sync_api import Page, expect

from support.console.page import PHONE, THREE, Opened, mix, run

LONG = (
    "helpfulness-preference-model-epoch-3-v2",
    "harmlessness_dpo_beta0.1_checkpoint_000400",
    "conciseness.simpo.learning-rate-5e-7",
)
OVERFLOWING = """() => {
    const wrong = [];
    const names = ".name > span, .choice > span, .corner-name, h1, .asked, .change, .plain, .solid";
    for (const node of document.querySelectorAll(names)) {
        if (!node.checkVisibility() || !node.textContent) continue;
        const range = document.createRange();
        range.selectNodeContents(node);
        const text = range.getBoundingClientRect();
        const cut = [];
        for (let box = node; box !== document.body; box = box.parentElement) {
            const style = getComputedStyle(box), edge = box.getBoundingClientRect();
            const clips = box === node || style.overflowX !== "visible";
            if (clips && style.display !== "inline" && box.id !== "mixes"
                && (text.right > edge.right + 1 || text.left < edge.left - 1)) cut.push(box);
            if (box.matches("section, header")) break;
        }
        if (cut.length || getComputedStyle(node).textOverflow === "ellipsis")
            wrong.push(node.textContent);
    }
    return wrong;
}"""
"""The texts that reach out of the box they belong to, or end in an ellipsis."""

OVERLAPPING = """() => {
    const wrong = [];
    for (const mix of document.querySelectorAll(".mix")) {
        const parts = [...mix.querySelectorAll(".head, .balance, .row, .reply, .measures, .foot")];
        const boxes = parts.map((part) => part.getBoundingClientRect());
        boxes.forEach((a, i) => boxes.slice(i + 1).forEach((b, j) => {
            const isOver = a.left < b.right - 1 && b.left < a.right - 1
                && a.top < b.bottom - 1 && b.top < a.bottom - 1;
            if (isOver) wrong.push([parts[i].className, parts[i + 1 + j].className]);
        }));
    }
    return wrong;
}"""


@pytest.mark.parametrize("width", [390, 1024, 1440])
def test_no_name_is_cut_off_and_nothing_overlaps(opened: Opened, width: int) -> None:
    for names, reference in ((LONG, "supervised-finetuned-reference-8b"), (THREE, "reference")):
        profile = "a-balanced-profile-with-a-rather-long-name-for-a-console"
        page = opened(
            names,
            reference=reference,
            profiles={profile: dict.fromkeys(names, 1 / 3)},
            model="organisation/a-very-long-name-of-a-served-mixture-of-models",
            state=f"#p=Ask&mix=@{profile}*8&mix={names[1]}:1&mix={names[2]}:1",
            tab={"viewport": {"width": width, "height": 900}},
            ways_to_mix=("logits", "parameters"),
            most_candidates=16,
        )
        run(page)
        expect(page.locator(".several input:visible").first).to_have_value("8")
        for font in ("DejaVu Sans", "Arial"):
            page.evaluate("font => { document.body.style.fontFamily = font; }", font)
            assert page.evaluate(OVERFLOWING) == [], font
            assert page.evaluate(OVERLAPPING) == [], font
            assert page.evaluate("document.documentElement.scrollWidth") == width, font
        page.get_by_role("button", name="Profiles").click()
        dialog = page.get_by_role("dialog")
        expect(dialog).to_be_visible()
        for font in ("DejaVu Sans", "Arial"):
            page.evaluate("font => { document.body.style.fontFamily = font; }", font)
            assert dialog.evaluate("d => d.scrollWidth - d.clientWidth") == 0, font


def test_the_triangles_corners_are_labelled(opened: Opened) -> None:
    page = opened()
    balance = mix(page, "A").locator(".balance")
    assert balance.locator(".corner-name").all_text_contents() == list(THREE)
    middles = balance.locator(".corner-name").evaluate_all(
        """all => all.map(label => {
            const box = label.getBoundingClientRect();
            return [(box.left + box.right) / 2, (box.top + box.bottom) / 2];
        })"""
    )
    corners = balance.locator(".corner").evaluate_all(
        """all => all.map(corner => {
            const box = corner.getBoundingClientRect();
            return [(box.left + box.right) / 2, (box.top + box.bottom) / 2];
        })"""
    )
    for (x, y), (corner_x, corner_y) in zip(middles, corners, strict=True):
        assert abs(x - corner_x) < 40
        assert abs(y - corner_y) < 30


def test_on_a_phone_answers_are_compared_by_a_tab_or_a_swipe(opened: Opened) -> None:
    """Every answer is at the same place of the screen, one at a time."""
    page = opened(tab={"viewport": PHONE, "has_touch": True})
    run(page)
    one, other = (mix(page, letter).locator(".text") for letter in "AB")
    expect(one).to_be_in_viewport(ratio=0.9)
    expect(other).not_to_be_in_viewport()
    tops = "[...document.querySelectorAll('.text')].map(t => t.getBoundingClientRect().top)"
    top, top_of_other = page.evaluate(tops)
    assert top == top_of_other

    tab = page.get_by_role("button", name="Show mix B")
    tab.click()
    expect(other).to_be_in_viewport(ratio=0.9)
    expect(one).not_to_be_in_viewport()
    expect(tab).to_have_attribute("aria-current", "true")

    box = other.bounding_box()
    assert box is not None
    swipe(page, x=box["x"] + 60, y=box["y"] + 40, distance=250)
    expect(one).to_be_in_viewport(ratio=0.9)
    expect(other).not_to_be_in_viewport()
    expect(tab).to_have_attribute("aria-current", "false")


def swipe(page: Page, *, x: float, y: float, distance: float) -> None:
    """Moves a finger over the screen, a tenth of the distance at a time."""
    devtools = page.context.new_cdp_session(page)
    places = [{"x": x + distance * step / 10, "y": y} for step in range(11)]
    for kind, place in [("touchStart", places[0]), *(("touchMove", each) for each in places[1:])]:
        devtools.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [place]})
        page.wait_for_timeout(16)
    devtools.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})


def test_a_finger_on_the_triangle_moves_weights_and_no_page(opened: Opened) -> None:
    page = opened(
        tab={"viewport": PHONE, "has_touch": True}, state="#p=Ask&mix=concise:1&mix=polite:1"
    )
    triangle = mix(page, "A").locator(".triangle")
    triangle.scroll_into_view_if_needed()
    box = triangle.bounding_box()
    assert box is not None
    y = box["y"] + 0.8 * box["height"]
    swipe(page, x=box["x"] + 0.9 * box["width"], y=y, distance=-0.7 * box["width"])
    assert page.locator("#mixes").evaluate("mixes => mixes.scrollLeft") == 0
    concise = mix(page, "A").get_by_label("concise, as a number")
    assert 0.5 < float(concise.input_value()) < 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_sixteen_policies_have_sixteen_colours(opened: Opened, scheme: str) -> None:
    """Each is at least as far from all others as the two nearest of Okabe and Ito's are."""
    names = tuple(f"policy{place}" for place in range(16))
    page = opened(names, reference="base", tab={"color_scheme": scheme})
    found = page.locator("#names .swatch").evaluate_all(
        "all => all.map(s => getComputedStyle(s).backgroundColor)"
    )
    colours = [tuple(map(int, re.findall(r"\d+", colour))) for colour in found]
    assert len(colours) == 17
    nearest = min(
        sum((a - b) ** 2 for a, b in zip(one, other, strict=True)) ** 0.5
        for one, other in itertools.combinations(colours, 2)
    )
    assert nearest > 40

"""The console in a real browser, before servers of many kinds: two policies or sixteen, long names.

No engine: the answers are the stand-in's. tests/server/test_console.py has the demo's own.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from support.console.browser import chromium, new_tab
from support.console.stand_in import stand_in
from support.loopback_server import serving

PHONE = {"width": 390, "height": 844}
THREE = ("positive", "concise", "polite")
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

Opened = Callable[..., Page]


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
            return page

        yield open_page


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


def test_two_policies_start_as_one_each(opened: Opened) -> None:
    page = opened(("helpful", "harmless"))
    assert page.locator(".choice > span").all_text_contents() == ["helpful alone", "harmless alone"]
    run(page)
    weights = [body["preference_weights"] for body in asked(page)]
    assert sorted(map(str, weights)) == ["{'harmless': 1}", "{'helpful': 1}"]


@pytest.mark.parametrize("num_policies", [1, 3, 5])
def test_the_first_two_mixes_visibly_differ(opened: Opened, num_policies: int) -> None:
    names = tuple(f"policy{place}" for place in range(num_policies))
    page = opened(names, reference="base")
    expect(page.locator(".mix")).to_have_count(2)
    run(page)
    one, other = (mix(page, letter).locator(".text") for letter in "AB")
    assert one.text_content() != other.text_content()
    colours = [
        text.locator("span").evaluate_all("all => [...new Set(all.map(s => s.dataset.hue))]")
        for text in (one, other)
    ]
    assert colours == [["0"], ["reference" if num_policies == 1 else "1"]]


def test_prompt_and_title_are_the_servers_own(opened: Opened) -> None:
    page = opened(model="org/mine", prompt="What is it?")
    expect(page.get_by_label("Prompt", exact=True)).to_have_value("What is it?")
    expect(page.get_by_role("heading", level=1)).to_have_text("org/mine")
    expect(page).to_have_title(re.compile("^org/mine"))
    page = opened(model="other", prompt=None)
    field = page.get_by_label("Prompt", exact=True)
    expect(field).to_have_value("")
    expect(field).to_have_attribute("placeholder", "Ask other")
    assert "Park Hotel" not in (page.locator("body").text_content() or "")


def longest_common(one: list[str], other: list[str]) -> int:
    """The length of the longest common subsequence, by its definition."""
    row = [0] * (len(other) + 1)
    for word in one:
        before = row[:]
        for at, each in enumerate(other):
            row[at + 1] = before[at] + 1 if word == each else max(before[at + 1], row[at])
    return row[-1]


def tokens(page: Page, letter: str, kind: str = "span") -> list[str]:
    return mix(page, letter).locator(f".text {kind}").all_text_contents()


def test_what_changed_since_the_last_run_is_marked(opened: Opened) -> None:
    """Unmarked tokens are in both answers and in one order; as many as can be are unmarked."""
    page = opened(state="#p=Ask&mix=positive:0.5,polite:0.5&mix=concise:1")
    run(page)
    note = mix(page, "A").locator(".change")
    expect(note).to_be_hidden()
    before = tokens(page, "A")
    mix(page, "A").get_by_role("slider", name="polite", exact=True).fill("0.7")
    expect(note).to_be_visible()
    finished(page)
    now, kept = tokens(page, "A"), tokens(page, "A", "span:not(.new)")
    assert 0 < len(kept) < len(now)
    assert len(kept) == longest_common(before, now) == longest_common(kept, before)
    expect(note).to_have_text(
        f"{len(now) - len(kept)} of {len(now)} tokens changed since the last run"
    )
    underlined = mix(page, "A").locator(".text .new").first
    expect(underlined).to_have_css("text-decoration-line", "underline")
    expect(mix(page, "B").locator(".change")).to_be_hidden()


def test_it_says_so_when_nothing_changed(opened: Opened) -> None:
    page = opened()
    run(page)
    run(page)
    for letter in "AB":
        note = mix(page, letter).locator(".change")
        expect(note).to_have_text("Nothing changed: the same answer as in the last run")
        expect(mix(page, letter).locator(".new")).to_have_count(0)
    page.get_by_label("Prompt", exact=True).fill("Something else")
    run(page)
    expect(mix(page, "A").locator(".change")).to_be_hidden()


@pytest.mark.parametrize("font", ["DejaVu Sans", "Arial"])
@pytest.mark.parametrize("width", [390, 1024, 1440])
def test_no_name_is_cut_off_and_nothing_overlaps(opened: Opened, width: int, font: str) -> None:
    for names, reference in ((LONG, "supervised-finetuned-reference-8b"), (THREE, "reference")):
        profile = "a-balanced-profile-with-a-rather-long-name-for-a-console"
        page = opened(
            names,
            reference=reference,
            profiles={profile: dict.fromkeys(names, 1 / 3)},
            model="organisation/a-very-long-name-of-a-served-mixture-of-models",
            state=f"#p=Ask&mix=@{profile}&mix={names[1]}:1&mix={names[2]}:1",
            tab={"viewport": {"width": width, "height": 900}},
        )
        page.evaluate("font => { document.body.style.fontFamily = font; }", font)
        run(page)
        assert page.evaluate(OVERFLOWING) == []
        assert page.evaluate(OVERLAPPING) == []
        assert page.evaluate("document.documentElement.scrollWidth") == width
        page.get_by_role("button", name="Profiles").click()
        size = page.get_by_role("dialog").evaluate("d => d.scrollWidth - d.clientWidth")
        assert size == 0


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


def test_there_is_one_run_and_no_version_at_first_sight(opened: Opened) -> None:
    page = opened(has_admin=True)
    expect(page.get_by_role("button", name=re.compile("^Run"))).to_have_count(1)
    assert "version" not in page.locator("body").inner_text().lower()


@pytest.mark.parametrize(
    ("has_admin", "words"),
    [(True, "asks for the admin token"), (False, "start it with PREFMIX_ADMIN_TOKEN_FILE")],
)
def test_publishing_says_what_it_needs(opened: Opened, has_admin: bool, words: str) -> None:
    page = opened(has_admin=has_admin)
    mix(page, "A").get_by_role("button", name="Publish").click()
    expect(page.get_by_role("dialog")).to_contain_text("Publishing a mix as a profile changes")
    expect(page.get_by_role("dialog")).to_contain_text(words)
    expect(page.get_by_label("Admin token")).to_have_count(int(has_admin))


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


def test_system_prompt_and_sampling_go_with_the_request(opened: Opened) -> None:
    page = opened()
    run(page)
    plain = asked(page)[-1]
    assert plain["messages"] == [{"role": "user", "content": "Ask"}]
    assert not {"temperature", "top_p"} & plain.keys(), "left to the model's own"
    page.locator("#options summary").click()
    page.get_by_label("System prompt").fill("Be kind.")
    page.get_by_label("Temperature").fill("0.7")
    page.get_by_label("Top p").fill("0.95")
    page.get_by_label("Max tokens").fill("17")
    run(page)
    body = asked(page)[-1]
    assert body["messages"][0] == {"role": "system", "content": "Be kind."}
    given = {name: body[name] for name in ("temperature", "top_p", "max_tokens", "seed")}
    assert given == {"temperature": 0.7, "top_p": 0.95, "max_tokens": 17, "seed": 1}
    page.get_by_role("button", name="Copy link").click()
    page.reload()
    # A setting that is not the model's own is in sight.
    expect(page.get_by_label("System prompt")).to_have_value("Be kind.")
    expect(page.get_by_label("Top p")).to_have_value("0.95")
    expect(page.get_by_label("Top p")).to_be_visible()


def test_a_second_turn_goes_on_from_each_mixs_own_answer(opened: Opened) -> None:
    page = opened()
    follow_up = page.get_by_role("button", name="Follow up")
    expect(follow_up).to_be_hidden()
    run(page)
    first = {letter: mix(page, letter).locator(".text").text_content() for letter in "AB"}
    follow_up.click()
    prompt = page.get_by_label("Prompt", exact=True)
    expect(prompt).to_have_value("")
    expect(prompt).to_be_focused()
    expect(page.locator("#turn")).to_contain_text("Turn 2")
    page.keyboard.type("And then?")
    page.keyboard.press("Enter")
    finished(page)
    for body, letter in zip(sorted(asked(page)[-2:], key=by_policy), "BA", strict=True):
        roles = [message["role"] for message in body["messages"]]
        assert roles == ["user", "assistant", "user"]
        texts = [message["content"] for message in body["messages"]]
        assert texts == ["Ask", first[letter], "And then?"]
        expect(mix(page, letter).locator(".turns")).to_contain_text(first[letter] or "")
    # The next mix has the conversation of the one that it copies.
    page.get_by_role("button", name="Add a mix").click()
    expect(mix(page, "C").locator(".turns")).to_contain_text(first["B"] or "")
    page.get_by_role("button", name="Start over").click()
    expect(prompt).to_have_value("Ask")
    expect(page.locator("#turn")).to_be_hidden()
    expect(page.locator(".turns:visible")).to_have_count(0)
    run(page)
    assert [message["role"] for message in asked(page)[-1]["messages"]] == ["user"]


def by_policy(body: dict[str, Any]) -> str:
    return str(next(iter(body["preference_weights"])))


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

"""The mixing console in a real browser against the demo policies: what a person does with it."""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, Locator, Page, Response, Route, expect

from support.console.browser import chromium, new_tab
from support.preloaded_server import Preloaded
from support.server_process import ServerProcess

ROOT = Path(__file__).resolve().parents[3]
CONFIG = ROOT / "policies" / "demo" / "serve.yaml"
POLICIES = ("positive", "concise", "polite", "reference")
TOKEN = "admin-token-of-the-test"
KEY = "inference-key-of-the-test"
CHAT = "/v1/chat/completions"
PROFILES = "#p=Review+the+Park+Hotel.&mix=@balanced&mix=@short-and-kind&mix=@glowing-letter"
SHORT = f"{PROFILES}&n=40"
DOT = "R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw=="
REPORT = f"""<!doctype html><title>A fit</title><style>h1 {{ color: rgb(1, 2, 3) }}</style>
<h1>A fit</h1><img alt="chart" src="data:image/gif;base64,{DOT}">
<script>document.querySelector("h1").textContent = "run"</script>
<img src="/console/icon.svg" alt="other">"""
MAX_PAGE_BYTES = 100_000
PHONE = {"width": 390, "height": 844}
NAMELESS = re.compile(
    r"- (?:button|link|textbox|slider|spinbutton|combobox|checkbox)(?:$| \[|:)", re.MULTILINE
)
"""A control in Playwright's accessibility tree that has no name."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, browser: Browser, preloaded: Preloaded
) -> Iterator[ServerProcess]:
    """One server for every check: API key, admin token, a store and a fit's report."""
    folder = tmp_path_factory.mktemp("console")
    (folder / "demo-report").mkdir()
    (folder / "demo-report" / "report.html").write_text(REPORT)
    words = ["--weights-store", str(folder / "weights.json"), "--reports-dir", str(folder)]
    server = ServerProcess(
        folder,
        [str(CONFIG), *words],
        preloaded=preloaded,
        PREFMIX_ADMIN_TOKEN=TOKEN,
        VLLM_API_KEY=KEY,
    )
    try:
        yield server.wait_ready()
    finally:
        server.kill()


@pytest.fixture
def page(browser: Browser, server: ServerProcess) -> Iterator[Page]:
    with new_tab(browser, server.url) as page:
        yield page


def open_console(page: Page, server: ServerProcess, *, state: str = SHORT) -> None:
    """Opens the console with a mix for each profile and gives it the API key."""
    page.goto(f"{server.url}/console{state}")
    page.get_by_label("API key").fill(KEY)
    page.get_by_role("button", name="Open").click()
    expect(page.locator(".mix").first).to_be_visible()


def mix(page: Page, letter: str) -> Locator:
    return page.get_by_role("region", name=f"Mix {letter}", exact=True)


def run_all(page: Page) -> None:
    """Presses Run and waits until every answer has ended and is shaded."""
    page.get_by_role("button", name="Run", exact=True).click()
    num_mixes = page.locator(".mix").count()
    expect(page.locator(".text.shaded")).to_have_count(num_mixes, timeout=180_000)


def is_generation(response: Response) -> bool:
    return response.request.method == "POST" and "/v1/" in response.url


def choices(response: Response) -> list[dict[str, Any]]:
    """The choices of a stream's chunks."""
    lines = [line.removeprefix("data: ") for line in response.text().splitlines() if line]
    assert lines[-1] == "[DONE]"
    return [choice for line in lines[:-1] for choice in json.loads(line)["choices"]]


def used_weights(response: Response) -> dict[str, float]:
    """The weights the server says it used."""
    pairs = (pair.split("=") for pair in response.headers["x-prefmix-weights"].split(","))
    return {name: float(value) for name, value in pairs}


def admin(server: ServerProcess, method: str, path: str, body: Any = None) -> Any:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    answer = httpx.request(method, f"{server.url}/admin{path}", json=body, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_it_asks_for_the_key_and_keeps_it_in_memory_only(page: Page, server: ServerProcess) -> None:
    page.goto(f"{server.url}/console")
    page.get_by_label("API key").fill("wrong")
    page.get_by_role("button", name="Open").click()
    expect(page.get_by_role("alert").first).to_contain_text("The server does not take this key.")
    page.get_by_label("API key").fill(KEY)
    page.keyboard.press("Enter")
    expect(page.locator(".mix")).to_have_count(2)
    expect(page.get_by_label("API key")).to_be_hidden()
    page.get_by_role("button", name="Copy link").click()
    assert KEY not in page.url
    kept = page.evaluate("[localStorage.length, sessionStorage.length, document.cookie]")
    assert kept == [0, 0, ""]
    page.reload()
    expect(page.get_by_label("API key")).to_have_value("")


def test_the_page_is_light(page: Page, server: ServerProcess) -> None:
    """The bytes that are loaded up to the first answer, without the report, are few."""
    sizes = dict[str, int]()
    page.on(
        "response",
        lambda answer: sizes.update({answer.url: int(answer.headers.get("content-length", 0))}),
    )
    open_console(page, server)
    run_all(page)
    files = {url: size for url, size in sizes.items() if "/console" in url}
    assert len(files) > 8
    assert all(files.values())
    assert sum(files.values()) < MAX_PAGE_BYTES


def test_answers_stream_side_by_side_and_every_token_is_shaded(
    page: Page, server: ServerProcess
) -> None:
    """The page shows the server's figures, which are computed here a second time."""
    open_console(page, server, state=f"{PROFILES}&n=120&t=1&s=5")
    answers: list[Response] = []
    page.on("response", lambda answer: answers.append(answer) if is_generation(answer) else None)
    page.evaluate(
        """() => {
            window.lengths = [];
            const text = document.querySelector(".text");
            new MutationObserver(() => lengths.push(text.textContent.length))
                .observe(text, {childList: true});
        }"""
    )
    run_all(page)
    growing = page.evaluate("window.lengths")
    assert len(set(growing)) > 2, "the text came in pieces"
    assert all(before <= after for before, after in pairwise(growing[1:]))
    assert len(answers) == 3
    largest = 0.0
    for letter, profile in zip(
        "ABC", ("balanced", "short-and-kind", "glowing-letter"), strict=True
    ):
        (answer,) = (a for a in answers if a.headers["x-prefmix-profile"] == profile)
        weights, parts = used_weights(answer), choices(answer)
        attribution = parts[-1]["preference_attribution"]
        column = mix(page, letter)
        text = "".join(part["delta"].get("content", "") for part in parts)
        assert column.locator(".text").text_content() == text
        expected = [
            str(max((n for n in POLICIES if weights[n] > 0), key=lambda n: token["logprobs"][n]))
            for token in attribution["tokens"][: column.locator(".text span").count()]
        ]
        hues = column.locator(".text span").evaluate_all("all => all.map(s => s.dataset.hue)")
        assert hues == [str(POLICIES.index(name)) for name in expected]
        shown = column.locator("tbody tr").evaluate_all("r => r.map(x => x.cells[2].textContent)")
        kls = [attribution["policies"][name]["mean_kl"] for name in POLICIES]
        assert shown == ["unused" if kl is None else f"{kl:.2f}" for kl in kls]
        largest = max(largest, *(kl for kl in kls if kl is not None))
    bars = page.locator(".bar i").evaluate_all("all => all.map(i => parseFloat(i.style.width))")
    filled = 100 * largest / max(largest, 0.1)
    assert math.isclose(max(bars), filled, rel_tol=1e-3), "the largest KL of all fills its bar"


def answer_with(page: Page, chunks: list[tuple[str, list[str]]], wanted: list[str]) -> None:
    """Lets every request be answered by these pieces of text and their tokens.

    Args:
      wanted: for each token the policy that gave it most.
    """
    tokens = [
        {"logprobs": {name: -0.1 if name == winner else -3.0 for name in POLICIES[:3]}}
        for winner in wanted
    ]
    events = [
        {"delta": {"content": text}, "logprobs": {"content": [{"token": each} for each in given]}}
        for text, given in chunks
    ]
    measured = {name: {"mean_kl": 0.5, "agreement": None} for name in POLICIES}
    events[-1]["preference_attribution"] = {
        "num_tokens": len(wanted),
        "policies": measured,
        "tokens": tokens,
    }
    lines = [f"data: {json.dumps({'choices': [event]})}\n\n" for event in events]
    page.route(
        f"**{CHAT}",
        lambda route: route.fulfill(
            body="".join([*lines, "data: [DONE]\n\n"]),
            content_type="text/event-stream",
            headers={"x-prefmix-weights": "positive=0.3,concise=0.3,polite=0.4,reference=0"},
        ),
    )


def test_text_and_tokens_are_matched_however_they_come(page: Page, server: ServerProcess) -> None:
    """Several tokens in one chunk, a character of two tokens, an end without text."""
    chunks = [("H", ["H"]), ("", ["\ufffd"]), ("é", ["\ufffd"]), (" a b", [" a", " b", "</s>"])]
    wanted = ["positive", "positive", "concise", "polite", "positive", "concise"]
    answer_with(page, chunks, wanted)
    open_console(page, server)
    run_all(page)
    text = mix(page, "A").locator(".text")
    assert text.text_content() == "Hé a b"
    spans = text.locator("span").evaluate_all("all => all.map(s => [s.textContent, s.dataset.hue])")
    assert spans == [["H", "0"], ["é", "1"], ["a", "2"], ["b", "0"]]


def test_a_long_answer_keeps_to_its_place(page: Page, server: ServerProcess) -> None:
    """The answer scrolls by itself: its newest tokens, and one that keys select, are in sight."""
    words = [f" word{place}" for place in range(600)]
    answer_with(page, [(word, [word]) for word in words], ["polite"] * len(words))
    open_console(page, server)
    run_all(page)
    text = mix(page, "A").locator(".text")
    expect(text.locator("span").last).to_be_in_viewport()
    expect(text.locator("span").first).not_to_be_in_viewport()
    assert text.evaluate("t => t.clientHeight") < 0.5 * 900
    text.press("Home")
    expect(text.locator("span").first).to_be_in_viewport()
    expect(mix(page, "A").locator(".token b")).to_have_text("word0")


def test_a_token_says_what_each_policy_gave_it(page: Page, server: ServerProcess) -> None:
    open_console(page, server)
    run_all(page)
    column = mix(page, "A")
    token = column.locator(".text span").nth(2)
    token.hover()
    expect(column.locator(".token b")).to_have_text(token.text_content() or "")
    expect(column.locator(".token .fact")).to_have_count(3)
    column.locator(".text").focus()
    page.keyboard.press("End")
    expect(column.locator(".token b")).to_have_text(
        column.locator(".text span").last.text_content() or ""
    )


def test_sliders_and_the_triangle_change_the_weights_of_the_next_request(
    page: Page, server: ServerProcess
) -> None:
    open_console(page, server)
    run_all(page)
    column = mix(page, "A")
    with page.expect_response(is_generation) as moved:
        column.get_by_role("slider", name="positive").fill("0.4")
    body = moved.value.request.post_data_json
    assert body["preference_weights"] == {"positive": 0.4, "concise": 0.3, "polite": 0.3}
    assert "preference_profile" not in body
    assert used_weights(moved.value)["positive"] == pytest.approx(0.4)
    assert moved.value.headers["x-prefmix-profile"] == "custom"
    expect(column.get_by_label("Profile of mix A")).to_have_value("")

    with page.expect_response(is_generation) as cornered:
        column.get_by_role("slider", name="polite").press("End")
    assert cornered.value.request.post_data_json["preference_weights"] == {"polite": 1}

    triangle = column.locator(".triangle")
    box = triangle.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] - 40, box["y"] + box["height"] + 40, steps=4)
    with page.expect_response(is_generation) as dragged:
        page.mouse.up()
    assert dragged.value.request.post_data_json["preference_weights"] == {"concise": 1}
    with page.expect_response(is_generation) as pressed:
        triangle.press("ArrowRight")
    weights = pressed.value.request.post_data_json["preference_weights"]
    assert weights == {"concise": pytest.approx(0.98), "polite": pytest.approx(0.02)}
    with page.expect_response(is_generation) as chosen:
        column.get_by_label("Profile of mix A").select_option("glowing-letter")
    assert chosen.value.headers["x-prefmix-profile"] == "glowing-letter"
    expect(column.get_by_label("concise, as a number")).to_have_value("0.00")


def test_each_triangle_shows_where_the_other_mixes_are(page: Page, server: ServerProcess) -> None:
    """A mix of the reference alone is shown in the middle."""
    state = "#mix=positive:1&mix=reference:1&mix=positive:1,concise:1,polite:1"
    open_console(page, server, state=state)
    rings = mix(page, "A").locator(".triangle .other")
    places = rings.evaluate_all("all => all.map(c => [c.cx.baseVal.value, c.cy.baseVal.value])")
    assert places == [[pytest.approx(60), pytest.approx(70)]] * 2


def test_a_refused_weight_is_shown_in_its_column(page: Page, server: ServerProcess) -> None:
    """The page is made to believe that weights may be negative; the server refuses them."""

    def as_affine(route: Route) -> None:
        answer = route.fetch()
        route.fulfill(response=answer, json={**answer.json(), "weight_space": "affine"})

    page.route("**/v1/mixture", as_affine)
    open_console(page, server)
    expect(page.locator(".triangle")).to_have_count(0)
    field = mix(page, "A").get_by_label("positive", exact=True)
    field.fill("-0.5")
    field.press("Tab")
    page.get_by_role("button", name="Run", exact=True).click()
    expect(mix(page, "A").get_by_role("alert")).to_contain_text(
        "the weight of 'positive' is -0.5, negative"
    )
    expect(mix(page, "B").locator(".text.shaded")).to_be_visible()
    expect(mix(page, "B").get_by_role("alert")).to_be_hidden()


def test_an_unknown_profile_of_a_link_is_refused_in_place(
    page: Page, server: ServerProcess
) -> None:
    open_console(page, server, state="#p=Hello&mix=@nowhere")
    page.get_by_role("button", name="Run", exact=True).click()
    expect(mix(page, "A").get_by_role("alert")).to_contain_text(
        "preference_profile 'nowhere' does not exist; the profiles are: balanced"
    )


def test_a_busy_server_says_when_to_try_again(page: Page, server: ServerProcess) -> None:
    open_console(page, server)
    error = {"message": "this server is busy"}
    page.route(
        f"**{CHAT}",
        lambda route: route.fulfill(
            status=503, json={"error": error}, headers={"retry-after": "7"}
        ),
    )
    page.get_by_role("button", name="Run", exact=True).click()
    expect(mix(page, "A").get_by_role("alert")).to_have_text(
        "this server is busy (Retry-After: 7 s)"
    )
    expect(page.get_by_role("button", name="Run", exact=True)).to_be_enabled()


def test_a_server_that_is_gone_is_said_in_place(page: Page, server: ServerProcess) -> None:
    open_console(page, server)
    page.route(f"**{CHAT}", lambda route: route.abort())
    page.get_by_role("button", name="Run", exact=True).click()
    expect(mix(page, "A").get_by_role("alert")).to_contain_text("The server does not answer")
    page.unroute(f"**{CHAT}")
    first = json.dumps({"choices": [{"index": 0, "delta": {"content": "Half an"}}]})
    page.route(
        f"**{CHAT}",
        lambda route: route.fulfill(body=f"data: {first}\n\n", content_type="text/event-stream"),
    )
    page.get_by_role("button", name="Run", exact=True).click()
    expect(mix(page, "A").get_by_role("alert")).to_contain_text("The answer broke off")
    expect(mix(page, "A").locator(".text")).to_have_text("Half an")


def test_without_a_chat_template_the_prompt_is_completed(page: Page, server: ServerProcess) -> None:
    def as_base_model(route: Route) -> None:
        answer = route.fetch()
        route.fulfill(response=answer, json={**answer.json(), "chat": False})

    page.route("**/console/settings", as_base_model)
    open_console(page, server)
    page.locator("#options summary").click()
    expect(page.get_by_label("Top p")).to_be_visible()
    expect(page.get_by_label("System prompt")).to_be_hidden()
    with page.expect_response("**/v1/completions") as completed:
        run_all(page)
    body = completed.value.request.post_data_json
    assert (body["prompt"], body["logprobs"]) == ("Review the Park Hotel.", 0)
    expect(page.get_by_role("button", name="Follow up")).to_be_hidden()


def test_publish_see_the_history_and_roll_back(page: Page, server: ServerProcess) -> None:
    before = admin(server, "GET", "/weights")["version"]
    open_console(page, server, state="#p=Hello&n=8&mix=concise:0.75,polite:0.25")
    mix(page, "A").get_by_role("button", name="Publish").click()
    dialog = page.get_by_role("dialog", name="Profiles")
    dialog.get_by_label("Admin token").fill(KEY)
    dialog.get_by_role("button", name="Open").click()
    expect(dialog.get_by_role("alert")).to_contain_text("The server does not take this token.")
    dialog.get_by_label("Admin token").fill(TOKEN)
    page.keyboard.press("Enter")

    dialog.get_by_label("as", exact=True).fill("not a name")
    dialog.get_by_role("button", name="Publish").click()
    expect(dialog.get_by_role("alert")).to_contain_text("'not a name'")
    dialog.get_by_label("as", exact=True).fill("terse")
    dialog.get_by_role("button", name="Publish").click()
    expect(dialog.get_by_role("status")).to_contain_text("terse is published")
    stored = admin(server, "GET", "/weights")
    assert stored["version"] == before + 1
    assert stored["profiles"]["terse"]["weights"]["concise"] == 0.75
    expect(dialog.get_by_role("listitem").first).to_contain_text("terse added")

    # Another changes the profiles meanwhile: nothing is overwritten unseen.
    admin(server, "PUT", "/profiles/other", {"weights": {"polite": 1}})
    dialog.get_by_label("as", exact=True).fill("late")
    dialog.get_by_role("button", name="Publish").click()
    expect(dialog.get_by_role("alert")).to_be_visible()
    assert "late" not in admin(server, "GET", "/weights")["profiles"]
    expect(dialog.get_by_role("listitem").first).to_contain_text("other added")

    page.keyboard.press("Escape")
    expect(mix(page, "A").get_by_label("Profile of mix A")).to_have_value("terse")
    with page.expect_response(is_generation) as served:
        page.get_by_role("button", name="Run", exact=True).click()
    assert served.value.headers["x-prefmix-profile"] == "terse"

    page.get_by_role("button", name="Profiles").click()
    dialog.get_by_role("button", name=f"Roll back to version {before}", exact=True).click()
    expect(dialog.get_by_role("status")).to_contain_text(f"has the content of version {before}")
    stored = admin(server, "GET", "/weights")
    assert (stored["version"], "terse" in stored["profiles"]) == (before + 3, False)
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Policies").click()
    listed = page.get_by_role("dialog", name="Policies")
    expect(listed).to_contain_text("start it with --adapter-slots N and --policies-dir FOLDER")
    expect(listed.get_by_role("listitem")).to_have_count(len(POLICIES))
    assert TOKEN not in page.url
    assert page.evaluate("localStorage.length + sessionStorage.length") == 0


def test_a_link_brings_the_whole_page_back(page: Page, server: ServerProcess) -> None:
    open_console(page, server)
    page.get_by_label("Prompt", exact=True).fill("Tell me about 50 % & #1?")
    page.get_by_label("Seed").fill("42")
    mix(page, "B").get_by_role("button", name="Remove mix B").click()
    mix(page, "C").get_by_role("slider", name="concise").fill("0.2")
    page.get_by_role("button", name="Add a mix").click()
    expect(page.locator(".mix")).to_have_count(3)
    page.get_by_role("button", name="Copy link").click()
    link = page.url

    page.goto("about:blank")
    open_console(page, server, state=link.removeprefix(f"{server.url}/console"))
    expect(page.get_by_label("Prompt", exact=True)).to_have_value("Tell me about 50 % & #1?")
    expect(page.get_by_label("Seed")).to_have_value("42")
    profiles = page.locator(".mix .choice select").evaluate_all("all => all.map(s => s.value)")
    assert profiles == ["balanced", "", ""]
    numbers = mix(page, "B").get_by_role("spinbutton").evaluate_all("a => a.map(i => i.value)")
    assert numbers == ["0.40", "0.20", "0.40", "0.00", ""], "weights, and no candidates"


def test_the_copied_command_asks_for_the_same(page: Page, server: ServerProcess) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    open_console(page, server, state="#p=It's+fine&n=8&s=3&mix=concise:0.75,polite:0.25")
    mix(page, "A").get_by_role("button", name="Copy as curl").click()
    expect(mix(page, "A").get_by_role("button", name="Copied")).to_be_visible()
    command = page.evaluate("navigator.clipboard.readText()")
    assert KEY not in command
    words = shlex.split(command.replace("$API_KEY", KEY))
    headers = dict(words[at + 1].split(": ") for at, word in enumerate(words) if word == "-H")
    body = words[words.index("-d") + 1]
    assert json.loads(body)["messages"][0]["content"] == "It's fine"
    url = next(word for word in words if word.startswith("http"))
    answer = httpx.post(url, content=body, headers=headers, timeout=60)
    assert answer.headers["x-prefmix-weights"] == "positive=0,concise=0.75,polite=0.25,reference=0"
    assert answer.json()["choices"][0]["preference_attribution"]["num_tokens"] > 0


def test_reports_are_listed_and_shown_with_their_style_and_no_script(
    page: Page, server: ServerProcess
) -> None:
    """The console hands the key on to the page of the reports, which asks for it on its own."""
    open_console(page, server)
    with page.expect_popup() as opened:
        page.get_by_role("link", name="Reports").click()
    listing = opened.value
    listing.get_by_role("link", name="demo-report").click()
    heading = listing.frame_locator("#report").get_by_role("heading")
    expect(heading).to_have_text("A fit")
    expect(heading).to_have_css("color", "rgb(1, 2, 3)")
    widths = (
        listing.frame_locator("#report")
        .locator("img")
        .evaluate_all("all => all.map(image => image.naturalWidth)")
    )
    assert widths == [1, 0], "a picture of its own, none from elsewhere"
    assert KEY not in listing.url

    page.goto(f"{server.url}/console/reports")
    expect(page.get_by_role("link", name="demo-report")).to_have_count(0)
    page.get_by_label("API key").fill("wrong")
    page.get_by_role("button", name="Open").click()
    expect(page.get_by_role("alert").first).to_contain_text("The server does not take this key.")
    page.get_by_label("API key").fill(KEY)
    page.keyboard.press("Enter")
    expect(page.get_by_role("link", name="demo-report")).to_be_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_and_follows_the_readers_colours(
    page: Page, server: ServerProcess, scheme: Any
) -> None:
    page.set_viewport_size(PHONE)  # type: ignore[arg-type]
    page.emulate_media(color_scheme=scheme)
    open_console(page, server, state=f"{SHORT}&s=5")
    run_all(page)
    width = "document.documentElement.scrollWidth"
    assert page.evaluate(width) == PHONE["width"]
    page.get_by_role("button", name="Profiles").click()
    page.get_by_label("Admin token").fill(TOKEN)
    page.keyboard.press("Enter")
    expect(page.get_by_role("list").last).to_be_visible()
    assert page.evaluate(width) == PHONE["width"]
    sizes = page.get_by_role("dialog").evaluate("d => [d.scrollWidth, d.clientWidth]")
    assert sizes[0] == sizes[1]
    colours = page.locator("body").evaluate(
        "b => ['color', 'backgroundColor'].map(name => getComputedStyle(b)[name])"
    )
    ink, back = (sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in colours)
    assert (ink < back) == (scheme == "light")


def test_every_control_has_a_name_and_shows_its_focus(page: Page, server: ServerProcess) -> None:
    open_console(page, server)
    explained = page.get_by_role("definition")
    expect(explained).to_have_count(0)
    page.locator("#guide summary").press("Enter")
    expect(explained.first).to_contain_text("each trained for a goal of its own")
    page.locator("#guide summary").press("Enter")
    tree = page.locator("body").aria_snapshot()
    assert "slider" in tree
    assert NAMELESS.findall(tree) == []
    seen = set[str]()
    for _ in range(16):
        page.keyboard.press("Tab")
        focus = page.evaluate(
            """() => {
                const element = document.activeElement, style = getComputedStyle(element);
                const name = element.id || element.getAttribute("class");
                return [name, style.outlineStyle];
            }"""
        )
        assert focus[1] == "solid", focus
        seen.add(str(focus[0]))
    assert {"prompt", "run", "triangle"} <= seen


def test_an_answer_is_picked_from_candidates_of_the_demo(page: Page, server: ServerProcess) -> None:
    """The picked answer has its tokens and shades, and says how much its candidates count."""
    open_console(page, server, state="#p=Review+the+Park+Hotel.&n=40&mix=@balanced*4")
    page.get_by_label("Candidates of mix A").fill("8")
    with page.expect_response(is_generation) as found:
        run_all(page)
    about = found.value.json()["choices"][0]["preference_candidates"]
    share = round(100 * about["ess"] / 8)
    told = f"8 candidates count as {about['ess']:.1f} ({share} %)"
    expect(mix(page, "A").locator(".foot")).to_contain_text(told)
    expect(mix(page, "A").locator(".text span").first).to_be_visible()

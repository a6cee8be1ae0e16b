"""The console in a browser, used as a person does: two policies or five, one turn or two.

No engine: the answers are the stand-in's. test_console.py has the demo's own.
"""

from __future__ import annotations

import re
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, expect

from support.console.page import Opened, asked, finished, mix, run
from support.console.stand_in_policies import BAD, BUSY, TOKEN


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


def policies_of(page: Page) -> Locator:
    """The dialog of policies, opened with the admin token."""
    page.get_by_role("button", name="Policies").click()
    page.get_by_label("Admin token").fill(TOKEN)
    page.keyboard.press("Enter")
    return page.get_by_role("dialog", name="Policies")


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
    expect(note).to_have_text(f"{len(now) - len(kept)} tokens changed since the last run")
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


def test_there_is_one_run_and_no_version_at_first_sight(opened: Opened) -> None:
    page = opened(has_admin=True)
    expect(page.get_by_role("button", name=re.compile("^Run"))).to_have_count(1)
    assert "version" not in page.locator("body").inner_text().lower()


@pytest.mark.parametrize(
    ("has_admin", "words"),
    [(True, "asks for the admin token"), (False, "start it with PREFMIX_ADMIN_TOKEN_FILE")],
)
def test_publishing_says_what_it_needs(opened: Opened, has_admin: bool, words: str) -> None:
    waiting = {"calm": {"weights": {"slow": 1.0}, "absent": ["slow"]}}
    page = opened(has_admin=has_admin, dormant=waiting)
    mix(page, "A").get_by_role("button", name="Publish").click()
    if not has_admin:
        expect(page.get_by_role("dialog")).to_contain_text("calm is dormant: it waits for slow")
    expect(page.get_by_role("dialog")).to_contain_text("Publishing a mix as a profile changes")
    expect(page.get_by_role("dialog")).to_contain_text(words)
    expect(page.get_by_label("Admin token")).to_have_count(int(has_admin))


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


def test_in_the_affine_space_the_reference_takes_the_rest(opened: Opened) -> None:
    names = ("helpful", "harmless")
    page = opened(names, reference="base", weight_space="affine", state="#p=Ask&mix=helpful:1.5")
    rest = mix(page, "A").get_by_label("base, takes the rest")
    expect(rest).to_have_text("-0.50")
    mix(page, "A").get_by_label("harmless", exact=True).fill("-0.75")
    page.keyboard.press("Tab")
    expect(rest).to_have_text("0.25")
    run(page)
    assert asked(page)[-1]["preference_weights"] == {"helpful": 1.5, "harmless": -0.75}


def test_after_a_refusal_other_weights_are_answered_at_once(opened: Opened) -> None:
    page = opened(state="#p=Ask&mix=concise:1")
    error = {"message": "not these weights"}
    page.route("**/v1/chat/*", lambda route: route.fulfill(status=400, json={"error": error}))
    page.get_by_role("button", name="Run", exact=True).click()
    expect(mix(page, "A").get_by_role("alert")).to_have_text("not these weights")
    page.unroute("**/v1/chat/*")
    mix(page, "A").get_by_role("slider", name="polite", exact=True).fill("0.5")
    finished(page)
    expect(mix(page, "A").get_by_role("alert")).to_be_hidden()
    # The next turn waits for its prompt.
    page.get_by_role("button", name="Follow up").click()
    mix(page, "A").get_by_role("slider", name="polite", exact=True).fill("0.2")
    page.wait_for_timeout(600)
    assert len(asked(page)) == 1


BOTH = ("logits", "parameters")


def answered(page: Page, count: int) -> None:
    expect(page.locator(".mix.running")).to_have_count(0)
    expect(page.locator(".mix .text:not(:empty)")).to_have_count(count)


def test_both_ways_to_mix_answer_side_by_side_at_the_same_weights(opened: Opened) -> None:
    page = opened(ways_to_mix=BOTH, state="#p=Ask&s=7&mix=concise:0.5,polite:0.5&mix=positive:1")
    mix(page, "A").get_by_role("button", name="Other way").click()
    answered(page, 2)
    letters = page.locator(".mix .letter").all_text_contents()
    assert letters == ["A", "C", "B"], "the other way stands beside the mix"
    one, other = asked(page)
    assert (
        one["preference_weights"] == other["preference_weights"] == {"concise": 0.5, "polite": 0.5}
    )
    assert one["seed"] == other["seed"] == 7
    ways = {
        body.get("preference_mixing"): body.get("preference_attribution") for body in (one, other)
    }
    assert ways == {None: "tokens", "parameters": None}
    texts = [mix(page, letter).locator(".text") for letter in "AC"]
    assert texts[0].text_content() != texts[1].text_content()
    expect(texts[0]).to_have_class(re.compile("shaded"))
    expect(mix(page, "C").locator(".foot")).to_contain_text("One model of mixed parameters")
    expect(mix(page, "C").get_by_label("Way to mix of mix C")).to_have_value("parameters")
    mix(page, "C").get_by_role("slider", name="concise", exact=True).fill("0.8")
    assert "&mix=concise:0.8,polite:0.2~parameters&" in page.url
    page.reload()
    expect(mix(page, "B").get_by_label("Way to mix of mix B")).to_have_value("parameters")


def test_the_way_to_mix_is_the_profiles_the_servers_or_ones_own(opened: Opened) -> None:
    """A profile's way holds when its weights are moved; nothing is sent where none was chosen."""
    profiles = {"plain": {"positive": 1.0}, "quick": {"concise": 0.5, "polite": 0.5}}
    page = opened(
        ways_to_mix=BOTH,
        profiles=profiles,
        mixings={"quick": "parameters"},
        state="#p=Ask&mix=@quick&mix=@plain",
    )
    chosen = [mix(page, letter).get_by_label(f"Way to mix of mix {letter}") for letter in "AB"]
    expect(chosen[0]).to_have_value("parameters")
    expect(chosen[1]).to_have_value("logits")
    page.get_by_role("button", name="Run", exact=True).click()
    answered(page, 2)
    assert {body["preference_profile"]: body.get("preference_mixing") for body in asked(page)} == {
        "quick": None,
        "plain": None,
    }
    mix(page, "A").get_by_role("slider", name="concise", exact=True).fill("0.9")
    expect(page.locator(".mix.running")).to_have_count(0)
    expect(chosen[0]).to_have_value("parameters")
    chosen[1].select_option("parameters")
    page.get_by_role("button", name="Run", exact=True).click()
    answered(page, 2)
    sent = [
        (body.get("preference_profile"), body.get("preference_mixing")) for body in asked(page)[-2:]
    ]
    assert sorted(sent, key=str) == [("plain", "parameters"), (None, "parameters")]


def test_a_server_of_one_way_shows_no_switch(opened: Opened) -> None:
    page = opened()
    expect(mix(page, "A").get_by_label("Way to mix of mix A")).to_be_hidden()
    expect(page.get_by_role("button", name="Other way")).to_have_count(0)


def candidates(page: Page, letter: str) -> Locator:
    return mix(page, letter).get_by_label(f"Candidates of mix {letter}", exact=True)


def test_candidates_are_drawn_for_one_mix_and_their_effective_share_is_shown(
    opened: Opened,
) -> None:
    page = opened(most_candidates=16, state="#p=Ask&mix=concise:0.5,polite:0.5&mix=positive:1")
    candidates(page, "A").fill("8")
    page.keyboard.press("Tab")
    run(page)
    sent = {body.get("preference_candidates"): body["stream"] for body in asked(page)}
    assert sent == {8: False, None: True}
    foot = mix(page, "A").locator(".foot")
    expect(foot).to_contain_text("40 tokens")
    expect(foot).to_contain_text("8 candidates count as 5.3 (66 %)")
    expect(foot.locator(".low")).to_have_count(0)
    expect(mix(page, "B").locator(".foot")).not_to_contain_text("candidates count")
    assert "&mix=concise:0.5,polite:0.5*8&" in page.url
    page.get_by_role("button", name="Add a mix").click()
    expect(candidates(page, "C")).to_have_value("")
    page.reload()
    expect(candidates(page, "A")).to_have_value("8")
    candidates(page, "A").fill("1")
    page.keyboard.press("Tab")
    run(page)
    assert all("preference_candidates" not in body for body in asked(page)[-3:])
    expect(mix(page, "A").locator(".foot")).not_to_contain_text("candidates count")


def test_too_few_effective_candidates_are_told(opened: Opened) -> None:
    page = opened(most_candidates=16, ess=1.2, state="#p=Ask&mix=concise:1*4")
    run(page)
    told = mix(page, "A").locator(".foot .low")
    expect(told).to_have_text("4 candidates count as 1.2 (30 %): too few")
    expect(told).to_have_attribute("title", "the 4 candidates count as 1.2")


def test_candidates_are_offered_where_the_server_draws_them_from_logits(opened: Opened) -> None:
    page = opened(state="#p=Ask&mix=concise:1*8")
    expect(candidates(page, "A")).to_be_hidden()
    run(page)
    assert "preference_candidates" not in asked(page)[-1], "this server draws none"
    page = opened(most_candidates=4, ways_to_mix=BOTH, state="#p=Ask&mix=concise:1*4")
    expect(candidates(page, "A")).to_be_visible()
    candidates(page, "A").fill("5")
    expect(candidates(page, "A")).to_have_js_property("validity.rangeOverflow", True)
    candidates(page, "A").fill("4")
    mix(page, "A").get_by_label("Way to mix of mix A").select_option("parameters")
    expect(candidates(page, "A")).to_be_hidden()
    page.get_by_role("button", name="Run", exact=True).click()
    answered(page, 1)
    assert "preference_candidates" not in asked(page)[-1]


def test_policies_have_boxes_for_prompts_where_requests_may_give_them(opened: Opened) -> None:
    page = opened(("kind", "brief"), reference="plain", request_prompts=True, prompted=("kind",))
    page.locator("#options-title").click()
    kind, brief = (
        page.get_by_label(f"System prompt of {name} alone") for name in ("kind", "brief")
    )
    expect(kind).to_have_attribute("placeholder", "the server’s own")
    expect(brief).to_have_attribute("placeholder", "none")
    expect(page.get_by_label("System prompt of plain alone")).to_be_visible()
    run(page)
    assert all("preference_prompts" not in body for body in asked(page))
    brief.fill(" One <word> & more ")
    run(page)
    assert asked(page)[-1]["preference_prompts"] == {"brief": "One <word> & more"}
    page.reload()
    expect(page.get_by_label("System prompt of brief alone")).to_have_value("One <word> & more")
    expect(page.get_by_label("System prompt of kind alone")).to_have_value("")


def test_no_box_is_shown_where_requests_may_not_give_prompts(opened: Opened) -> None:
    page = opened(("kind", "brief"), prompted=("kind",))
    page.locator("#options-title").click()
    expect(page.get_by_label("System prompt", exact=True)).to_be_visible()
    expect(page.locator("#own-prompts")).to_be_hidden()
    page.evaluate("location.hash = 'own=%7B%22kind%22%3A%22x%22%7D&p=hi'")
    run(page)
    assert all("preference_prompts" not in body for body in asked(page))


@pytest.mark.parametrize("own", ["3", "null", "%5B1%5D", "%7B%22kind%22%3A3%7D", "%7Bx"])
def test_an_address_with_wrong_prompts_opens_the_page(opened: Opened, own: str) -> None:
    page = opened(("kind", "brief"), request_prompts=True)
    page.evaluate(f"location.hash = 'own={own}&p=hi'")
    expect(page.get_by_label("System prompt of kind alone")).to_have_value("")
    run(page)


def test_policies_come_and_go_and_the_pages_answers_stay(opened: Opened) -> None:
    page = opened(("kind", "brief"), reference="plain", has_admin=True, slots=2)
    run(page)
    text = mix(page, "A").locator(".text").text_content()
    colours = page.locator("#names .swatch").evaluate_all("all => all.map(s => s.dataset.hue)")
    page.get_by_role("button", name="Policies").click()
    dialog = page.get_by_role("dialog", name="Policies")
    expect(dialog).to_contain_text("Adding or removing a policy changes what the server serves")
    dialog.get_by_label("Admin token").fill("wrong")
    page.keyboard.press("Enter")
    expect(dialog.get_by_role("alert")).to_contain_text("The server does not take this token.")
    dialog.get_by_label("Admin token").fill(TOKEN)
    page.keyboard.press("Enter")
    expect(dialog.get_by_role("listitem")).to_have_count(3)
    expect(dialog.get_by_role("button", name="Remove")).to_have_count(0)
    expect(dialog).to_contain_text("2 of 2 slots free, up to rank 16")
    expect(dialog.get_by_label("Without KV cache")).to_have_count(0)

    # A refusal is the server's sentence, and what was typed stays.
    dialog.get_by_label("Policy", exact=True).fill("warm")
    dialog.get_by_label("Adapter").fill(BAD)
    dialog.get_by_role("button", name="Add").click()
    expect(dialog.get_by_role("alert")).to_have_text(
        "policy 'warm': the adapter in 'bad' is cut short"
    )
    expect(dialog.get_by_label("Policy", exact=True)).to_have_value("warm")
    dialog.get_by_label("Adapter").fill("warm/step-2")
    dialog.get_by_label("System prompt").fill("Be <warm>.")
    dialog.get_by_role("button", name="Add").click()
    expect(dialog.get_by_role("status")).to_have_text("warm is there, version 2")
    expect(dialog.get_by_role("listitem").nth(2)).to_contain_text("warm/step-2, a system prompt")
    sent = page.policies.added  # type: ignore[attr-defined]
    assert sent == {"warm": {"adapter": "warm/step-2", "system": "Be <warm>."}}
    expect(dialog.get_by_label("System prompt")).to_have_value("")
    expect(dialog).to_contain_text("1 of 2 slots free")

    # The page has the policy, its answers stay, and the others keep their colours.
    page.keyboard.press("Escape")
    assert mix(page, "A").locator(".text").text_content() == text
    names = page.locator("#names .name").all_text_contents()
    assert names == ["kind", "brief", "warm", "plain (reference)"]
    now = page.locator("#names .swatch").evaluate_all("all => all.map(s => s.dataset.hue)")
    assert [now[0], now[1], now[3]] == colours
    assert now[2] not in colours
    expect(page.locator("#facts")).to_contain_text("3 policies and a reference")
    mix(page, "A").get_by_role("slider", name="warm", exact=True).fill("0.5")
    expect(mix(page, "A").locator(".change")).to_be_visible()
    finished(page)
    assert asked(page)[-1]["preference_weights"] == {"kind": 0.5, "warm": 0.5}

    page.policies.in_use.add("warm")  # type: ignore[attr-defined]
    page.get_by_role("button", name="Policies").click()
    dialog.get_by_role("button", name="Remove warm").click()
    expect(dialog.get_by_role("alert")).to_have_text(BUSY)
    dialog.get_by_label("Remove also while requests use it, which end with it").check()
    dialog.get_by_role("button", name="Remove warm").click()
    expect(dialog.get_by_role("status")).to_have_text("warm is removed, version 3")
    page.keyboard.press("Escape")
    expect(page.locator("#names .name")).to_have_count(3)
    expect(mix(page, "A").get_by_role("slider")).to_have_count(3)
    expect(mix(page, "A").locator(".measures tbody tr")).to_have_count(3)

    # A policy may be a prompt alone.
    page.get_by_role("button", name="Policies").click()
    dialog.get_by_label("Policy", exact=True).fill("terse")
    dialog.get_by_label("System prompt").fill("Be brief.")
    dialog.get_by_role("button", name="Add").click()
    expect(dialog.get_by_role("listitem").nth(2)).to_contain_text("the base, a system prompt")
    assert page.policies.added == {"terse": {"system": "Be brief."}}  # type: ignore[attr-defined]
    page.keyboard.press("Escape")

    # Nothing is overwritten unseen, and a server that is gone is said in place.
    with page.expect_response("**/admin/policies"):
        page.get_by_role("button", name="Policies").click()
    page.policies.version = 9  # type: ignore[attr-defined]
    dialog.get_by_label("Policy", exact=True).fill("late")
    dialog.get_by_label("Adapter").fill("late")
    dialog.get_by_role("button", name="Add").click()
    expect(dialog.get_by_role("alert")).to_have_text("the store is at another version")
    page.route("**/admin/policies", lambda route: route.abort())
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Policies").click()
    expect(dialog.get_by_role("alert")).to_contain_text("The server does not answer.")


def test_a_policy_may_go_without_kv_cache_and_into_the_slot_of_its_name(opened: Opened) -> None:
    page = opened(has_admin=True, slots=2, slots_without_kv=1)
    dialog = policies_of(page)
    expect(dialog).to_contain_text("2 of 2 slots free, up to rank 16")
    policies = page.policies  # type: ignore[attr-defined]
    kv, place = (
        dialog.get_by_label(words)
        for words in ("Without KV cache, for mixed", "Replace it in its own slot")
    )
    for number, box in enumerate((None, kv, place)):
        dialog.get_by_label("Policy", exact=True).fill("warm")
        dialog.get_by_label("Adapter").fill(f"step-{number}")
        if box is not None:
            box.check()
        dialog.get_by_role("button", name="Add").click()
        expect(dialog.get_by_role("status")).to_contain_text(f"version {2 + number}")
        expect(kv).not_to_be_checked()
        expect(place).not_to_be_checked()
        without = {"kv_cache": False} if box is kv else {}
        assert policies.added == {"warm": {"adapter": f"step-{number}"} | without}
        assert policies.replaced_in_place == (["warm"] if box is place else [])
    policies.held.add("warm")
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Policies").click()
    expect(dialog.get_by_role("listitem").filter(has_text="step-2")).to_contain_text(
        "step-2, not served now"
    )


def test_the_history_tells_changes_of_policies_and_of_profiles_apart(opened: Opened) -> None:
    """A policy that comes has no weight, so no profile is another one for it."""
    page = opened(("kind", "brief"), reference="plain", has_admin=True)
    even = {"kind": 0.5, "brief": 0.5, "plain": 0.0}

    def version(number: int, weights: dict[str, float], added: dict[str, Any]) -> dict[str, Any]:
        profiles = {"balanced": {"weights": weights}}
        about = {"version": number, "default_profile": "balanced", "profiles": profiles}
        return about | ({"added_policies": added} if added else {})

    warm, later = ({"warm": {"adapter": name}} for name in ("one", "two"))
    versions = [
        version(1, even, {}),
        version(2, even | {"warm": 0.0}, warm),
        version(3, even | {"warm": 0.0}, later),
        version(4, even | {"kind": 0.4, "brief": 0.6, "warm": 0.0}, later),
    ]
    page.route("**/admin/weights/history", lambda route: route.fulfill(json={"versions": versions}))
    page.get_by_role("button", name="Profiles").click()
    page.get_by_label("Admin token").fill(TOKEN)
    page.keyboard.press("Enter")
    listed = page.get_by_role("dialog").get_by_role("listitem").locator("span:first-of-type")
    expect(listed).to_have_text(
        ["balanced changed", "other policies", "other policies", re.compile("1 profiles")]
    )


def test_a_server_that_takes_no_policies_says_how_to_start_one(opened: Opened) -> None:
    page = opened(has_admin=True)
    dialog = policies_of(page)
    expect(dialog).to_contain_text("start it with --adapter-slots N and --policies-dir FOLDER")
    expect(dialog.get_by_role("listitem")).to_have_count(3)
    expect(dialog.get_by_label("Adapter")).to_have_count(0)

    page = opened(has_admin=True, slots=1)
    page.policies.manifest = "/etc/policies.yaml"  # type: ignore[attr-defined]
    page.policies.added["new"] = {"adapter": "new"}  # type: ignore[attr-defined]
    dialog = policies_of(page)
    expect(dialog).to_contain_text("those of the server’s manifest /etc/policies.yaml")
    expect(dialog.get_by_role("listitem")).to_have_count(4)
    expect(dialog.get_by_role("button", name="Remove")).to_have_count(0)

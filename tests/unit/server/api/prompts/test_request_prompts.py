"""Bodies that give policies prompts of their own: what is taken, and a sentence for the rest."""

from __future__ import annotations

from typing import Any

import pytest

from prefmix.server.config.prompt_settings import PromptSettings
from support.prompts.prompted_state import THREE
from support.text_requests import SPEC, post

pytestmark = pytest.mark.usefixtures("vllm")

CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
USER = {"role": "user", "content": "Hi."}
BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"messages": [USER]},
    COMPLETIONS: {"prompt": "Hi."},
    RESPONSES: {"input": "Hi."},
}
ONE_HOT = {"preference_weights": {"plain": 1}}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}


def refused(app: Any, path: str, param: str | None, **fields: Any) -> str:
    answer = post(app, path, {**BODIES[path], **fields})
    assert answer.response.status_code == 400, answer.response.text
    assert answer.error["param"] == param
    message = str(answer.error["message"])
    assert "\n" not in message
    assert "secret" not in message
    assert len(message) < 500
    return message


def reaches(app: Any, path: str, **fields: Any) -> None:
    answer = post(app, path, {**BODIES[path], **fields})
    assert answer.response.status_code == 200, answer.response.text


PROMPTS = "preference_prompts"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (CHAT, {"kind": "A text."}),
        (CHAT, {"plain": {"messages": [USER, {"role": "assistant", "content": "a"}, USER]}}),
        (
            CHAT,
            {"kind": {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}]}},
        ),
        (COMPLETIONS, {"kind": "A text.", "brief": [1, 2, 3]}),
        (COMPLETIONS, {"kind": " "}),
    ],
)
def test_prompts_are_taken(open_app: Any, path: str, value: Any) -> None:
    reaches(open_app, path, preference_prompts=value)


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
@pytest.mark.parametrize(
    ("value", "parts"),
    [
        ({"kid": "secret"}, ["names 'kid'", "no policy here", "kind, brief, plain"]),
        ({}, ["is empty", "name a policy"]),
        ("secret", ["expected an object"]),
        (["kind"], ["expected an object"]),
        (3, ["preference_prompts is 3", "expected an object"]),
        ({"kind": ""}, ["preference_prompts.kind is empty"]),
        ({"kind": None}, ["preference_prompts.kind is null", "expected"]),
        ({"kind": 3}, ["preference_prompts.kind is 3"]),
        ({"kind": True}, ["preference_prompts.kind is true"]),
        ({"kind": {"text": "secret"}}, ["preference_prompts.kind is an object"]),
    ],
)
def test_wrong_values_are_refused_on_either_route(
    open_app: Any, path: str, value: Any, parts: list[str]
) -> None:
    if value == "secret":
        message = post(open_app, path, {**BODIES[path], PROMPTS: value}).error["message"]
    else:
        message = refused(open_app, path, PROMPTS, preference_prompts=value)
    assert [part for part in parts if part not in message] == []


@pytest.mark.parametrize(
    ("value", "parts"),
    [
        ({"kind": "  "}, ["preference_prompts.kind is empty"]),
        ({"kind": [1, 2]}, ["is a list", '{"messages": [...]}']),
        ({"kind": {"messages": []}}, ["kind.messages is a list without anything in it"]),
        ({"kind": {"messages": "secret"}}, ["kind.messages is a text", "list of messages"]),
        (
            {"kind": {"messages": [USER], "tools": []}},
            ["kind is an object", "a whole conversation"],
        ),
        ({"kind": {"messages": [USER, 5]}}, ["kind.messages[1] is 5"]),
        ({"kind": {"messages": [{}]}}, ["preference_prompts.kind: messages[0]", "missing"]),
        ({"kind": {"messages": [{"role": "user", "content": 5}]}}, ["kind: messages[0]"]),
        (
            {"kind": {"messages": [{"role": "user", "content": [IMAGE]}]}},
            ["kind.messages[0] has a part of type 'image_url'", "text only"],
        ),
        (
            {"kind": {"messages": [{"role": "user", "content": ["secret"]}]}},
            ["kind.messages[0] has a part of type null"],
        ),
        ({"kind": {"messages": [USER] * 4097}}, ["has 4097 items", "4096"]),
        (
            {"kind": {"messages": [{"role": "user", "content": [{"type": "text"}] * 1025}]}},
            ["1025 items", "1024"],
        ),
    ],
)
def test_wrong_conversations_are_refused(open_app: Any, value: Any, parts: list[str]) -> None:
    message = refused(open_app, CHAT, PROMPTS, preference_prompts=value)
    assert [part for part in parts if part not in message] == []


@pytest.mark.parametrize(
    ("value", "parts"),
    [
        ({"kind": []}, ["preference_prompts.kind is empty", "a token"]),
        ({"kind": [1, 2.0]}, ["kind[1] is 2.0", "token id"]),
        ({"kind": [True]}, ["kind[0] is true", "token id"]),
        ({"kind": [-1]}, ["kind[0] is -1"]),
        ({"kind": [[1, 2]]}, ["kind[0] is a list"]),
        ({"kind": ["secret"]}, ["kind[0] is a text"]),
        ({"kind": [1, 100]}, ["kind has token 100", "99 token ids"]),
        ({"kind": [1, 9]}, ["kind has token 9"]),
        ({"kind": [2**40]}, ["kind has token 1099511627776"]),
        ({"kind": [2**64]}, ["18446744073709551616", "integers from"]),
        ({"kind": [1] * 65}, ["has 65 tokens", "64"]),
        ({"kind": {"messages": [USER]}}, ["kind is an object", "whole prompt"]),
    ],
)
def test_wrong_tokens_are_refused(open_app: Any, value: Any, parts: list[str]) -> None:
    message = refused(open_app, COMPLETIONS, PROMPTS, preference_prompts=value)
    assert [part for part in parts if part not in message] == []


def test_huge_lists_cost_no_time(open_app: Any) -> None:
    value = {"kind": [1] * 500_000}
    answer = post(open_app, COMPLETIONS, {**BODIES[COMPLETIONS], PROMPTS: value})
    assert "has 500000 tokens" in answer.error["message"]


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_prompts_are_refused_where_the_server_allows_none(configured: Any, path: str) -> None:
    for field in (PROMPTS, "negative_prompt"):
        message = refused(configured, path, field, **{field: {"kind": "secret"}})
        assert f"{field} is not allowed here" in message
        assert "--request-prompts" in message


def test_a_server_without_prompts_refuses_them_too(app_of: Any) -> None:
    app = app_of(SPEC, PromptSettings())
    for path in BODIES:
        assert "not allowed here" in refused(app, path, PROMPTS, preference_prompts={"a": "secret"})
        reaches(app, path, echo=path == COMPLETIONS)


def test_the_responses_api_carries_none(open_app: Any, configured: Any) -> None:
    message = refused(open_app, RESPONSES, PROMPTS, preference_prompts={"kind": "secret"})
    assert "not served by the Responses API" in message
    message = refused(configured, RESPONSES, None)
    assert "'kind' has a system text" in message
    reaches(configured, RESPONSES, **ONE_HOT)


def test_completions_do_not_drop_a_system_text_without_a_word(
    configured: Any, open_app: Any
) -> None:
    assert "'kind' has a system text" in refused(configured, COMPLETIONS, None)
    message = refused(configured, COMPLETIONS, None, preference_weights={"brief": 1, "plain": 1})
    assert "'brief' has a system text" in message
    assert "preference_prompts" in message
    reaches(configured, COMPLETIONS, **ONE_HOT)
    reaches(open_app, COMPLETIONS, preference_prompts={"brief": "text"})
    without = {"preference_prompts": {"plain": "secret"}, "preference_weights": {"kind": 1}}
    assert "'kind' has a system text" in refused(open_app, COMPLETIONS, None, **without)


@pytest.mark.parametrize("prompt", [["a", "b"], [[1, 2], [3]]])
def test_own_prompts_come_with_one_prompt(open_app: Any, prompt: Any) -> None:
    fields = {"prompt": prompt, PROMPTS: {"kind": "secret"}}
    assert "replaces one prompt, and 2 came" in refused(open_app, COMPLETIONS, PROMPTS, **fields)
    reaches(open_app, COMPLETIONS, prompt=["one"], preference_prompts={"kind": "text"})


SHOWING = [
    (CHAT, {"echo": True}),
    (CHAT, {"prompt_logprobs": 1}),
    (CHAT, {"return_token_ids": True}),
    (CHAT, {"return_prompt_text": True}),
    (CHAT, {"return_token_offsets": True}),
    (COMPLETIONS, {"echo": True}),
    (COMPLETIONS, {"prompt_logprobs": 0}),
    (COMPLETIONS, {"return_token_ids": True}),
]
GIVEN = {CHAT: {"plain": {"messages": [USER, USER]}}, COMPLETIONS: {"plain": "text"}}


@pytest.mark.parametrize(("path", "fields"), SHOWING)
def test_nothing_shows_one_of_several_prompts(
    open_app: Any, path: str, fields: dict[str, Any]
) -> None:
    [name] = fields
    half = {"preference_weights": {"kind": 1, "plain": 1}, PROMPTS: GIVEN[path]}
    message = refused(open_app, path, name, **fields, **half)
    assert "the policies read different ones" in message
    one_hot = {"preference_weights": {"plain": 1}, PROMPTS: GIVEN[path]}
    reaches(open_app, path, **fields, **one_hot)


@pytest.mark.parametrize(("path", "fields"), [each for each in SHOWING if each[0] == CHAT])
def test_nothing_shows_the_servers_own_text(
    configured: Any, path: str, fields: dict[str, Any]
) -> None:
    [name] = fields
    message = refused(configured, path, name, **fields, preference_weights={"kind": 1})
    assert "it belongs to this server" in message
    reaches(configured, path, **fields, **ONE_HOT)


@pytest.mark.parametrize("weights", [{"kind": 1}, {"kind": 1, "plain": 1}])
def test_own_prompts_are_not_cut(configured: Any, weights: dict[str, float]) -> None:
    fields = {"truncate_prompt_tokens": 5, "preference_weights": weights}
    message = refused(configured, CHAT, "truncate_prompt_tokens", **fields)
    assert "at different places" in message


def test_mixed_parameters_read_one_prompt(configured: Any) -> None:
    mixed = {"preference_mixing": "parameters"}
    message = refused(configured, CHAT, "preference_mixing", **mixed)
    assert "reads one prompt" in message
    reaches(configured, CHAT, **mixed, preference_weights={"kind": 1})
    reaches(configured, CHAT, **mixed, **ONE_HOT)


def test_policies_of_equal_prompts_are_mixed_as_ever(app_of: Any) -> None:
    app = app_of(THREE, PromptSettings(systems={"kind": "same", "brief": "same"}))
    reaches(app, CHAT, preference_mixing="parameters")


def test_samples_and_streams_go_with_prompts(configured: Any) -> None:
    reaches(configured, CHAT, n=2, stream=True)


@pytest.mark.parametrize("value", [[[1], [2], None], "x"])
def test_heads_cannot_be_smuggled(open_app: Any, value: Any) -> None:
    answer = post(open_app, CHAT, {**BODIES[CHAT], "vllm_xargs": {"prefmix_heads": value}})
    assert answer.response.status_code == 400
    assert "vllm_xargs.prefmix_heads is not a field" in answer.error["message"]


@pytest.mark.parametrize("name", ["preference_prompt", "preferencePrompts", "prompts"])
def test_misspelt_names_are_not_ignored(open_app: Any, name: str) -> None:
    answer = post(open_app, CHAT, {**BODIES[CHAT], name: {"kind": "text"}})
    assert "did you mean preference_prompts?" in answer.error["message"]


def test_beam_search_carries_none(open_app: Any) -> None:
    fields = {PROMPTS: {"kind": "text"}, "use_beam_search": True}
    assert "beam search" in refused(open_app, CHAT, "use_beam_search", **fields)


# --- guidance ------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
@pytest.mark.parametrize("scale", [7.5, 1, 0, -0.5, None])
def test_a_negative_prompt_and_a_scale_are_taken(guided: Any, path: str, scale: Any) -> None:
    reaches(guided, path, negative_prompt="ugly", guidance_scale=scale)


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"guidance_scale": "3"}, "guidance_scale", "is '3'; expected a number"),
        ({"guidance_scale": True}, "guidance_scale", "is true; expected a number"),
        ({"guidance_scale": 1e6}, "guidance_scale", "number up to 1000"),
        ({"guidance_scale": [1]}, "guidance_scale", "expected a number"),
        (
            {"guidance_scale": 2, "preference_weights": {"main": 1}},
            "preference_weights",
            "guidance_scale were both given",
        ),
        (
            {"guidance_scale": 2, "preference_profile": "even"},
            "preference_profile",
            "guidance_scale were both given",
        ),
        (
            {"negative_prompt": "x", PROMPTS: {"plain": "y"}},
            PROMPTS,
            "negative_prompt and preference_prompts were both given",
        ),
        ({"negative_prompt": ""}, "negative_prompt", "negative_prompt is empty"),
        ({"negative_prompt": 3}, "negative_prompt", "negative_prompt is 3"),
    ],
)
def test_wrong_guidance_is_refused(
    guided: Any, fields: dict[str, Any], param: str, words: str
) -> None:
    assert words in refused(guided, COMPLETIONS, param, **fields)


@pytest.mark.parametrize(("field", "value"), [("guidance_scale", 2), ("negative_prompt", "secret")])
def test_guidance_needs_one_policy_and_a_reference(
    open_app: Any, app_of: Any, field: str, value: Any
) -> None:
    apps = [open_app, app_of(SPEC, PromptSettings(request_prompts=True))]
    for app in apps:
        message = refused(app, COMPLETIONS, field, **{field: value})
        assert f"{field} needs a server of one policy and a reference" in message

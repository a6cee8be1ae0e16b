"""Policies whose prompts come while the server runs: a start's checks, and what requests keep."""

from __future__ import annotations

import asyncio
import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest

from prefmix.mixing.spec import MixtureSpec, Policy
from prefmix.mixing.wire import HEADS_KEY, WEIGHTS_KEY
from prefmix.server.api.prompts.added_texts import AddedTexts
from prefmix.server.config.prompt_settings import PromptSettings
from prefmix.server.slots.engine_slots import PolicyRefusedError
from prefmix.server.slots.policy_set import CurrentPolicies, PolicySet
from prefmix.weights.store import edits
from prefmix.weights.store.added import AddedPolicy
from support.prompts.prompted_state import BASE, state_of
from support.text_requests import Body, text_request

pytestmark = pytest.mark.usefixtures("vllm")

ENGINE = MixtureSpec(
    policies=(Policy(name="plain", model=BASE),),
    base=BASE,
    adapter_slots=2,
    max_adapter_rank=8,
    has_prompts=True,
)
SECRET = {"kind": "Be the secret."}


def refusal(*, mixing: Any = "logits", logs: bool = False, **settings: Any) -> str:
    """The sentence for a template that refuses system messages and tells them."""

    async def render(body: Any) -> Any:
        if body.messages[0]["role"] == "system":
            raise ValueError(f"cannot render {body.messages[0]['content']}")
        return [], [{"prompt_token_ids": [1]}]

    engine = dataclasses.replace(ENGINE, mixing=mixing)
    current = CurrentPolicies(PolicySet.of(engine, prompts=PromptSettings(**settings)))
    chat = SimpleNamespace(online_renderer=SimpleNamespace(render_chat=render))
    checks = AddedTexts(current, chat, logs_requests=logs)
    with pytest.raises(PolicyRefusedError) as caught:
        asyncio.run(checks.check(SECRET))
    assert "secret" not in str(caught.value)
    return str(caught.value)


def test_a_text_is_refused_with_the_words_of_a_start() -> None:
    assert refusal(mixing="parameters").startswith("mixing is parameters, which is one model")
    assert "no chat template that would carry it" in refusal(has_chat_template=False)
    assert "--enable-log-requests would write" in refusal(logs=True)
    assert "'kind' has a system text, which no conversation can carry here; give" in refusal()


def admitted(state: Any, **fields: Any) -> Body:
    async def send(message: Any) -> None:
        raise AssertionError

    request, _ = text_request(state, send, path="/v1/chat/completions")
    body = Body(prompt_kind="chat", **fields)
    request.admit(body)  # type: ignore[arg-type]
    return body


def systems(body: Body) -> list[str | None]:
    assert body.own_prompts is not None
    return [None if own is None else own.system for own in body.own_prompts.prompts_M]


def test_a_request_keeps_the_prompts_that_it_was_admitted_with() -> None:
    state = state_of(ENGINE, PromptSettings())
    start, profiles = state.policies.current, state.profiles.current
    own = dataclasses.replace(ENGINE, adapter_slots=0, max_adapter_rank=0)

    def bring(text: str | None) -> None:
        added = {} if text is None else {"kind": AddedPolicy.of(system=text)}
        state.policies.swap(start.with_added(added, dict.fromkeys(added, 1)))
        after = profiles
        for name, policy in added.items():
            after = edits.with_policy(after, name, policy, spec=own)
        state.profiles.swap(after)

    bring("Be kind.")
    half = {"kind": 1, "plain": 1}
    first = admitted(state, weights=half)
    bring("Be another.")
    second = admitted(state, weights=half)
    bring(None)
    assert (systems(first), systems(second)) == ([None, "Be kind."], [None, "Be another."])
    with pytest.raises(ValueError, match="unknown policy 'kind'"):
        admitted(state, weights=half)
    assert admitted(state, weights={"plain": 1}).own_prompts is None


def test_the_engine_gets_each_prompt_at_the_member_of_its_slot() -> None:
    """Slots without a policy have none, and the order of names is not that of slots."""
    engine = dataclasses.replace(ENGINE, adapter_slots=3)
    state = state_of(engine, PromptSettings())
    added = {name: AddedPolicy.of(system=f"Be {name}.") for name in ("kind", "brief")}
    own = dataclasses.replace(engine, adapter_slots=0, max_adapter_rank=0)
    profiles = state.profiles.current
    for name, policy in added.items():
        profiles = edits.with_policy(profiles, name, policy, spec=own)
    state.profiles.swap(profiles)
    state.policies.swap(state.policies.current.with_added(added, {"kind": 2, "brief": 0}))
    body = admitted(state, weights={"plain": 1, "kind": 2, "brief": 1})
    assert body.own_prompts is not None
    tokens = {None: [7], "Be kind.": [1, 2, 7], "Be brief.": [3, 7]}
    body.own_prompts.take([(own, tokens[own.system]) for own in body.own_prompts.distinct])
    extra_args = body.sampling_params().extra_args
    assert extra_args[WEIGHTS_KEY] == [0.25, 0.25, 0.0, 0.5]
    assert extra_args[HEADS_KEY] == [[], [3], None, [1, 2]]


def test_a_mixture_tells_of_an_added_prompt_that_it_is_there() -> None:
    from prefmix.server.api.models import describe

    state = state_of(ENGINE, PromptSettings())
    added = {"kind": AddedPolicy.of(system=SECRET["kind"])}
    state.policies.swap(state.policies.current.with_added(added, {"kind": 0}))
    told = describe(state)
    assert [(each["name"], each["has_prompt"]) for each in told["policies"]] == [
        ("plain", False),
        ("kind", True),
    ]
    assert "secret" not in str(told)

"""Each policy's prompt is rendered once, and the engine gets the longest and the others' heads."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from prefmix.mixing.spec import MixtureSpec
from prefmix.mixing.system_texts import with_system
from prefmix.mixing.wire import HEADS_KEY, MEASURE_KEY, WEIGHTS_KEY
from prefmix.server.api.prompts.rendering import render_own_prompts
from prefmix.server.config.prompt_settings import PromptSettings
from prefmix.server.http.errors import RequestError
from support.prompts.prompted_state import GUIDED, THREE, state_of
from support.text_requests import text_request

pytestmark = pytest.mark.usefixtures("vllm")

USER = {"role": "user", "content": "hi"}


class Rendering:
    """vLLM's handlers, which make a token of each character, or as many as a body says."""

    def __init__(self) -> None:
        self.rendered: list[Any] = []
        self.online_renderer = SimpleNamespace(render_chat=self.render_chat)
        self.refusal: Any = None

    async def render_chat_request(self, body: Any) -> Any:
        assert body.model == "m", "the model is checked once"
        return await self.render_chat(body)

    async def render_chat(self, body: Any) -> Any:
        self.rendered.append([dict(each) for each in body.messages])
        text = "".join(f"<{each['role'][0]}>{each['content']}" for each in body.messages)
        body.skip_special_tokens = False  # as parsers of tools do
        return self.refusal or (body.messages, [{"type": "token", "prompt_token_ids": ids(text)}])

    async def render_completion_request(self, body: Any) -> Any:
        self.rendered.append(body.prompt)
        given = body.prompt if isinstance(body.prompt, list) else ids(body.prompt)
        return self.refusal or [{"type": "token", "prompt_token_ids": given}]


def ids(text: str) -> list[int]:
    return [ord(each) - 30 for each in text]


class Rendered:
    """A request's course up to the engine."""

    def __init__(
        self,
        spec: MixtureSpec,
        settings: PromptSettings,
        *,
        vllm: Rendering | None = None,
        **body: Any,
    ) -> None:
        from prefmix.server.api.schemas import (
            MixtureChatCompletionRequest,
            MixtureCompletionRequest,
        )

        self.vllm = vllm or Rendering()
        kind = MixtureChatCompletionRequest if "messages" in body else MixtureCompletionRequest
        self.body: Any = kind.model_validate({"max_tokens": 4, **body})
        asyncio.run(self._run(spec, settings))

    async def _run(self, spec: MixtureSpec, settings: PromptSettings) -> None:
        async def send(message: Any) -> None: ...

        state = state_of(spec, settings)
        request, lifetime = text_request(state, send)
        try:
            request.admit(self.body)
            render_own_prompts(self.vllm, self.vllm)
            if self.body.prompt_kind == "chat":
                result = await self.vllm.render_chat_request(self.body)
                inputs = result[1] if isinstance(result, tuple) else None
            else:
                result = await self.vllm.render_completion_request(self.body)
                inputs = result if isinstance(result, list) else None
            self.result = result
            if inputs:
                self.engine_ids = inputs[0]["prompt_token_ids"]
                self.extra_args = self.body.to_sampling_params(4, {}).extra_args
            self.field = request._about().decode()
        finally:
            await lifetime.close()

    @property
    def prompts(self) -> list[list[int] | None]:
        """The token ids that each member reads, from what the engine gets."""
        heads = self.extra_args.get(HEADS_KEY)
        weights = self.extra_args[WEIGHTS_KEY]
        if heads is None:
            return [self.engine_ids if weight else None for weight in weights]
        longest = max(len(head) for head in heads if head is not None)
        tail = self.engine_ids[longest:]
        return [None if head is None else head + tail for head in heads]


SYSTEMS = PromptSettings(systems={"kind": "Be kind.", "brief": "Be brief, always."})
OPEN = PromptSettings(systems=dict(SYSTEMS.systems), request_prompts=True)


def test_each_policy_with_weight_reads_its_own_system_text() -> None:
    weights = {"kind": 1, "brief": 2, "plain": 1}
    found = Rendered(THREE, SYSTEMS, messages=[USER], preference_weights=weights)
    assert found.prompts == [
        ids("<s>Be kind.<u>hi"),
        ids("<s>Be brief, always.<u>hi"),
        ids("<u>hi"),
    ]
    assert found.engine_ids == found.prompts[1], "the engine reads the longest"
    assert found.body.messages == [USER], "the body is left as it came"
    assert found.body.skip_special_tokens is False, "and as vLLM has changed it"
    assert '"prompt_tokens": {"kind": 16, "brief": 25, "plain": 5}' in found.field


def test_a_policy_without_weight_is_not_rendered() -> None:
    found = Rendered(THREE, SYSTEMS, messages=[USER], preference_weights={"kind": 1, "brief": 1})
    assert found.prompts[2] is None
    assert len(found.vllm.rendered) == 2


def test_one_policy_alone_needs_no_heads() -> None:
    found = Rendered(THREE, SYSTEMS, messages=[USER], preference_weights={"kind": 1})
    assert found.engine_ids == ids("<s>Be kind.<u>hi")
    assert HEADS_KEY not in found.extra_args
    plain = Rendered(THREE, SYSTEMS, messages=[USER], preference_weights={"plain": 1})
    assert plain.engine_ids == ids("<u>hi")
    assert "prompt_tokens" not in plain.field


@pytest.mark.parametrize(
    ("messages", "merged"),
    [
        ([USER], [{"role": "system", "content": "T"}, USER]),
        (
            [{"role": "system", "content": "own"}, USER],
            [{"role": "system", "content": "T\n\nown"}, USER],
        ),
        (
            [{"role": "system", "content": [{"type": "text", "text": "own"}]}, USER],
            [{"role": "system", "content": [{"type": "text", "text": "T\n\nown"}]}, USER],
        ),
        (
            [{"role": "system", "content": [{"type": "text", "text": ""}]}, USER],
            [{"role": "system", "content": [{"type": "text", "text": "T"}]}, USER],
        ),
        (
            [{"role": "system", "content": [{"type": "refusal", "refusal": "no"}]}, USER],
            [
                {
                    "role": "system",
                    "content": [
                        {"type": "text", "text": "T\n\n"},
                        {"type": "refusal", "refusal": "no"},
                    ],
                },
                USER,
            ],
        ),
        ([{"role": "system", "content": ""}, USER], [{"role": "system", "content": "T"}, USER]),
        (
            [{"role": "system", "content": "own", "name": "n"}],
            [{"role": "system", "content": "T\n\nown", "name": "n"}],
        ),
        (
            [USER, {"role": "system", "content": "late"}],
            [{"role": "system", "content": "T"}, USER, {"role": "system", "content": "late"}],
        ),
    ],
)
def test_a_system_text_and_the_clients_own_are_one_message(
    messages: list[Any], merged: list[Any]
) -> None:
    before = [dict(each) for each in messages]
    assert with_system("T", messages) == merged
    assert messages == before


@pytest.mark.parametrize("content_format", ["string", "openai"])
def test_parts_of_a_system_message_are_an_empty_line_apart_for_each_template(
    content_format: Any,
) -> None:
    from vllm.renderers.chat_utils import parse_chat_messages

    own = [{"type": "text", "text": "own"}]
    config: Any = SimpleNamespace(
        multimodal_config=None, allowed_media_domains=None, enable_prompt_embeds=False
    )
    messages = with_system("T", [{"role": "system", "content": own}])
    (found,), *_ = parse_chat_messages(messages, config, content_format)
    content: Any = found["content"]
    text = content if isinstance(content, str) else "".join(each["text"] for each in content)
    assert text == "T\n\nown"


def test_a_requests_text_takes_the_place_of_the_servers() -> None:
    prompts = {"kind": "Mine.", "plain": {"messages": [{"role": "user", "content": "other"}]}}
    weights = {"kind": 1, "brief": 1, "plain": 1}
    found = Rendered(
        THREE, OPEN, messages=[USER], preference_prompts=prompts, preference_weights=weights
    )
    assert found.prompts == [
        ids("<s>Mine.<u>hi"),
        ids("<s>Be brief, always.<u>hi"),
        ids("<u>other"),
    ]


def test_completions_read_texts_and_token_ids() -> None:
    prompts = {"kind": "Kind: hi", "brief": [1, 2, 3]}
    weights = {"kind": 1, "brief": 1, "plain": 1}
    found = Rendered(
        THREE, OPEN, prompt="hi", preference_prompts=prompts, preference_weights=weights
    )
    assert found.prompts == [ids("Kind: hi"), [1, 2, 3], ids("hi")]
    assert found.body.prompt == "hi"


def test_a_negative_prompt_is_the_references() -> None:
    settings = PromptSettings(request_prompts=True)
    found = Rendered(GUIDED, settings, prompt="a cat", negative_prompt="a dog!", guidance_scale=1.5)
    assert found.extra_args[WEIGHTS_KEY] == [1.5, -0.5]
    assert found.prompts == [ids("a cat"), ids("a dog!")]
    chat = Rendered(GUIDED, settings, messages=[USER], negative_prompt="rude", guidance_scale=3)
    assert chat.prompts == [ids("<u>hi"), ids("<s>rude<u>hi")]


def test_candidates_are_drawn_and_tokens_measured_with_prompts() -> None:
    wishes = {"preference_candidates": 2, "preference_attribution": True}
    found = Rendered(THREE, SYSTEMS, messages=[USER], **wishes)
    assert {HEADS_KEY, MEASURE_KEY} <= found.extra_args.keys()


@pytest.mark.parametrize("write", [str, repr, json.dumps])
def test_a_templates_reason_that_shows_a_text_is_left_out(write: Callable[[Any], str]) -> None:
    settings = PromptSettings(systems={"kind": "Be kind,\nalways. "})

    class Refusing(Rendering):
        async def render_chat(self, body: Any) -> Any:
            raise ValueError(f"cannot read {write(body.messages[0]['content'])}")

    with pytest.raises(RequestError, match="chat template refuses") as refused:
        Rendered(THREE, settings, vllm=Refusing(), messages=[USER])
    assert "kind," not in str(refused.value)
    with pytest.raises(ValueError, match="cannot read"):
        Rendered(
            THREE,
            settings,
            vllm=Refusing(),
            messages=[USER],
            preference_weights={"brief": 1, "plain": 1},
        )


def test_too_many_tokens_together_are_refused() -> None:
    limited = PromptSettings(systems=dict(SYSTEMS.systems), max_own_tokens=40)
    with pytest.raises(RequestError, match="41 tokens together; this server takes at most 40"):
        Rendered(THREE, limited, messages=[USER])
    limit = PromptSettings(systems=dict(SYSTEMS.systems), max_own_tokens=41)
    Rendered(THREE, limit, messages=[USER])


def test_a_refusal_of_vllm_is_the_answer() -> None:
    vllm = Rendering()
    vllm.refusal = SimpleNamespace(error="no")
    for body in ({"messages": [USER]}, {"prompt": "x", "preference_prompts": {"kind": "y"}}):
        assert Rendered(THREE, OPEN, vllm=vllm, **body).result is vllm.refusal


@pytest.mark.parametrize(
    "inputs",
    [
        [{"type": "multimodal", "prompt_token_ids": [1]}],
        [{"type": "token", "prompt_token_ids": []}],
        [{"type": "token", "prompt_token_ids": [1]}] * 2,
        [{"type": "embeds"}],
        [],
    ],
)
def test_what_is_not_one_text_is_refused(inputs: list[Any]) -> None:
    vllm = Rendering()
    vllm.refusal = ([USER], inputs)
    with pytest.raises(RequestError, match="is one text"):
        Rendered(THREE, SYSTEMS, vllm=vllm, messages=[USER])

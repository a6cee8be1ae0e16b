"""vLLM's own renderer, without an engine: templates, tools and lengths of each policy's prompt."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from prefmix.server.api.prompts.own_prompt import AS_GIVEN, OwnPrompt
from prefmix.server.api.prompts.rendering import render_own_prompts
from prefmix.server.api.prompts.request_prompts import RequestPrompts
from prefmix.server.api.prompts.start_check import SystemTextError, check_system_texts
from prefmix.server.config.prompt_settings import PromptSettings
from support.checkpoints.tiny_policies import save_policy

pytestmark = pytest.mark.usefixtures("vllm")

MAX_MODEL_LEN = 256
WITH_TOOLS = (
    "{% for tool in tools or [] %}[{{ tool.function.name }}]{% endfor %}"
    "{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}"
)
REFUSING = (
    "{% for message in messages %}{% if message.role == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}{{ message.content }}{% endfor %}"
)
DROPPING = (
    "{% for message in messages %}{% if message.role != 'system' %}{{ message.content }}"
    "{% endif %}{% endfor %}"
)
TOOL = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}


@pytest.fixture(scope="module")
def renderer(vllm: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from vllm.config import ModelConfig, VllmConfig
    from vllm.renderers import renderer_from_config

    folder: Path = save_policy(tmp_path_factory.mktemp("render") / "one", seed=0)
    config = ModelConfig(model=str(folder), max_model_len=MAX_MODEL_LEN)
    made = renderer_from_config(VllmConfig(model_config=config))
    asyncio.run(Serving(made, None).render_chat_request(chat()))  # starts its threads
    yield made
    made.shutdown()


class Serving:
    """The two methods of vLLM's handlers that render, and no engine behind them."""

    def __init__(self, renderer: Any, template: str | None) -> None:
        from vllm.renderers.online_renderer import OnlineRenderer

        self.renderer = renderer
        self.online_renderer = OnlineRenderer(
            renderer.model_config,
            renderer,
            request_logger=None,
            chat_template=template,
            chat_template_content_format="auto",
        )

    async def render_chat_request(self, body: Any) -> Any:
        return await self.online_renderer.render_chat(body)

    async def render_completion_request(self, body: Any) -> Any:
        return await self.online_renderer.render_completion(body)


@pytest.fixture
def serving(renderer: Any) -> Callable[[str | None], Serving]:
    return lambda template: Serving(renderer, template)


def read_by_each(serving: Serving, body: Any, *own: OwnPrompt | None) -> list[str | None]:
    """The text that each member reads."""
    prompts = RequestPrompts(
        prompts_M=own, member_names=tuple("abcd"[: len(own)]), max_own_tokens=1000
    )
    body.bind(model="m", start_prompt=lambda _: None, own_prompts=prompts)
    render_own_prompts(serving, serving)

    async def main() -> Any:
        if body.prompt_kind == "chat":
            return (await serving.render_chat_request(body))[1]
        return await serving.render_completion_request(body)

    [inputs] = asyncio.run(main())
    ids = inputs["prompt_token_ids"]
    decode = serving.renderer.tokenizer.decode
    if prompts.heads_M is None:
        return [None if each is None else decode(ids) for each in own]
    tail = ids[max(len(head) for head in prompts.heads_M if head is not None) :]
    return [None if head is None else decode(head + tail) for head in prompts.heads_M]


def chat(**fields: Any) -> Any:
    from prefmix.server.api.schemas import MixtureChatCompletionRequest

    given = {"messages": [{"role": "user", "content": "hi"}], "max_completion_tokens": 3, **fields}
    return MixtureChatCompletionRequest.model_validate(given)


def test_every_policys_prompt_has_the_template_and_the_tools(serving: Any) -> None:
    body = chat(tools=[TOOL], tool_choice="none")
    own = (OwnPrompt(system="Be kind."), None, AS_GIVEN)
    assert read_by_each(serving(WITH_TOOLS), body, *own) == [
        "[look_up]<system>Be kind.<user>hi",
        None,
        "[look_up]<user>hi",
    ]


def test_the_models_own_template_and_whole_conversations_are_read(serving: Any) -> None:
    messages = [{"role": "assistant", "content": "so"}, {"role": "user", "content": "then?"}]
    found = read_by_each(serving(None), chat(), OwnPrompt(messages=messages), OwnPrompt(system="S"))
    assert found == [
        "<s><|assistant|>so\n<|user|>then?\n<|assistant|>",
        "<s><|system|>S\n<|user|>hi\n<|assistant|>",
    ]


def test_completions_are_texts_or_tokens(serving: Any) -> None:
    from prefmix.server.api.schemas import MixtureCompletionRequest

    body = MixtureCompletionRequest(prompt="plain", max_tokens=3)
    ids = serving(None).renderer.tokenizer.encode("given")
    own = (OwnPrompt(prompt="other, plain"), AS_GIVEN, OwnPrompt(prompt=ids))
    assert read_by_each(serving(None), body, *own) == ["other, plain", "plain", "given"]


def test_each_prompt_must_fit_the_context(serving: Any) -> None:
    from vllm.exceptions import VLLMValidationError

    read_by_each(serving(None), chat(), OwnPrompt(system="long " * 40), AS_GIVEN)
    for own in (
        (OwnPrompt(system="long " * 200), AS_GIVEN),
        (AS_GIVEN, OwnPrompt(system="l" * 300)),
    ):
        with pytest.raises(VLLMValidationError, match="maximum context length is 256"):
            read_by_each(serving(None), chat(), *own)


@pytest.mark.parametrize(
    ("template", "text", "words"),
    [
        (REFUSING, "Be secret.", "System role not supported"),
        (DROPPING, "Be secret.", "leaves system messages out"),
        (None, "Be secret. " * 100, "maximum context length"),
        (
            None,
            "Be secret. " * 100,
            r"too long here: .* input prompt; give a shorter text, or serv",
        ),
        (None, "x" * 100_000, r"'a' has a system text that is too long here: This"),
    ],
)
def test_a_start_with_texts_that_no_conversation_carries_is_refused(
    serving: Any, template: str | None, text: str, words: str
) -> None:
    render = serving(template).online_renderer.render_chat
    with pytest.raises(SystemTextError, match=words) as caught:
        asyncio.run(check_system_texts(render, PromptSettings(systems={"a": text})))
    assert "secret" not in str(caught.value)
    assert "parameter=" not in str(caught.value)


def test_a_start_with_texts_that_the_template_carries_goes_on(serving: Any) -> None:
    render = serving(None).online_renderer.render_chat
    asyncio.run(check_system_texts(render, PromptSettings(systems={"a": "A.", "b": "B."})))

"""vLLM's rendering of a request's prompt, done once for each prompt that its members read.

Tools, templates and limits are vLLM's own in each rendering, so that each prompt fits the context.
The engine reads the longest, which also limits the answer.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from prefmix.server.api.prompts.hidden_texts import rendering, shows
from prefmix.server.api.prompts.own_prompt import FIELD, OwnPrompt
from prefmix.server.api.prompts.request_prompts import RequestPrompts
from prefmix.server.http.errors import RequestError

_REFUSED = (
    "the chat template refuses this conversation, for a reason that would show a policy's system "
    "text; send messages that the template takes"
)

Render = Callable[[Any], Awaitable[Any]]


def render_own_prompts(chat: Any, completion: Any) -> None:
    """Makes vLLM's handlers render each member's prompt. Call it once, where members have some.

    Args:
      chat: vLLM's OpenAIServingChat; None if it serves none.
      completion: vLLM's OpenAIServingCompletion; None if it serves none.
    """
    if chat is not None:
        chat.render_chat_request = _chat(chat.render_chat_request, chat.online_renderer.render_chat)
    if completion is not None:
        completion.render_completion_request = _completion(completion.render_completion_request)


def _chat(first: Render, more: Render) -> Render:
    """Args: first: checks the model as well; more: only renders."""

    async def render(body: Any) -> Any:
        prompts: RequestPrompts | None = body.own_prompts
        if prompts is None:
            return await first(body)
        given = body.messages
        distinct = prompts.distinct
        # Before the first is rendered: vLLM's parsers of tools change the body that is rendered.
        bodies = [body, *(body.model_copy() for _ in distinct[1:])]
        results: list[Any] = []
        for each, own in zip(bodies, distinct, strict=True):
            each.messages = own.conversation(given)
            try:
                with rendering(own.system):
                    result = await (more if results else first)(each)
            except Exception as error:  # a template may raise anything
                if own.system is None or not shows(own.system, str(error)):
                    raise
                raise RequestError(_REFUSED, param="messages") from None
            if not isinstance(result, tuple):
                return result  # vLLM's refusal
            results.append(result)
        body.messages = given
        conversation = results[0][0]
        return conversation, _longest(prompts, distinct, [inputs for _, inputs in results])

    return render


def _completion(render: Render) -> Render:
    async def render_each(body: Any) -> Any:
        prompts: RequestPrompts | None = body.own_prompts
        if prompts is None:
            return await render(body)
        distinct = prompts.distinct
        results = []
        for own in distinct:
            each = body.model_copy()
            if own.prompt is not None:
                each.prompt = own.prompt
            result = await render(each)
            if not isinstance(result, list):
                return result  # vLLM's refusal
            results.append(result)
        return _longest(prompts, distinct, results)

    return render_each


def _longest(
    prompts: RequestPrompts, distinct: Sequence[OwnPrompt], results: Sequence[list[Any]]
) -> list[Any]:
    """The engine's input; the request keeps what the others read.

    Args: results: vLLM's engine inputs, of which each prompt has one.
    """
    rendered = []
    for own, inputs in zip(distinct, results, strict=True):
        ids = inputs[0].get("prompt_token_ids") if len(inputs) == 1 else None
        if not ids or inputs[0].get("type", "token") != "token":
            raise RequestError(
                "a prompt of a policy's own is one text, and a conversation came that is several, "
                "empty, or has other things than text in it",
                param=FIELD,
            )
        rendered.append((own, list(ids)))
    return results[prompts.take(rendered)]

"""The check that the chat template carries the policies' system texts, made before any request."""

from __future__ import annotations

from typing import Any

from prefmix.mixing.system_texts import with_system
from prefmix.server.config.prompt_settings import PromptSettings

_MESSAGES = [{"role": "user", "content": "Hello."}]
_MAX_REASON_CHARS = 300


class SystemTextError(ValueError):
    """A chat template that cannot carry a policy's system text; one sentence without the text."""


async def check_system_texts(render: Any, prompts: PromptSettings) -> None:
    """Renders a conversation with each policy's system text.

    Args:
      render: vLLM's OnlineRenderer.render_chat.
    Raises: SystemTextError if one is refused, left out or too long.
    """
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

    async def token_ids(messages: list[Any]) -> list[int]:
        result = await render(ChatCompletionRequest(messages=messages, max_completion_tokens=1))
        if not isinstance(result, tuple):
            raise ValueError(result.error.message)
        return list(result[1][0]["prompt_token_ids"])

    for name, text in prompts.systems.items():
        try:
            plain = await token_ids(_MESSAGES)
            own = await token_ids(with_system(text, _MESSAGES))
        except Exception as error:  # a template may raise anything, and its text is the message
            reason = " ".join(str(error).split())
            hidden = "" if text in str(error) else f": {reason:.{_MAX_REASON_CHARS}}"
            raise SystemTextError(
                f"policy {name!r} has a system text, which no conversation can carry here{hidden}; "
                "give a chat template that takes system messages (-- --chat-template FILE), a "
                "shorter text, or leave it out"
            ) from None
        if own == plain:
            raise SystemTextError(
                f"policy {name!r} has a system text, but the chat template leaves system messages "
                "out; give one that takes them (-- --chat-template FILE), or leave the text out"
            )

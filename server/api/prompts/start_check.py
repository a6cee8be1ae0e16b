"""The check that the chat template carries the policies' system texts, made before any request."""

from __future__ import annotations

from typing import Any

from prefmix.mixing.system_texts import with_system
from prefmix.server.api.prompts.hidden_texts import rendering, shows
from prefmix.server.config.prompt_settings import PromptSettings

_MESSAGES = [{"role": "user", "content": "Hello."}]
_MAX_REASON_CHARS = 300

_OF_LENGTH = ("input_text", "input_tokens")
"""The parameters that vLLM 0.32 names where a prompt is too long."""


class _RefusedError(ValueError):
    """A refusal that vLLM has made an answer of."""

    def __init__(self, message: str, parameter: str | None) -> None:
        super().__init__(message)
        self.parameter = parameter


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
            raise _RefusedError(result.error.message, getattr(result.error, "param", None))
        return list(result[1][0]["prompt_token_ids"])

    for name, text in prompts.systems.items():
        try:
            plain = await token_ids(_MESSAGES)
            with rendering(text):
                own = await token_ids(with_system(text, _MESSAGES))
        except Exception as error:  # a template may raise anything, and its text is the message
            # vLLM's own errors add names and values of its code to their text.
            parameter = getattr(error, "parameter", None)
            said = str(error.args[0]) if parameter is not None and error.args else str(error)
            reason = f"{' '.join(said.split()):.{_MAX_REASON_CHARS}}"
            hidden = "" if shows(text, said) else f": {reason}"
            if parameter in _OF_LENGTH:
                raise SystemTextError(
                    f"policy {name!r} has a system text that is too long here{hidden.rstrip('.')}; "
                    "give a shorter text, or serve longer contexts (--max-model-len)"
                ) from None
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

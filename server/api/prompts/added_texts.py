"""The checks of a start for the system texts of policies that come while the server runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from prefmix.server.api.prompts.start_check import SystemTextError, check_system_texts
from prefmix.server.config.prompt_settings import ONE_PROMPT
from prefmix.server.slots.engine_slots import PolicyRefusedError
from prefmix.server.slots.policy_set import CurrentPolicies


class AddedTexts:
    """Refuses what a start would have refused, with its words."""

    def __init__(self, current: CurrentPolicies, chat: Any, *, logs_requests: bool) -> None:
        """Args:
        chat: vLLM's OpenAIServingChat; None if it serves none.
        logs_requests: vLLM's flag --enable-log-requests.
        """
        self._current = current
        self._chat = chat
        self._logs_requests = logs_requests

    async def check(self, systems: Mapping[str, str]) -> None:
        """Raises: PolicyRefusedError for texts that no policy can have here."""
        now = self._current.current
        if now.spec.mixing == "parameters":
            raise PolicyRefusedError(ONE_PROMPT)
        prompts = replace(now.prompts, systems=systems)
        refusal = prompts.refusal(logs_requests=self._logs_requests)
        if refusal is not None:
            raise PolicyRefusedError(refusal)
        if self._chat is None:
            return
        try:
            await check_system_texts(self._chat.online_renderer.render_chat, prompts)
        except SystemTextError as error:
            raise PolicyRefusedError(str(error)) from None

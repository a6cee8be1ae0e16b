"""A chat template that cannot carry system texts ends the start, not the hundredth request."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from prefmix.server.api.prompts.start_check import SystemTextError, check_system_texts
from prefmix.server.config.prompt_settings import PromptSettings

pytestmark = pytest.mark.usefixtures("vllm")

SETTINGS = PromptSettings(systems={"kind": "Be the secret."})


def check(render: Any) -> None:
    asyncio.run(check_system_texts(render, SETTINGS))


def rendered(*ids: int) -> Any:
    return [], [{"prompt_token_ids": list(ids)}]


def test_a_template_that_takes_them_passes() -> None:
    async def render(body: Any) -> Any:
        return rendered(*range(len(body.messages)))

    check(render)


def has_system(body: Any) -> bool:
    return bool(body.messages[0]["role"] == "system")


def failing(message: str) -> Any:
    async def render(body: Any) -> Any:
        if has_system(body):
            raise ValueError(message)
        return rendered(1)

    return render


def test_a_template_that_refuses_them_is_named_with_its_reason() -> None:
    with pytest.raises(SystemTextError, match=r"'kind' .*: System role not supported; give a chat"):
        check(failing("System role\nnot supported"))


def test_a_reason_that_shows_the_text_is_left_out() -> None:
    with pytest.raises(SystemTextError) as caught:
        check(failing("cannot render Be the secret."))
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_refusal_of_vllm_ends_the_start_too() -> None:
    async def render(body: Any) -> Any:
        return SimpleNamespace(error=SimpleNamespace(message="no template"))

    with pytest.raises(SystemTextError, match="no template"):
        check(render)


def test_a_template_that_drops_them_is_found() -> None:
    async def render(body: Any) -> Any:
        return rendered(1, 2)

    with pytest.raises(SystemTextError, match="leaves system messages out"):
        check(render)

"""Servers whose policies have prompts of their own, without an engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from prefmix.mixing.spec import MixtureSpec
from prefmix.server.config.prompt_settings import PromptSettings
from support.prompts.prompted_state import BRIEF, GUIDED, KIND, THREE, state_of
from support.text_requests import text_app


@pytest.fixture(scope="module")
def app_of(vllm: None) -> Iterator[Callable[[MixtureSpec, PromptSettings], Any]]:
    with pytest.MonkeyPatch.context() as patch:
        yield lambda spec, settings: text_app(patch.setattr, state=state_of(spec, settings))


@pytest.fixture(scope="module")
def configured(app_of: Any) -> Any:
    """Two policies with texts of the server's own; requests may give none."""
    return app_of(THREE, PromptSettings(systems={"kind": KIND, "brief": BRIEF}))


@pytest.fixture(scope="module")
def open_app(app_of: Any) -> Any:
    """The same; requests may give prompts."""
    systems = {"kind": KIND, "brief": BRIEF}
    return app_of(THREE, PromptSettings(systems=systems, request_prompts=True))


@pytest.fixture(scope="module")
def guided(app_of: Any) -> Any:
    """One policy and a reference, whose prompts come with requests."""
    return app_of(GUIDED, PromptSettings(request_prompts=True))

"""Prompts by member: what the engine takes of them, and templates that do not carry them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from prefmix.weights.engines.errors import EngineError
from prefmix.weights.engines.member_prompts import MemberPrompts, as_engine_takes, check_systems


def test_the_engine_takes_the_longest_prompt_of_members_with_weight() -> None:
    prompt = MemberPrompts(((1, 2, 9), (3, 9), (4, 5, 6, 9)))
    assert len(prompt) == 4
    tokens, heads = as_engine_takes(prompt, (0.5, 0.5, 0.0))
    assert tokens == (1, 2, 9)
    assert heads == ([1, 2], [3], None)
    assert as_engine_takes(prompt, (0.0, 0.0, 1.0)) == ((4, 5, 6, 9), None)
    assert as_engine_takes((7, 8), (0.5, 0.5, 0.0)) == ((7, 8), None)


def written(messages: Sequence[Any]) -> tuple[int, ...]:
    return tuple(len(each["content"]) for each in messages if each["role"] != "system")


def refused(messages: Sequence[Any]) -> tuple[int, ...]:
    for each in messages:
        if each["role"] == "system":
            raise ValueError(f"system messages are not supported, got {each['content'][:2]}")
    return written(messages)


def test_templates_that_do_not_carry_a_system_text_are_refused() -> None:
    check_systems(written, [])
    check_systems(lambda messages: (len(messages),), ["be kind"])
    with pytest.raises(EngineError, match="leaves system messages out"):
        check_systems(written, ["be kind"])
    with pytest.raises(EngineError, match="carry here: system messages are not supported") as error:
        check_systems(refused, ["be kind"])
    assert "be kind" not in str(error.value)
    with pytest.raises(EngineError, match="can carry here; give"):
        check_systems(refused, ["be"])

"""vLLM prints sampling parameters without the tokens of prompts."""

from __future__ import annotations

from typing import Any

import pytest

from prefmix.mixing import wire
from prefmix.mixing.prompts.hidden_heads import hide_heads

pytestmark = pytest.mark.usefixtures("vllm")


@pytest.mark.parametrize(
    ("heads", "words"), [([[11223, 5], None, []], "[2, None, 0] tokens"), ("11223", "hidden")]
)
def test_lengths_are_printed_not_tokens(
    monkeypatch: pytest.MonkeyPatch, heads: Any, words: str
) -> None:
    from vllm import SamplingParams

    monkeypatch.setattr(SamplingParams, "__repr__", SamplingParams.__repr__)
    plain = SamplingParams(extra_args={"own": 11223})
    before = repr(plain)
    hide_heads()
    hide_heads()
    params = SamplingParams(extra_args={"own": 7, wire.HEADS_KEY: heads})
    assert words in repr(params)
    assert "'own': 7" in repr(params)
    assert "11223" not in repr(params)
    assert params.extra_args == {"own": 7, wire.HEADS_KEY: heads}
    assert repr(plain) == before

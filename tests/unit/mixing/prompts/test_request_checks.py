"""Requests whose policies cannot have the prompts that they name are refused in one sentence."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from prefmix.mixing import wire
from prefmix.mixing.prompts.request_checks import PromptsError, check_prompts
from prefmix.mixing.spec import MixtureSpec, Policy

SPEC = MixtureSpec(
    policies=(Policy(name="one", model="m1"), Policy(name="two", model="m2")), has_prompts=True
)
PLAIN = MixtureSpec(policies=SPEC.policies)


def check(
    heads: Any,
    *,
    spec: MixtureSpec = SPEC,
    weights: tuple[float, ...] = (0.5, 0.5),
    mixing: Any = "logits",
    prompt: int = 4,
    prompt_logprobs: int | None = None,
) -> list[int]:
    extra_args = {**wire.to_extra_args(weights, mixing), wire.HEADS_KEY: heads}
    params = SimpleNamespace(extra_args=extra_args, prompt_logprobs=prompt_logprobs)
    request: Any = SimpleNamespace(sampling_params=params, prompt_token_ids=[9] * prompt)
    return check_prompts(request, spec)


def test_heads_that_fit_are_returned_for_the_check_of_their_tokens() -> None:
    assert check([[1, 2], [3]]) == [1, 2, 3]
    assert check([None, [3]]) == [3]
    assert check(None) == []
    assert check(None, spec=PLAIN) == []


@pytest.mark.parametrize(
    ("heads", "settings", "words"),
    [
        ([[1], [2]], {"spec": PLAIN}, "no prompts of their own"),
        ("abc", {}, "an entry for each of one, two"),
        ([[1]], {}, "an entry for each of one, two"),
        ([[1], ["a"]], {}, "policy 'two' must be a list of token ids"),
        ([[1], [2**64]], {}, "policy 'two' must be a list of token ids"),
        ([[1], [-1]], {}, "policy 'two' must be a list of token ids"),
        ([[1], [2]], {"mixing": "parameters"}, "reads one prompt"),
        ([[1] * 5, [2]], {}, "begins with 5 tokens, but the request's has 4"),
        ([[1] * 4, []], {}, "the prompt of policy 'two' is empty"),
        ([[1], [2]], {"prompt_logprobs": 0}, "leave prompt_logprobs and echo out"),
    ],
)
def test_what_cannot_be_is_refused(heads: Any, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(PromptsError, match=words):
        check(heads, **settings)


def test_a_policy_without_weight_may_have_an_empty_prompt() -> None:
    assert check([[1] * 4, []], weights=(1.0, 0.0)) == [1] * 4

"""The wish for candidates is checked, and the sampling parameters that they need."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from prefmix.server.api.candidates.wish import NEUTRAL, CandidateLimits, Candidates
from prefmix.server.http.errors import RequestError

LIMITS = CandidateLimits(most=8, max_tokens=100)


@pytest.mark.parametrize("wish", [0, -1, 1.5, 2.0, True, False, "4", [4], {}, ""])
def test_other_wishes_are_refused(wish: object) -> None:
    with pytest.raises(RequestError, match="expected a number of candidates, 1 or more") as caught:
        Candidates(wish, LIMITS)
    assert caught.value.param == "preference_candidates"


def test_candidates_are_limited() -> None:
    assert Candidates(8, LIMITS).number == 8
    assert not Candidates(None, CandidateLimits(most=0)).is_wanted
    assert Candidates(10**6, CandidateLimits()).number == 10**6
    with pytest.raises(RequestError, match="is 9; this server draws at most 8 for an answer"):
        Candidates(9, LIMITS)
    with pytest.raises(RequestError, match="is not served: it needs one engine"):
        Candidates(1, CandidateLimits(most=0, refusal="it needs one engine"))


@pytest.mark.parametrize(
    ("wish", "param", "message"),
    [
        ({"mixing": "parameters"}, "preference_candidates", "the policies' own predictions"),
        ({"mixing": "logits", "stream": True}, "stream", "only once they are complete"),
        ({"mixing": "logits", "echo": True}, "echo", "leave out echo or preference_candidates"),
    ],
)
def test_what_cannot_be_picked_is_refused(wish: Any, param: str, message: str) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        Candidates(2, LIMITS).check(**wish)
    assert caught.value.param == param
    Candidates(None, LIMITS).check(**wish)


@pytest.mark.parametrize(
    ("settings", "param"),
    [
        ({"temperature": 0.7}, "temperature"),
        ({"temperature": 0}, "temperature"),
        ({"top_p": 0.9}, "top_p"),
        ({"top_k": 40}, "top_k"),
        ({"min_p": 0.1}, "min_p"),
        ({"presence_penalty": 0.1}, "presence_penalty"),
        ({"frequency_penalty": -0.1}, "frequency_penalty"),
        ({"repetition_penalty": 1.1}, "repetition_penalty"),
        ({"min_tokens": 2}, "min_tokens"),
        ({"logit_bias": {3: 1.0}}, "logit_bias"),
        ({"allowed_token_ids": [3]}, "allowed_token_ids"),
        ({"bad_words": ["x"]}, "bad_words"),
        ({"structured_outputs": "a grammar"}, "structured_outputs"),
        ({"max_tokens": 101}, "max_tokens"),
        ({"max_tokens": None}, "max_tokens"),
    ],
)
def test_other_distributions_and_long_answers_are_refused(
    vllm: None, settings: Any, param: str
) -> None:
    from vllm import SamplingParams

    plain = SamplingParams(max_tokens=100, n=2, stop=["."], seed=1, logprobs=1, ignore_eos=True)
    assert all(hasattr(plain, field) for field in NEUTRAL), "vLLM has renamed a parameter"
    params = SimpleNamespace(**{field: getattr(plain, field) for field in (*NEUTRAL, "max_tokens")})
    params.__dict__.update(settings)
    with pytest.raises(RequestError) as caught:
        Candidates(4, LIMITS).prepare(params)  # type: ignore[arg-type]
    assert caught.value.param == param
    message = str(caught.value)
    assert message.startswith("a grammar is asked for" if "grammar" in str(settings) else param)
    assert "None" not in message.partition(", from the request")[2], "JSON has no None"
    Candidates(None, LIMITS).prepare(params)  # type: ignore[arg-type]
    Candidates(4, LIMITS).prepare(plain)
    assert plain.n == 8

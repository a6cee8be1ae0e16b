"""A request names only tokens that all policies of the mixture have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from prefmix.mixing import wire
from prefmix.mixing.engine.request_tokens import check_made, check_tokens
from prefmix.mixing.spec import CONFIG_KEY, MixtureSpec, Policy
from prefmix.mixing.vocabulary import CommonVocabulary

pytestmark = pytest.mark.usefixtures("vllm")


def params(**fields: Any) -> Any:
    from vllm import SamplingParams

    words = fields.pop("words", None)
    made = SamplingParams(max_tokens=None, **fields)
    made._bad_words_token_ids = words
    return made


VOCABULARY = CommonVocabulary(num_rows=10, differing=frozenset({3}), num_never_drawn=6)


def request(prompt: Sequence[int] | None = (1, 2), **fields: Any) -> Any:
    made = params(**fields)
    made.update_from_generation_config({}, 1)
    return SimpleNamespace(prompt_token_ids=prompt, sampling_params=made)


@pytest.mark.parametrize("token", [3, 10, 12, -1])
@pytest.mark.parametrize(
    ("field", "make"),
    [
        ("prompt", lambda ids: {"prompt": ids}),
        ("logit_bias", lambda ids: {"logit_bias": dict.fromkeys(ids, 1.0)}),
        ("allowed_token_ids", lambda ids: {"allowed_token_ids": ids}),
        ("stop_token_ids", lambda ids: {"stop_token_ids": ids}),
        ("logprob_token_ids", lambda ids: {"logprob_token_ids": ids}),
        ("prompt_logprob_token_ids", lambda ids: {"prompt_logprob_token_ids": [[5, -1], ids]}),
    ],
)
def test_tokens_that_not_all_policies_have_are_refused(field: str, make: Any, token: int) -> None:
    from vllm.exceptions import VLLMValidationError

    fine = request(**make([0, 9]))
    check_tokens(fine, [fine.sampling_params], VOCABULARY, end=1)
    made = request(**make([0, token, 9]))
    if (field, token) == ("prompt_logprob_token_ids", -1):  # vLLM's padding of a row
        check_tokens(made, [], VOCABULARY, end=1)
        return
    with pytest.raises(VLLMValidationError) as refused:
        check_tokens(made, [None, made.sampling_params], VOCABULARY, end=1)
    assert refused.value.parameter == field
    assert f"{field} has token {token}, which not all policies" in str(refused.value)
    assert "allowed: the 9 token ids" in str(refused.value)


def test_many_such_tokens_make_no_long_message() -> None:
    from vllm.exceptions import VLLMValidationError

    with pytest.raises(VLLMValidationError, match=r"tokens 12, 13, 14, \.{3}, which") as refused:
        check_tokens(request(prompt=range(12, 10_000)), [], VOCABULARY, end=1)
    assert len(str(refused.value)) < 200


def test_the_models_own_ends_that_not_all_have_are_dropped() -> None:
    """They would be written past the end of the logits while `min_tokens` holds."""
    given = params(min_tokens=2, stop_token_ids=[5])
    made = params(min_tokens=2, stop_token_ids=[5])
    made.update_from_generation_config({"eos_token_id": [1, 3, 12]}, 12)
    check_tokens(
        SimpleNamespace(prompt_token_ids=[1], sampling_params=made), [given], VOCABULARY, end=12
    )
    assert made.all_stop_token_ids == {1, 5}
    assert sorted(made.stop_token_ids) == [1, 5]
    assert given.stop_token_ids == [5]


def test_spellings_of_bad_words_that_cannot_occur_are_dropped() -> None:
    made = request(words=[[4, 5], [3], [4, 12]])
    check_tokens(made, [], VOCABULARY, end=1)
    assert made.sampling_params.bad_words_token_ids == [[4, 5]]


def test_a_budget_of_thinking_writes_no_other_tokens() -> None:
    from vllm.exceptions import VLLMValidationError

    made = request(thinking_token_budget=5)
    check_tokens(made, [], VOCABULARY, end=1, end_of_thinking=[4, 5])
    check_tokens(request(), [], VOCABULARY, end=1, end_of_thinking=[4, 3])
    with pytest.raises(VLLMValidationError, match="thinking_token_budget has token 3"):
        check_tokens(made, [], VOCABULARY, end=1, end_of_thinking=[4, 3])


def test_structured_output_needs_an_end_that_can_be_drawn() -> None:
    from vllm.exceptions import VLLMValidationError
    from vllm.sampling_params import StructuredOutputsParams

    made = request(structured_outputs=StructuredOutputsParams(regex="a"), ignore_eos=True)
    check_tokens(made, [], VOCABULARY, end=1)
    check_tokens(made, [], VOCABULARY, end=None)
    with pytest.raises(VLLMValidationError, match="ends a text with token 12, which not all"):
        check_tokens(made, [], VOCABULARY, end=12)


def test_the_engines_own_vocabulary_counts() -> None:
    from vllm.exceptions import VLLMValidationError

    config = SimpleNamespace()
    processor = SimpleNamespace(
        model_config=SimpleNamespace(hf_config=config),
        vllm_config=SimpleNamespace(reasoning_config=None),
        renderer=SimpleNamespace(get_eos_token_id=lambda: 1),
    )
    check_made(processor, request(prompt=[3]), [])  # of no mixture
    VOCABULARY.write_into(config)
    spec = MixtureSpec(policies=(Policy(name="one", model="m"), Policy(name="two", model="n")))
    setattr(config, CONFIG_KEY, replace(spec, has_prompts=True).to_dict())
    check_made(processor, request(prompt=[4]), [])
    own = request(prompt=[4, 4])
    own.sampling_params.extra_args = wire.to_extra_args((0.5, 0.5), heads_M=[[4], [3]])
    with pytest.raises(VLLMValidationError, match="preference_prompts has token 3"):
        check_made(processor, own, [])
    setattr(config, CONFIG_KEY, spec.to_dict())
    with pytest.raises(VLLMValidationError, match="no prompts of their own"):
        check_made(processor, own, [])
    with pytest.raises(VLLMValidationError, match="prompt has token 3"):
        check_made(processor, request(prompt=[3]), [])

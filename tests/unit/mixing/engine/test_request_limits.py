"""A request is refused exactly if vLLM's V2 sampler would raise for it in the worker."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from prefmix.mixing.engine import request_limits
from prefmix.mixing.engine.request_limits import (
    check_all_requests,
    check_request,
    check_tokens,
)
from prefmix.mixing.vocabulary import CommonVocabulary

pytestmark = pytest.mark.usefixtures("vllm")

SIZES = (127, 128, 129, 1023, 1024, 1025, 5000)


def params(**fields: Any) -> Any:
    from vllm import SamplingParams

    words = fields.pop("words", None)
    made = SamplingParams(max_tokens=None, **fields)
    made._bad_words_token_ids = words
    return made


def raises_in_the_worker(made: Any) -> bool:
    """True if vLLM's own states refuse the parameters; their buffers are stand-ins."""
    from vllm.v1.worker.gpu.sample.bad_words import BadWordsState
    from vllm.v1.worker.gpu.sample.logit_bias import LogitBiasState
    from vllm.v1.worker.gpu.sample.states import SamplingStates

    class State:
        vocab_size = 100
        prompt_len_np = np.array([7])
        use_logit_bias = np.zeros(1, dtype=bool)
        seeds_set = np.zeros(1, dtype=bool)
        num_logprobs = np.zeros(1, dtype=np.int32)

        def __getattr__(self, name: str) -> Any:
            kinds = {"seeds": np.int64, "temperature": np.float32}
            numbers = np.zeros(1, dtype=kinds.get(name, np.int32))
            return SimpleNamespace(np=numbers, stage_write=lambda *_: None)

    for state in (LogitBiasState, BadWordsState, SamplingStates):
        try:
            state.add_request(State(), 0, made)
        except (ValueError, OverflowError):
            return True
    return False


def is_refused(made: Any) -> str | None:
    from vllm.exceptions import VLLMValidationError

    try:
        check_request(made, prompt_len=7)
    except VLLMValidationError as error:
        return error.parameter
    return None


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("field", "make"),
    [
        ("logit_bias", lambda size: {"logit_bias": dict.fromkeys(range(size), 1.0)}),
        ("allowed_token_ids", lambda size: {"allowed_token_ids": list(range(size))}),
        ("stop_token_ids", lambda size: {"stop_token_ids": list(range(size)), "min_tokens": 1}),
        ("stop_token_ids", lambda size: {"stop_token_ids": list(range(size))}),
        ("bad_words", lambda size: {"words": [[5]] * size}),
        ("bad_words", lambda size: {"words": [[5] * (size // 4)] * 4 + [[5] * (size % 4)]}),
    ],
)
def test_sizes_are_those_of_the_buffers(field: str, make: Any, size: int) -> None:
    made = params(**make(size))
    assert is_refused(made) == (field if raises_in_the_worker(made) else None)


@pytest.mark.parametrize(
    "fields",
    [
        *({"seed": seed} for seed in (0, -5, 2**63 - 1, 2**63, -(2**63), -(2**63) - 1, 2**64)),
        *({"min_tokens": count} for count in (1, 2**31 - 8, 2**31 - 7, 2**40)),
        *({"top_k": top_k} for top_k in (-1, 50, 2**31, 2**63 - 1)),
    ],
)
def test_numbers_are_those_of_the_buffers_types(fields: dict[str, int]) -> None:
    made = params(**fields)
    assert is_refused(made) == (next(iter(fields)) if raises_in_the_worker(made) else None)


def test_the_models_own_ends_of_text_count_as_well() -> None:
    made = params(stop_token_ids=list(range(128)), min_tokens=1)
    assert is_refused(made) is None
    made.update_from_generation_config({}, 900)
    assert raises_in_the_worker(made)
    assert is_refused(made) == "stop_token_ids"


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        ("logprobs", 1.5),
        ("prompt_logprobs", 2.0),
        ("max_tokens", 4.5),
        ("min_tokens", 0.5),
        ("allowed_token_ids", [5, 1.5]),
        ("allowed_token_ids", ["5"]),
        ("logprob_token_ids", [1.5]),
        ("logit_bias", {1.5: 1.0}),
        ("logit_bias", {5: "1"}),
    ],
)
def test_what_would_raise_in_a_step_is_refused(field: str, wrong: Any) -> None:
    from vllm import SamplingParams
    from vllm.exceptions import VLLMValidationError

    made = SamplingParams(**{"max_tokens": 9, field: wrong})
    with pytest.raises(VLLMValidationError, match=f"{field} .*expected (an )?integer") as refused:
        check_request(made)
    assert refused.value.parameter == field


def test_numbers_of_other_libraries_count() -> None:
    made = params(
        logprobs=np.int64(2), allowed_token_ids=[np.int32(5)], logit_bias={5: np.float32(1)}
    )
    assert is_refused(made) is None


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

    with pytest.raises(VLLMValidationError, match="12, 13, 14") as refused:
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


def test_every_made_request_is_checked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    class InputProcessor:
        model_config = SimpleNamespace(hf_config=None)

        def process_inputs(self, made: Any) -> Any:
            return SimpleNamespace(sampling_params=made, prompt_token_ids=[1, 2])

    checked: list[Any] = []
    module = ModuleType("requests are made here")
    module.InputProcessor = InputProcessor  # type: ignore[attr-defined]
    monkeypatch.setattr(request_limits, "_MODULE", module.__name__)
    monkeypatch.setattr(request_limits, "check_request", lambda *given: checked.append(given))
    check_all_requests()  # nobody makes requests in this process
    monkeypatch.setitem(sys.modules, module.__name__, module)
    check_all_requests()
    check_all_requests()
    InputProcessor().process_inputs("of text")
    InputProcessor().process_inputs(None)
    assert checked == [("of text", 2)]

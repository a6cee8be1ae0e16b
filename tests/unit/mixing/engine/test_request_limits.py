"""A request is refused exactly if vLLM's V2 sampler would raise for it in the worker."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from prefmix.mixing.engine import request_limits
from prefmix.mixing.engine.request_limits import check_all_requests, check_request

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


def test_every_made_request_is_checked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    class InputProcessor:
        model_config = SimpleNamespace(hf_config=None)

        def process_inputs(self, made: Any) -> Any:
            return SimpleNamespace(sampling_params=made, prompt_token_ids=[1, 2])

    checked: list[Any] = []
    module = ModuleType("requests are made here")
    module.InputProcessor = InputProcessor  # type: ignore[attr-defined]
    monkeypatch.setattr(request_limits, "REQUESTS_MODULE", module.__name__)
    monkeypatch.setattr(request_limits, "check_request", lambda *given: checked.append(given))
    check_all_requests()  # nobody makes requests in this process
    monkeypatch.setitem(sys.modules, module.__name__, module)
    check_all_requests()
    check_all_requests()
    InputProcessor().process_inputs("of text")
    InputProcessor().process_inputs(None)
    assert checked == [("of text", 2)]

"""Refuses requests that would raise in the engine's worker, which ends the engine for everyone.

The V2 runner copies a request's sampling parameters into buffers of fixed size and raises if they
do not fit, or if a number does not fit a buffer's type. vLLM checks some of these sizes in the
front process, but not all. Here the rest is checked, whichever runner the engine has, after vLLM
has added the model's own end-of-text tokens and made the bad words into tokens.
"""

from __future__ import annotations

import functools
import numbers
import sys
from typing import TYPE_CHECKING, Any

from prefmix.mixing.engine.grammar_limits import check_grammar
from prefmix.mixing.engine.request_tokens import check_made

if TYPE_CHECKING:
    from vllm.sampling_params import SamplingParams

MAX_LOGIT_BIAS = 1024
MAX_ALLOWED_TOKEN_IDS = 1024
MAX_STOP_TOKEN_IDS = 128
MAX_INT32 = 2**31 - 1

_INTEGERS = ("logprobs", "prompt_logprobs", "max_tokens", "min_tokens", "top_k")
_LISTS_OF_INTEGERS = ("stop_token_ids", "allowed_token_ids", "logprob_token_ids")

_PATCHED = "_prefmix_checks_requests"
REQUESTS_MODULE = "vllm.v1.engine.input_processor"


def check_request(params: SamplingParams, prompt_len: int = 0) -> None:
    """Checks the parameters of one request against the buffers of vLLM's V2 sampler.

    Args:
      params: as they go to the engine.
      prompt_len: number of the prompt's tokens.
    Raises: VLLMValidationError naming the field and the limit; over HTTP a 400.
    """
    from vllm import envs

    _refuse_above(MAX_LOGIT_BIAS, len(params.logit_bias or ()), "logit_bias", "tokens")
    _refuse_above(
        MAX_ALLOWED_TOKEN_IDS, len(params.allowed_token_ids or ()), "allowed_token_ids", "tokens"
    )
    if params.min_tokens > 0:
        _refuse_above(
            MAX_STOP_TOKEN_IDS,
            len(params.all_stop_token_ids),
            "stop_token_ids",
            "tokens, with the model's own, beside min_tokens",
        )
    words = params.bad_words_token_ids or ()
    _refuse_above(envs.VLLM_MAX_NUM_BAD_WORDS, len(words), "bad_words", "spellings")
    num_tokens = sum(map(len, words))
    _refuse_above(
        envs.VLLM_MAX_BAD_WORDS_TOTAL_TOKENS, num_tokens, "bad_words", "tokens in all spellings"
    )
    last_at = prompt_len + params.min_tokens
    _refuse_above(MAX_INT32, last_at, "min_tokens", "tokens with the prompt's")
    _check_types(params)
    seed = params.seed
    if seed is None:
        return
    if type(seed) is not int:  # torch takes no other integers, such as numpy's
        raise _error("seed", f"seed is {seed!r:.40}; expected an int of 64 bits")
    if not -(2**63) <= seed < 2**63:
        raise _error("seed", f"seed is {seed:.3g}; expected an integer of 64 bits")


def _check_types(params: SamplingParams) -> None:
    """Checks what vLLM would only find out in a step. HTTP has checked its bodies' types before."""
    for field in _INTEGERS:
        value = getattr(params, field, None)
        if value is not None and not isinstance(value, numbers.Integral):
            raise _error(field, f"{field} is {value!r:.40}; expected an integer")
    for field in _LISTS_OF_INTEGERS:
        for value in getattr(params, field, None) or ():
            if not isinstance(value, numbers.Integral):
                raise _error(field, f"{field} has {value!r:.40}; expected integers")
    for token, bias in (params.logit_bias or {}).items():
        if not isinstance(token, numbers.Integral) or not isinstance(bias, numbers.Real):
            message = f"logit_bias has {token!r:.40}: {bias!r:.40}; expected an integer: a number"
            raise _error("logit_bias", message)


def _refuse_above(limit: int, found: int, field: str, what: str) -> None:
    if found > limit:
        raise _error(field, f"{field} has {found} {what}; the engine takes at most {limit}")


def _error(field: str, message: str) -> Exception:
    from vllm.exceptions import VLLMValidationError

    return VLLMValidationError(message, parameter=field)


def check_all_requests() -> None:
    """Makes vLLM check each request before it is registered. May run repeatedly.

    Requests are made in processes that have loaded vLLM's module for it; elsewhere this does
    nothing.
    """
    module = sys.modules.get(REQUESTS_MODULE)
    if module is None or getattr(module.InputProcessor, _PATCHED, False):
        return
    _check_before_compiling()
    _name_the_constraint()
    original = module.InputProcessor.process_inputs

    @functools.wraps(original)
    def process_inputs(self: Any, *args: Any, **kwargs: Any) -> Any:
        for given in (*args, *kwargs.values()):
            if getattr(given, "structured_outputs", None) is not None:
                check_grammar(given)
        request = original(self, *args, **kwargs)
        if request.sampling_params is not None:
            check_request(request.sampling_params, len(request.prompt_token_ids or ()))
            check_made(self, request, (*args, *kwargs.values()))
        return request

    module.InputProcessor.process_inputs = process_inputs
    setattr(module.InputProcessor, _PATCHED, True)


def _check_before_compiling() -> None:
    """Makes vLLM check the size of a constraint wherever it compiles one to see whether it is good.

    It does so before a request is made as well: of structural tags while a body is validated, and
    of what comes beside tools.
    """
    from vllm.v1.structured_output import backend_xgrammar

    original = backend_xgrammar.validate_xgrammar_grammar
    if getattr(original, _PATCHED, False):
        return

    @functools.wraps(original)
    def validate(sampling_params: SamplingParams) -> None:
        check_grammar(sampling_params)
        original(sampling_params)

    setattr(validate, _PATCHED, True)
    backend_xgrammar.validate_xgrammar_grammar = validate


def _name_the_constraint() -> None:
    """Makes vLLM name the field if it refuses a constraint."""
    from vllm.exceptions import VLLMValidationError
    from vllm.sampling_params import SamplingParams

    original = SamplingParams._validate_structured_outputs
    if getattr(original, _PATCHED, False):
        return

    @functools.wraps(original)
    def validate(self: SamplingParams, *args: Any, **kwargs: Any) -> None:
        try:
            original(self, *args, **kwargs)
        except VLLMValidationError as error:
            error.parameter = error.parameter or "structured_outputs"
            raise

    setattr(validate, _PATCHED, True)
    SamplingParams._validate_structured_outputs = validate

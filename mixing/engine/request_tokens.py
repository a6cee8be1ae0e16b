"""Refuses requests that name tokens which not all policies of the mixture have.

Such a token has no row in some policy, or means another one to it. As an index into a policy's
embeddings or into the logits it would end the engine for everyone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Any

from prefmix.mixing import wire
from prefmix.mixing.prompts.request_checks import PromptsError, check_prompts
from prefmix.mixing.spec import CONFIG_KEY, MixtureSpec
from prefmix.mixing.vocabulary import CommonVocabulary

if TYPE_CHECKING:
    from vllm.v1.engine import EngineCoreRequest

_PROMPTS = "preference_prompts"
_FIELDS = ("logit_bias", "allowed_token_ids", "logprob_token_ids", "trace_decode_token_ids")
"""Fields of vLLM's SamplingParams that hold token ids."""


def check_made(processor: Any, request: EngineCoreRequest, given: Iterable[Any]) -> None:
    """Checks a request that vLLM's input processor has made, as `check_tokens` does.

    Args:
      processor: vllm.v1.engine.input_processor.InputProcessor.
    """
    config = processor.model_config.hf_config
    vocabulary = CommonVocabulary.of_config(config)
    if vocabulary is None:  # an engine of a plain model
        return
    params = request.sampling_params
    if params is not None and wire.heads_of(params.extra_args) is not None:
        try:
            own_prompts = check_prompts(request, MixtureSpec.from_dict(getattr(config, CONFIG_KEY)))
        except PromptsError as error:
            raise _error(_PROMPTS, str(error)) from None
        _refuse_tokens(_PROMPTS, own_prompts, vocabulary)
    thinking = processor.vllm_config.reasoning_config
    check_tokens(
        request,
        given,
        vocabulary,
        end=processor.renderer.get_eos_token_id(),
        end_of_thinking=getattr(thinking, "reasoning_end_token_ids", None) or (),
    )


def check_tokens(
    request: EngineCoreRequest,
    given: Iterable[Any],
    vocabulary: CommonVocabulary,
    *,
    end: int | None,
    end_of_thinking: Collection[int] = (),
) -> None:
    """Refuses a request that names tokens outside the common vocabulary, some of which have no row
    in some member. Drops the model's own end tokens and spellings of bad words among them: they
    cannot occur, and would be written past the logits' end.

    Args:
      request: as it goes to the engine; changed in place.
      given: what the request was made from; SamplingParams among it are as the client sent them.
      end: the tokenizer's end token, which ends every structured output.
      end_of_thinking: the tokens that the engine writes once `thinking_token_budget` is spent.
    Raises: VLLMValidationError naming the field and the tokens; over HTTP a 400.
    """
    _refuse_tokens("prompt", request.prompt_token_ids or (), vocabulary)
    params = request.sampling_params
    assert params is not None, "mixtures only generate"
    for field in _FIELDS:
        _refuse_tokens(field, getattr(params, field) or (), vocabulary)
    rows = params.prompt_logprob_token_ids
    for row in () if rows is None else rows:
        _refuse_tokens("prompt_logprob_token_ids", [i for i in row if i != -1], vocabulary)
    for each in given:
        _refuse_tokens("stop_token_ids", getattr(each, "stop_token_ids", None) or (), vocabulary)
    if lost := set(vocabulary.without(params.all_stop_token_ids)):
        params._all_stop_token_ids = params.all_stop_token_ids - lost
        params.stop_token_ids = [each for each in params.stop_token_ids or () if each not in lost]
    if params.bad_words_token_ids:
        params._bad_words_token_ids = [
            word for word in params.bad_words_token_ids if not vocabulary.without(word)
        ]
    if params.thinking_token_budget is not None:
        _refuse_tokens("thinking_token_budget", end_of_thinking, vocabulary)
    if params.structured_outputs is not None and end is not None and vocabulary.without([end]):
        raise _error(
            "structured_outputs",
            f"the tokenizer ends a text with token {end}, which not all policies have, so no "
            "structured output would end here; leave the constraint out",
        )


def _refuse_tokens(field: str, ids: Collection[int], vocabulary: CommonVocabulary) -> None:
    lost = list(dict.fromkeys(vocabulary.without(ids)))
    if lost:
        noun = "token" if len(lost) == 1 else "tokens"
        named = ", ".join(map(str, lost[:3])) + (", ..." if len(lost) > 3 else "")
        raise _error(
            field,
            f"{field} has {noun} {named}, which not all policies of the mixture have; allowed: the "
            f"{vocabulary.size} token ids that they have in common",
        )


def _error(field: str, message: str) -> Exception:
    from vllm.exceptions import VLLMValidationError

    return VLLMValidationError(message, parameter=field)

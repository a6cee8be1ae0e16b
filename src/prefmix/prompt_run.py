"""One call of vLLM with each prompt's own parameters; adds weights and figures to the outputs."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from prefmix.prompt_parameters import PromptParameters
from prefmix.server.api.attribution import FIELD, Attribution, describe
from prefmix.server.http.errors import RequestError
from prefmix.weights.engines.local import raise_if_failed
from prefmix.weights.engines.whole_steps import nothing_left_behind

if TYPE_CHECKING:
    from vllm import LLM, RequestOutput

MAX_ATTRIBUTED = 4096
"""Most prompts of a call with attribution: the engine keeps the figures of no more requests."""

_SAMPLE = re.compile(r"(\d+)_")
"""The start of the id of one of n > 1 completions (vLLM 0.32)."""


def run_prompts(
    llm: LLM,
    call: Callable[..., list[RequestOutput]],
    parameters: Sequence[PromptParameters],
    attribution: Attribution,
) -> list[RequestOutput]:
    """Runs all prompts, and notes on each output its weights, profile and attribution.

    Args:
      llm: vLLM's object.
      call: one of its methods, with all arguments but the sampling parameters.
      parameters: one for each prompt.
      attribution: the call's.
    Raises: RequestError for more attributed prompts than the engine remembers; EngineError if a
      policy computes NaN or infinity; vLLM's own errors.
    """
    if attribution.is_wanted:
        if len(parameters) > MAX_ATTRIBUTED:
            raise RequestError(
                f"{FIELD} was asked for {len(parameters)} prompts; a call answers it for up to "
                f"{MAX_ATTRIBUTED}, so make several",
                param=FIELD,
            )
        llm.collective_rpc("prefmix_start_statistics", args=(0,))
    with nothing_left_behind(llm):
        outputs = call(sampling_params=[each.sampling_params for each in parameters])
    raise_if_failed(outputs)
    for output, each in zip(outputs, parameters, strict=True):
        noted: Any = output
        noted.preference_weights = each.weights
        noted.preference_profile = each.resolution.profile
        noted.preference_mixing = each.resolution.mixing
        _attribute(llm, noted, each, by_token=attribution.by_token)
    return outputs


def _attribute(llm: LLM, output: Any, parameters: PromptParameters, *, by_token: bool) -> None:
    figures = _figures(llm, parameters.measured_as)
    for completion in output.outputs:
        rows = figures.get(completion.index)
        described = None if rows is None else describe(rows, parameters.weights, by_token=by_token)
        setattr(completion, FIELD, described)


def _figures(llm: LLM, key: str | None) -> dict[int, list[list[float]]]:
    """The figures of a prompt's tokens by completion; empty if the prompt was not measured."""
    if key is None:
        return {}
    answers = llm.collective_rpc("prefmix_take_request", args=(key,))
    # Ranks that do not gather logits answer nothing.
    found: dict[str, Any] = next((answer for answer in answers if answer), {})
    return {_completion_of(req_id): rows for req_id, rows in found.items()}


def _completion_of(req_id: str) -> int:
    match = _SAMPLE.match(req_id)
    return int(match[1]) if match else 0

"""One call of vLLM with each prompt's own parameters; adds weights and figures to the outputs."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from prefmix.prompt_parameters import PromptParameters
from prefmix.server.api.attribution import FIELD, Attribution, describe
from prefmix.server.api.candidates.answer import describe_pick, pick_group
from prefmix.server.api.candidates.wish import FIELD as CANDIDATES_FIELD
from prefmix.server.api.candidates.wish import Candidates
from prefmix.server.http.errors import RequestError
from prefmix.weights.engines.local import raise_if_failed
from prefmix.weights.engines.whole_steps import nothing_left_behind

if TYPE_CHECKING:
    from vllm import LLM, RequestOutput

MAX_MEASURED = 4096
"""Most prompts of a call with attribution or candidates: the engine keeps the figures of no more
requests."""

_SAMPLE = re.compile(r"(\d+)_")
"""The start of the id of one of n > 1 completions (vLLM 0.32)."""


def run_prompts(
    llm: LLM,
    call: Callable[..., list[RequestOutput]],
    parameters: Sequence[PromptParameters],
    attribution: Attribution,
    candidates: Candidates,
) -> list[RequestOutput]:
    """Runs all prompts, picks candidates, and notes on each output its weights, profile and
    attribution.

    Args:
      llm: vLLM's object.
      call: one of its methods, with all arguments but the sampling parameters.
      parameters: one for each prompt.
      attribution: the call's.
      candidates: the call's.
    Raises: RequestError for more measured prompts than the engine remembers; EngineError if a
      policy computes NaN or infinity; vLLM's own errors.
    """
    if attribution.is_measured:
        if len(parameters) > MAX_MEASURED:
            asked = FIELD if attribution.is_wanted else CANDIDATES_FIELD
            raise RequestError(
                f"{asked} was asked for {len(parameters)} prompts; a call answers it for up to "
                f"{MAX_MEASURED}, so make several",
                param=asked,
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
        figures = _figures(llm, each.measured_as)
        picks = _pick(noted, figures, each, candidates) if candidates.is_wanted else {}
        for completion in noted.outputs:
            rows, pick = figures.get(completion.index), picks.get(completion.index)
            described = None
            if attribution.is_wanted and rows is not None:
                described = describe(rows, each.weights, by_token=attribution.by_token)
                if pick is not None:
                    described["ess"] = pick["ess"]
            setattr(completion, FIELD, described)
            setattr(completion, CANDIDATES_FIELD, pick)
        if candidates.is_wanted:
            for index, completion in enumerate(noted.outputs):
                completion.index = index
    return outputs


def _pick(
    output: Any,
    figures: Mapping[int, list[list[float]]],
    parameters: PromptParameters,
    candidates: Candidates,
) -> dict[int, dict[str, Any]]:
    """Leaves one of the candidates of each completion, and describes it, by its index."""
    kept, picks = [], {}
    for start in range(0, len(output.outputs), candidates.number):
        group = output.outputs[start : start + candidates.number]
        # vLLM drops tokens after a stop string, which the engine may have measured.
        rows = [figures[each.index][: len(each.token_ids)] for each in group]
        picked = pick_group(
            rows, seed=parameters.sampling_params.seed, place=start // candidates.number
        )
        kept.append(group[picked.index])
        picks[kept[-1].index] = describe_pick(picked)
    output.outputs = kept
    return picks


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

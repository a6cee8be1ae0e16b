"""A call of vLLM adds weights and figures to its outputs; an interrupted call leaves nothing."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from prefmix.mixing.batch import statistics
from prefmix.mixing.wire import to_stop_reason
from prefmix.prompt_parameters import PromptParameters
from prefmix.prompt_run import MAX_MEASURED, run_prompts
from prefmix.server.api.attribution import Attribution, describe
from prefmix.server.api.candidates.wish import CandidateLimits, Candidates
from prefmix.server.api.resolve import Resolution
from prefmix.server.http.errors import RequestError
from prefmix.weights.engines.errors import EngineError

RESOLUTION = Resolution(
    weights=(0.25, 0.75),
    profile="kind",
    version=1,
    model="prefmix",
    member_names=("a", "b"),
    mixing="logits",
)
ROW = [0.0, 1.0, -0.5, 0.1, 0.2, -0.3, -0.6, 1.0, 0.0]
"""Figures of one token: log Z, entropy, log-probability, then KL, log-probability, agreement."""


class FakeLLM:
    """Answers RPC calls; remembers what is aborted."""

    def __init__(self, figures: dict[str, dict[str, list[list[float]]]] | None = None) -> None:
        self.figures = figures or {}
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.aborted: list[str] = []
        self.llm_engine = SimpleNamespace(
            output_processor=SimpleNamespace(request_states={"7-x": object()}),
            abort_request=lambda ids, internal: self.aborted.extend(ids),
            step=None,
            add_request=None,
        )

    def collective_rpc(self, method: str, args: tuple[Any, ...] = ()) -> list[Any]:
        self.calls.append((method, args))
        return [{}, self.figures.get(args[0], {})] if method == "prefmix_take_request" else [None]


def output(*stop_reasons: Any, finish_reason: str = "stop") -> Any:
    completions = [
        SimpleNamespace(index=index, finish_reason=finish_reason, stop_reason=reason, token_ids=[5])
        for index, reason in enumerate(stop_reasons)
    ]
    return SimpleNamespace(outputs=completions)


def bound(attribution: Attribution) -> PromptParameters:
    key = attribution.next_key() if attribution.is_measured else None
    params: Any = SimpleNamespace(seed=None)
    return PromptParameters(resolution=RESOLUTION, sampling_params=params, measured_as=key)


def run(
    llm: Any,
    call: Any,
    parameters: list[PromptParameters],
    wish: Attribution,
    candidates: int | None = None,
) -> list[Any]:
    return run_prompts(llm, call, parameters, wish, Candidates(candidates, CandidateLimits()))


def test_outputs_say_what_they_were_drawn_with() -> None:
    wish = Attribution(None)
    llm, parameters = FakeLLM(), [bound(wish)]
    answer = output(None)

    def call(*, sampling_params: list[Any]) -> list[Any]:
        assert sampling_params == [parameters[0].sampling_params]
        return [answer]

    assert run(llm, call, parameters, wish) == [answer]
    assert answer.preference_weights == {"a": 0.25, "b": 0.75}
    assert answer.preference_profile == "kind"
    assert answer.outputs[0].preference_attribution is None
    assert llm.calls == []


def test_attribution_finds_each_completion() -> None:
    """vLLM puts the number of a sample before the request's id, if there are several."""
    wish = Attribution("tokens")
    parameters = [bound(wish), bound(wish)]
    first, second = (str(each.measured_as) for each in parameters)
    llm = FakeLLM({first: {"0-ab": [ROW]}, second: {"1_1-cd": [ROW, ROW], "0_1-cd": [ROW]}})
    found = run(llm, lambda **_: [output(None), output(None, "x", None)], parameters, wish)
    weights = {"a": 0.25, "b": 0.75}
    assert [each.preference_attribution for each in (*found[0].outputs, *found[1].outputs)] == [
        describe([ROW], weights, by_token=True),
        describe([ROW], weights, by_token=True),
        describe([ROW, ROW], weights, by_token=True),
        None,
    ]
    assert llm.calls[0] == ("prefmix_start_statistics", (0,))


def test_a_stop_string_in_the_engines_words_is_no_failure() -> None:
    wish = Attribution(None)
    outputs = [output(to_stop_reason(["b"]))]
    assert run(FakeLLM(), lambda **_: outputs, [bound(wish)], wish) == outputs


def test_a_failed_policy_is_named() -> None:
    wish = Attribution(None)
    failed = [output(None), output(None, to_stop_reason(["b"]), finish_reason="error")]
    with pytest.raises(EngineError, match="b computed NaN or infinity"):
        run(FakeLLM(), lambda **_: failed, [bound(wish), bound(wish)], wish)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_requests_of_a_call_that_ends_early_are_taken_back(error: type[BaseException]) -> None:
    llm, wish = FakeLLM(), Attribution(None)

    def call(**_: Any) -> Any:
        raise error

    with pytest.raises(error):
        run(llm, call, [bound(wish)], wish)
    assert llm.aborted == ["7-x"]


def test_attribution_is_bounded_by_what_the_engine_keeps() -> None:
    assert MAX_MEASURED == statistics._MAX_REQUESTS
    wish = Attribution(True)
    parameters = [bound(wish)] * (MAX_MEASURED + 1)
    with pytest.raises(RequestError, match=f"a call answers it for up to {MAX_MEASURED}"):
        run(FakeLLM(), lambda **_: [], parameters, wish)


def test_one_candidate_of_each_completion_is_left() -> None:
    """A token that was measured after a completion's end does not count."""
    wish = Attribution(True, for_candidates=True)
    parameters = [bound(wish)]
    low, after = [-800.0, *ROW[1:]], [5000.0, *ROW[1:]]
    rows = {"0_1-a": [low, after], "1_1-a": [ROW], "2_1-a": [ROW], "3_1-a": [low]}
    llm = FakeLLM({str(parameters[0].measured_as): rows})
    (found,) = run(llm, lambda **_: [output(*"abcd")], parameters, wish, 2)
    assert [each.stop_reason for each in found.outputs] == ["b", "c"]
    assert [each.index for each in found.outputs] == [0, 1]
    for each in found.outputs:
        assert each.preference_candidates["num_candidates"] == 2
        assert each.preference_candidates["ess"] == each.preference_attribution["ess"] == 1


def test_candidates_without_attribution_are_measured_too() -> None:
    wish = Attribution(None, for_candidates=True)
    parameters = [bound(wish)]
    llm = FakeLLM({str(parameters[0].measured_as): {"0_1-a": [ROW], "1_1-a": [ROW]}})
    (found,) = run(llm, lambda **_: [output(None, None)], parameters, wish, 2)
    (only,) = found.outputs
    assert (only.preference_candidates["ess"], only.preference_attribution) == (2, None)
    assert llm.calls[0] == ("prefmix_start_statistics", (0,))
    with pytest.raises(RequestError, match="preference_candidates was asked for"):
        run(FakeLLM(), lambda **_: [], [bound(wish)] * (MAX_MEASURED + 1), wish, 2)

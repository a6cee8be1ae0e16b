"""Each prompt's weights and sampling parameters, from the arguments of one call."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from prefmix.mixing.spec import MixtureSpec, Policy
from prefmix.mixing.wire import MEASURE_KEY, MIXING_KEY, WEIGHTS_KEY
from prefmix.prompt_parameters import (
    PromptParameters,
    listed_conversations,
    listed_prompts,
    prompt_parameters,
)
from prefmix.server.api.attribution import Attribution
from prefmix.server.api.candidates.wish import CandidateLimits, Candidates
from prefmix.server.api.resolve import Preferences, resolve
from prefmix.server.http.errors import RequestError
from prefmix.weights.store.profiles import build_profile_set

SPEC = MixtureSpec(policies=tuple(Policy(name=name, model=f"org/{name}") for name in ("a", "b")))
PROFILES = build_profile_set({"even": {"a": 1, "b": 1}, "sly": {"b": 1}}, SPEC, default="even")

pytestmark = pytest.mark.usefixtures("vllm")


def parameters(
    num_prompts: int = 1, wish: object = None, candidates: object = None, **given: Any
) -> list[PromptParameters]:
    from vllm import SamplingParams

    return prompt_parameters(
        num_prompts,
        attribution=Attribution(wish, for_candidates=candidates is not None),
        candidates=Candidates(candidates, CandidateLimits()),
        profiles=PROFILES,
        default=lambda: SamplingParams(max_tokens=99),
        **{
            "sampling_params": None,
            "weights": None,
            "profile": None,
            "mixing": None,
            "spec": SPEC,
            **given,
        },
    )


def carried(found: list[PromptParameters]) -> list[Any]:
    """The vector that goes to the engine, for each prompt."""
    return [each.sampling_params.extra_args[WEIGHTS_KEY] for each in found]


def test_once_for_all_or_once_for_each() -> None:
    assert carried(parameters(2)) == [[0.5, 0.5]] * 2
    assert carried(parameters(2, weights={"a": 3, "b": 1})) == [[0.75, 0.25]] * 2
    assert carried(parameters(2, weights=[{"a": 1}, None])) == [[1, 0], [0.5, 0.5]]
    mixed = parameters(3, weights=[{"a": 1}, None, None], profile=(None, "sly", None))
    assert [each.resolution.profile for each in mixed] == ["custom", "sly", "even"]
    assert [each.weights for each in mixed[:2]] == [{"a": 1, "b": 0}, {"a": 0, "b": 1}]
    assert parameters(0) == []


def test_each_prompt_may_have_its_own_way_to_mix() -> None:
    trunk = dataclasses.replace(SPEC, base="org/base")
    found = parameters(3, spec=trunk, mixing=["parameters", None, "logits"])
    ways = [each.sampling_params.extra_args[MIXING_KEY] for each in found]
    assert ways == [each.resolution.mixing for each in found] == ["parameters", "logits", "logits"]
    with pytest.raises(RequestError, match=r"prompt 1: preference_mixing: 'sum' is no way to mix"):
        parameters(2, spec=trunk, mixing=["logits", "sum"])
    with pytest.raises(RequestError, match="cannot be measured where parameters are mixed"):
        parameters(wish=True, spec=trunk, mixing="parameters")


class Column(Sequence[Any]):
    """A column of a table, which makes its values anew at every look."""

    def __init__(self, *values: Any) -> None:
        self._values = values

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, index: Any) -> Any:
        return copy.deepcopy(self._values[index])


def test_columns_are_lists() -> None:
    found = parameters(
        3,
        sampling_params=Column(*({"max_tokens": number} for number in (1, 2, 3))),
        weights=Column({"a": 1}, {"b": 1}, None),
    )
    assert [each.sampling_params.max_tokens for each in found] == [1, 2, 3]
    assert carried(found) == [[1, 0], [0, 1], [0.5, 0.5]]


def test_sampling_parameters_are_copied_and_filled() -> None:
    from vllm import SamplingParams

    own = SamplingParams(max_tokens=3, extra_args={"mine": [1], MEASURE_KEY: "another's"})
    found = parameters(3, sampling_params=[own, {"max_tokens": 4}, None], weights={"b": 1})
    assert own.extra_args == {"mine": [1], MEASURE_KEY: "another's"}
    assert [each.sampling_params.max_tokens for each in found] == [3, 4, 99]
    assert found[0].sampling_params.extra_args == {
        "mine": [1],
        WEIGHTS_KEY: [0, 1],
        MIXING_KEY: "logits",
    }
    shared = parameters(2, sampling_params=own, weights=[{"a": 1}, {"b": 1}])
    assert carried(shared) == [[1, 0], [0, 1]], "prompts that share an object share no weights"


def test_attribution_gives_every_prompt_a_key() -> None:
    found = parameters(3, True)
    keys = [each.sampling_params.extra_args[MEASURE_KEY] for each in found]
    assert len(set(keys)) == 3
    assert keys == [each.measured_as for each in found]
    assert parameters()[0].measured_as is None


def test_numbers_of_other_libraries_count() -> None:
    weights = {"a": np.float32(3), "b": Fraction(1)}
    assert carried(parameters(weights=weights)) == [[0.75, 0.25]]


@pytest.mark.parametrize(
    "given",
    [
        {"weights": {"c": 1}},
        {"weights": {"a": True}},
        {"weights": {"a": "1"}},
        {"weights": {"a": -1}},
        {"weights": {}},
        {"weights": 0.5},
        {"profile": "none"},
        {"profile": 3},
        {"weights": {"a": 1}, "profile": "sly"},
    ],
)
def test_refusals_are_the_servers(given: dict[str, Any]) -> None:
    with pytest.raises(RequestError) as here:
        parameters(2, **given)
    with pytest.raises(RequestError) as there:
        resolve(Preferences(**given), spec=SPEC, profiles=PROFILES, model_names=("prefmix",))
    assert str(here.value) == str(there.value)
    assert here.value.param == there.value.param
    each = {name: [None, value] for name, value in given.items()}
    with pytest.raises(RequestError, match=r"^prompt 1: ") as second:
        parameters(2, **each)
    assert str(second.value) == f"prompt 1: {there.value}"


def test_weights_in_the_sampling_parameters_are_one_way_too_many() -> None:
    own = {"extra_args": {WEIGHTS_KEY: [0.25, 0.75]}}
    assert carried(parameters(sampling_params=own)) == [[0.25, 0.75]]
    with pytest.raises(RequestError, match="were both given"):
        parameters(sampling_params=own, weights={"a": 1})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"weights": [{"a": 1}]}, "weights has 1 entries, for 2 prompts; give one for all"),
        ({"profile": ["sly"] * 3}, "profile has 3 entries, for 2 prompts"),
        ({"sampling_params": []}, "sampling_params has 0 entries, for 2 prompts"),
        ({"sampling_params": "greedy"}, "sampling_params is 'greedy'; expected vllm.Samp"),
        ({"sampling_params": {"max_token": 1}}, "sampling_params: .*max_token"),
    ],
)
def test_what_fits_no_prompt_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        parameters(2, **given)


@pytest.mark.parametrize(
    ("listed", "given", "message"),
    [
        (listed_prompts, None, "prompts is None; expected a string, token ids"),
        (listed_prompts, 5, "prompts is 5"),
        (listed_prompts, ["a", None], r"prompts\[1\] is None"),
        (listed_prompts, [1, 2.5], r"prompts\[1\] is 2.5"),
        (listed_conversations, "hi", "messages is 'hi'; expected a conversation"),
        (listed_conversations, None, "messages is None"),
        (listed_conversations, {"role": "user", "content": "a"}, "messages is {'role'"),
        (listed_conversations, ["hi"], r"messages\[0\] is 'hi'"),
        (listed_conversations, [5], r"messages\[0\] is 5"),
    ],
)
def test_what_is_no_prompt_and_no_conversation_is_named(
    listed: Any, given: Any, message: str
) -> None:
    with pytest.raises(RequestError, match=message) as refused:
        listed(given)
    assert len(str(refused.value)) < 300


def test_iterators_become_lists() -> None:
    turn = {"role": "user", "content": "a"}
    assert listed_prompts(iter(["a", "b"])) == ["a", "b"]
    assert listed_conversations(iter([turn])) == [turn]
    for given in ("a", ["a"], [1, 2], [[1], [2]], {"prompt": "a"}, [{"prompt": "a"}], [], b"a"):
        assert listed_prompts(given) is given
    for given in ([turn], [[turn], [turn]], []):
        assert listed_conversations(given) is given


def test_candidates_multiply_the_answers_and_are_measured(vllm: Any) -> None:
    given = vllm(n=2, seed=4)
    first, second = parameters(2, candidates=3, sampling_params=given)
    assert (first.sampling_params.n, second.sampling_params.n, given.n) == (6, 6, 2)
    assert first.measured_as != second.measured_as
    assert first.sampling_params.extra_args[MEASURE_KEY] == first.measured_as


def test_candidates_that_are_not_defined_are_refused_by_prompt(vllm: Any) -> None:
    with pytest.raises(RequestError, match=r"^temperature is 0.5, from the request"):
        parameters(candidates=2, sampling_params=vllm(temperature=0.5))
    with pytest.raises(RequestError, match=r"^prompt 1: temperature is 0.5") as caught:
        parameters(2, candidates=2, sampling_params=[vllm(), vllm(temperature=0.5)])
    assert caught.value.param == "temperature"
    trunk = dataclasses.replace(SPEC, base="org/base")
    with pytest.raises(RequestError, match="needs the policies' own predictions"):
        parameters(candidates=2, spec=trunk, mixing="parameters")

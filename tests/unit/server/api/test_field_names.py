"""Misspelt names of our fields are refused with the right one; other names pass and are listed."""

from __future__ import annotations

import pytest

from prefmix.server.api.field_names import OWN_FIELDS, check_names
from prefmix.server.http.errors import RequestError
from prefmix.server.http.request_json import read_json

KNOWN = {"model", "prompt", "vllm_xargs", "stop", *OWN_FIELDS}


@pytest.mark.parametrize(
    ("body", "param", "meant"),
    [
        ({"preference_weight": {"a": 1}}, "preference_weight", "preference_weights?"),
        ({"preference_weigths": {"a": 1}}, "preference_weigths", "preference_weights?"),
        ({"preferenceWeights": {"a": 1}}, "preferenceWeights", "preference_weights?"),
        ({"preference-profile": "x"}, "preference-profile", "preference_profile?"),
        ({"PREFERENCE_PROFILE": "x"}, "PREFERENCE_PROFILE", "preference_profile?"),
        ({"reference_profile": "x"}, "reference_profile", "preference_profile?"),
        ({"perference_profile": "x"}, "perference_profile", "preference_profile?"),
        ({"preference_attributions": True}, "preference_attributions", "preference_attribution?"),
        ({"preferance_wieghts": {"a": 1}}, "preferance_wieghts", "preference_weights?"),
        ({"preferences": {"a": 1}}, "preferences", "preference_"),
        ({"prefmix_weights": [1, 0]}, "prefmix_weights", "preference_weights?"),
        ({"profile": "x"}, "profile", "preference_profile?"),
        ({"weights": {"a": 1}}, "weights", "preference_weights?"),
        (
            {"extra_body": {"preference_profile": "x"}},
            "extra_body.preference_profile",
            "preference_profile at the top level of the body?",
        ),
        ({"extra_body": {"preferenceWeights": {}}}, "extra_body.preferenceWeights", "top level"),
        ({"xargs": {"prefmix_weights": [1]}}, "xargs.prefmix_weights", "vllm_xargs.prefmix_weig"),
        (
            {"vllm_xargs": {"prefmix_weight": [1]}},
            "vllm_xargs.prefmix_weight",
            "vllm_xargs.prefmix_weights?",
        ),
        ({"vllm_xargs": {"prefmix_measure": "x"}}, "vllm_xargs.prefmix_measure", "prefmix_"),
        (
            {"vllm_xargs": {"preference_profile": "x"}},
            "vllm_xargs.preference_profile",
            "preference_profile at the top level of the body?",
        ),
    ],
)
def test_a_misspelt_field_is_refused(body: dict[str, object], param: str, meant: str) -> None:
    with pytest.raises(RequestError) as caught:
        check_names(body, KNOWN)
    assert caught.value.param == param
    assert f"{param} is not a field of this server; did you mean " in str(caught.value)
    assert meant in str(caught.value)


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": "x", "preference_profile": "x", "vllm_xargs": {"prefmix_weights": [1]}},
        {"vllm_xargs": {"own": 1, "profile": "x"}},
        {"prompt": {"preference_weight": 1}},
    ],
)
def test_right_names_pass(body: dict[str, object]) -> None:
    assert check_names(body, KNOWN) is None


def test_a_field_that_is_null_asks_for_nothing() -> None:
    assert check_names({"model": "m", "profile": None, "weights": None}, KNOWN) is None


def test_other_names_pass_and_are_listed_safely() -> None:
    assert check_names({"store": True, "metadata": {"preference_weight": "x"}}, KNOWN) == (
        "store, metadata"
    )
    assert check_names({"a\r\nset-cookie: b": 1, "é": 1}, KNOWN) == "a??set-cookie??b, ?"
    names = check_names({f"x{number:050}": 1 for number in range(20)}, KNOWN)
    assert names is not None
    assert names.endswith(", and 12 more")
    assert len(names) < 400


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ('{"preference_profile": "a", "preference_profile": "b"}', "preference_profile"),
        ('{"model": "m@a", "model": "m"}', "model"),
        ('{"vllm_xargs": {"prefmix_weights": [1]}, "vllm_xargs": {}}', "vllm_xargs"),
        ('{"vllm_xargs": {"prefmix_weights": [1], "prefmix_weights": [0]}}', "vllm_xargs"),
        ('{"preference_weights": {"a": 1, "b": 1, "a": 2}}', "preference_weights"),
    ],
)
def test_a_field_that_decides_the_weights_comes_once(body: str, param: str) -> None:
    with pytest.raises(RequestError, match="more than once") as caught:
        check_names(read_json(body.encode()), KNOWN)
    assert caught.value.param == param


def test_other_fields_may_come_twice_as_with_vllm() -> None:
    assert check_names(read_json(b'{"stop": "a", "stop": "b"}'), KNOWN) is None
    assert check_names(read_json(b'{"vllm_xargs": {"own": 1, "own": 2}}'), KNOWN) is None


def test_no_field_of_vllm_or_openai_resembles_ours() -> None:
    others = (
        *("presence_penalty", "previous_response_id", "prompt_logprobs", "prediction", "priority"),
        *("prompt_cache_key", "safety_identifier", "reasoning_effort", "web_search_options", "n"),
    )
    assert check_names({key: {"preset": 1, "reference": 1} for key in others}, KNOWN) is not None

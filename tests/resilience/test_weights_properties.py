"""A request's weights are resolved or properly refused, whatever the input."""

from __future__ import annotations

import json
import math
from http import HTTPStatus
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Gauge, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from prefmix.mixing.shown_value import shown
from prefmix.mixing.simplex import WeightsError, check_weights, weights_from_preferences
from prefmix.mixing.spec import MixtureSpec, Policy
from prefmix.mixing.wire import WEIGHTS_KEY, from_extra_args, measured_as, to_extra_args
from prefmix.server.api.answer_headers import WEIGHTS_HEADER, answer_headers
from prefmix.server.api.resolve import Preferences, resolve
from prefmix.server.http.errors import RequestError, UnknownModelError, error_response
from prefmix.server.telemetry.metrics import REASONS
from prefmix.weights.store.profiles import build_profile_set
from resilience.harness import tally
from resilience.harness.attempt import attempt
from resilience.inputs.strategies import (
    MEMBERS,
    PROFILES,
    any_json,
    any_text,
    json_objects,
    names,
    nearly,
    numbers,
    scalars,
    specs,
    valid_ratios,
)

SPEC = MixtureSpec(
    policies=tuple(Policy(name=name, model="m") for name in MEMBERS[:3]),
    reference=Policy(name=MEMBERS[3], model="m"),
)
SET = build_profile_set(
    {
        "even": dict.fromkeys(MEMBERS[:3], 1),
        "solo": {"polite": 1},
        "short-and-kind": {"concise": 2},
    },
    SPEC,
    default="even",
)


def assert_weights(weights_M: tuple[float, ...], *, spec: MixtureSpec) -> None:
    assert len(weights_M) == spec.num_members
    assert all(type(weight) is float and math.isfinite(weight) for weight in weights_M)
    assert math.fsum(weights_M) == pytest.approx(1, abs=1e-9)
    if spec.weight_space == "simplex":
        assert min(weights_M) >= 0


def assert_refusal(error: WeightsError | RequestError) -> None:
    assert 0 < len(str(error)) < 1500
    assert error.reason is None or error.reason in REASONS
    if isinstance(error, RequestError):
        assert error.status == (404 if isinstance(error, UnknownModelError) else 400)
        assert json.loads(bytes(error.response().body))["error"]["message"]


def assert_either(
    weights_M: tuple[float, ...] | None, refusal: WeightsError | None, *, spec: MixtureSpec
) -> None:
    if refusal is None:
        assert weights_M is not None
        assert_weights(weights_M, spec=spec)
    else:
        assert_refusal(refusal)


@given(spec=specs(), data=st.data())
def test_any_preferences_are_a_point_of_the_space_or_a_refusal(
    spec: MixtureSpec, data: st.DataObject
) -> None:
    preferences = data.draw(nearly(spec.member_names))
    tally.hostile("weights")
    weights_M, refusal = attempt(lambda: weights_from_preferences(preferences, spec), WeightsError)
    assert_either(weights_M, refusal, spec=spec)


@given(weights=st.one_of(any_json, st.lists(numbers, max_size=6)), spec=specs())
def test_any_vector_at_the_engines_door_is_a_point_of_the_space_or_a_refusal(
    weights: Any, spec: MixtureSpec
) -> None:
    tally.hostile("weights")
    checked_M, refusal = attempt(
        lambda: check_weights(
            weights, num_members=spec.num_members, weight_space=spec.weight_space
        ),
        WeightsError,
    )
    assert_either(checked_M, refusal, spec=spec)


@given(spec=specs("simplex"), factor=st.floats(1e-6, 1e6), data=st.data())
def test_only_ratios_matter(spec: MixtureSpec, factor: float, data: st.DataObject) -> None:
    """weights(c * r) = weights(r), in the order of the ratios; unnamed members get exactly 0."""
    ratios = data.draw(valid_ratios(spec.member_names))
    ratios = {
        name: value if value == 0 else min(max(value, 1e-200), 1e200)
        for name, value in ratios.items()
    }
    once_M = weights_from_preferences(ratios, spec)
    scaled_M = weights_from_preferences({k: v * factor for k, v in ratios.items()}, spec)
    assert scaled_M == pytest.approx(once_M, rel=1e-9, abs=1e-12)
    by_name = dict(zip(spec.member_names, once_M, strict=True))
    assert all(by_name[name] == 0 for name in spec.member_names if not ratios.get(name))
    ordered = sorted(ratios, key=lambda name: ratios[name])
    assert [by_name[name] for name in ordered] == sorted(by_name[name] for name in ordered)


@given(spec=specs("simplex"), data=st.data())
def test_what_one_door_lets_out_the_other_lets_in(spec: MixtureSpec, data: st.DataObject) -> None:
    """Resolved weights that cross the wire as JSON pass the engine's check unchanged."""
    weights_M = weights_from_preferences(data.draw(valid_ratios(spec.member_names)), spec)
    arrived = from_extra_args(json.loads(json.dumps(to_extra_args(weights_M))))
    assert arrived == list(weights_M)
    checked_M = check_weights(arrived, num_members=spec.num_members, weight_space=spec.weight_space)
    assert checked_M == pytest.approx(weights_M, abs=1e-12)


@given(spec=specs("affine"), data=st.data())
def test_the_reference_takes_what_affine_weights_leave(
    spec: MixtureSpec, data: st.DataObject
) -> None:
    chosen = data.draw(
        st.dictionaries(st.sampled_from(spec.policy_names), st.floats(-5, 5), min_size=1)
    )
    assume(spec.reference is not None)
    weights_M = weights_from_preferences(chosen, spec)
    assert weights_M[-1] == pytest.approx(1 - math.fsum(chosen.values()), abs=1e-9)


@given(extra=st.one_of(st.none(), json_objects))
def test_the_wire_reads_any_extra_arguments(extra: dict[str, Any] | None) -> None:
    assert from_extra_args(extra) == (None if extra is None else extra.get(WEIGHTS_KEY))
    assert measured_as(extra) is None or isinstance(measured_as(extra), str)


requests = st.builds(
    Preferences,
    model=st.one_of(
        st.none(),
        any_text,
        st.sampled_from(["demo", "demo@even", "demo@", "@even", "demo@@even", "demo@custom"]),
    ),
    weights=st.one_of(st.none(), nearly(MEMBERS)),
    profile=st.one_of(st.none(), st.sampled_from(PROFILES), scalars),
    extra_args=st.one_of(
        st.none(),
        json_objects,
        st.fixed_dictionaries({WEIGHTS_KEY: st.one_of(any_json, st.lists(numbers, max_size=5))}),
    ),
)


def resolved(preferences: Preferences) -> Any:
    return resolve(preferences, spec=SPEC, profiles=SET, model_names=("demo", "alias"))


@given(preferences=requests)
def test_any_request_gets_weights_of_the_set_in_force_or_a_refusal(
    preferences: Preferences,
) -> None:
    tally.hostile("requests to resolve")
    resolution, refusal = attempt(lambda: resolved(preferences), RequestError)
    if refusal is not None:
        assert_refusal(refusal)
        return
    assert_weights(resolution.weights, spec=SPEC)
    assert resolution.version == SET.version
    if resolution.profile != "custom":
        assert resolution.weights == SET.profiles[resolution.profile]
    for name, value in answer_headers(resolution, "r").items():
        assert value.isascii()
        assert value.isprintable(), name
    shown = [pair.split("=") for pair in answer_headers(resolution, "r")[WEIGHTS_HEADER].split(",")]
    assert [name for name, _ in shown] == list(MEMBERS)
    assert [float(value) for _, value in shown] == pytest.approx(resolution.weights, abs=1e-8)


@given(profile=st.sampled_from(PROFILES))
def test_a_profile_means_the_same_by_every_name(profile: str) -> None:
    ways = [
        Preferences(profile=profile),
        Preferences(model=f"demo@{profile}"),
        Preferences(model="alias", profile=profile),
        Preferences(extra_args={WEIGHTS_KEY: list(SET.profiles[profile])}),
    ]
    assert len({resolved(way).weights for way in ways}) == 1


@given(message=any_text, param=st.one_of(st.none(), any_text), value=any_json)
def test_every_refusal_can_be_sent(message: str, param: str | None, value: Any) -> None:
    """A message may repeat any client's text: it is valid UTF-8, valid JSON and OpenAI's shape."""
    tally.hostile("error messages")
    response = error_response(
        f"{message} {shown(value)}", status=HTTPStatus.BAD_REQUEST, param=param
    )
    body = json.loads(bytes(response.body).decode())
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert len(shown(value)) < 120


@given(name=names)
def test_names_need_no_escape_where_they_travel(name: str) -> None:
    """A policy's or profile's name is safe in a header, a label of a metric and NAME@PROFILE."""
    assert name.isascii()
    assert not set(name) & set('"\\\n\r{},=@ ')


@given(chosen=st.lists(names, min_size=1, max_size=4, unique=True))
def test_metrics_survive_any_names(chosen: list[str]) -> None:
    """Exposed metrics read back with the labels that were set."""
    registry = CollectorRegistry()
    gauge = Gauge("prefmix_profile_weight", "text", ["profile"], registry=registry)
    for name in chosen:
        gauge.labels(name).set(1)
    (family,) = text_string_to_metric_families(generate_latest(registry).decode())
    assert [sample.labels["profile"] for sample in family.samples] == chosen

"""The fields of a request are resolved to its weights."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import Any

import pytest

from prefmix.mixing.spec import MixtureSpec, Policy
from prefmix.mixing.wire import MIXING_KEY, WEIGHTS_KEY
from prefmix.server.api.answer_headers import answer_headers
from prefmix.server.api.resolve import Preferences, Resolution, resolve
from prefmix.server.http.errors import RequestError, UnknownModelError
from prefmix.weights.store import edits
from prefmix.weights.store.added import AddedPolicy
from prefmix.weights.store.profiles import build_profile_set

NAMES = ("helpful", "harmless", "honest")
SPEC = MixtureSpec(policies=tuple(Policy(name=name, model=f"org/{name}") for name in NAMES))
PROFILES = build_profile_set(
    {"balanced": dict.fromkeys(NAMES, 1), "safe": {"harmless": 3, "honest": 1}},
    SPEC,
    default="balanced",
    version=7,
)


def resolved(**fields: Any) -> Resolution:
    return resolve(
        Preferences(**fields), spec=SPEC, profiles=PROFILES, model_names=("prefmix", "alias")
    )


def refusal(**fields: Any) -> RequestError:
    with pytest.raises(RequestError) as caught:
        resolved(**fields)
    return caught.value


def test_weight_without_a_kv_cache_needs_parameters_to_be_mixed() -> None:
    base = MixtureSpec(policies=SPEC.policies, base="org/base")
    spec = replace(base, policies=base.policies[:2])
    without = AddedPolicy(adapter="honest", sha256="0" * 64, kv_cache=False)
    profiles = edits.with_policy(build_profile_set({}, spec), "honest", without, spec=spec)
    profiles = edits.with_profile(
        profiles, "mean", {"helpful": 1, "honest": 1}, spec=spec, mixing="parameters"
    )

    def ask(**fields: Any) -> Resolution:
        return resolve(
            Preferences(**fields), spec=base, profiles=profiles, model_names=("prefmix",)
        )

    named: list[dict[str, Any]] = [
        {"weights": {"helpful": 1, "honest": 1}},
        {"extra_args": {WEIGHTS_KEY: [0.5, 0, 0.5]}},
        {"profile": "mean", "mixing": "logits"},
    ]
    for fields in named:
        with pytest.raises(RequestError, match=r"policy 'honest' has weight, but .* no logits"):
            ask(**fields)
        assert ask(**{**fields, "mixing": "parameters"}).weights == (0.5, 0.0, 0.5)
    assert ask(profile="mean").mixing == "parameters"
    assert ask(weights={"helpful": 1}).mixing == "logits"
    assert ask().mixing == "logits"


def test_nothing_named_means_the_default_profile() -> None:
    resolution = resolved()
    assert resolution.profile == "balanced"
    assert resolution.weights == pytest.approx((1 / 3, 1 / 3, 1 / 3))
    assert (resolution.model, resolution.version) == ("prefmix", 7)


@pytest.mark.parametrize(
    "fields",
    [
        {"profile": "safe"},
        {"model": "prefmix@safe"},
        {"model": "alias@safe"},
        {"model": "alias", "profile": "safe"},
    ],
)
def test_every_way_to_name_a_profile_gives_its_weights(fields: dict[str, Any]) -> None:
    resolution = resolved(**fields)
    assert resolution.profile == "safe"
    assert resolution.weights == (0.0, 0.75, 0.25)
    assert resolution.model == fields.get("model", "prefmix").split("@")[0]


@pytest.mark.parametrize(
    "fields",
    [{"weights": {"honest": 2.5}}, {"extra_args": {WEIGHTS_KEY: [0, 0, 1], "other": "x"}}],
)
def test_own_weights_are_reported_as_custom(fields: dict[str, Any]) -> None:
    resolution = resolved(**fields)
    assert (resolution.profile, resolution.weights) == ("custom", (0.0, 0.0, 1.0))


def test_own_weights_may_go_with_a_plain_model_name() -> None:
    assert resolved(model="alias", weights={"honest": 1}).weights == (0.0, 0.0, 1.0)


def test_other_extra_arguments_are_left_alone() -> None:
    assert resolved(extra_args={"other": [1, 2]}).profile == "balanced"


@pytest.mark.parametrize("seed", range(20))
def test_ratios_of_any_size_become_a_point_of_the_simplex(seed: int) -> None:
    generator = random.Random(seed)
    ratios = {name: 10 ** generator.uniform(-300, 300) for name in NAMES}
    weights = resolved(weights=ratios).weights
    assert all(weight >= 0 for weight in weights)
    assert math.fsum(weights) == pytest.approx(1, abs=1e-12)


WAYS: dict[str, dict[str, Any]] = {
    "preference_weights": {"weights": {"honest": 1}},
    "preference_profile": {"profile": "safe"},
    "model": {"model": "prefmix@safe"},
    "vllm_xargs": {"extra_args": {WEIGHTS_KEY: [0, 0, 1]}},
}


@pytest.mark.parametrize("first", WAYS)
@pytest.mark.parametrize("second", WAYS)
def test_two_ways_at_once_are_refused(first: str, second: str) -> None:
    if first == second:
        assert resolved(**WAYS[first])
        return
    error = refusal(**WAYS[first], **WAYS[second])
    assert error.status == 400
    assert first in str(error)
    assert second in str(error)


@pytest.mark.parametrize(
    "weights", [{}, {"honest": 0}, {"other": 1}, {"honest": "1"}, [1, 0, 0], 0]
)
def test_bad_weights_name_their_field(weights: object) -> None:
    error = refusal(weights=weights)
    assert (error.status, error.param) == (400, "preference_weights")
    assert str(error).startswith("preference_weights: ")


@pytest.mark.parametrize("raw", [[1, 0], [math.nan, 0, 1], [2, 0, 0], ["1", 0, 0], "abc", 1])
def test_bad_raw_weights_name_their_field(raw: object) -> None:
    error = refusal(extra_args={WEIGHTS_KEY: raw})
    assert (error.status, error.param) == (400, "vllm_xargs")
    assert f"vllm_xargs.{WEIGHTS_KEY}" in str(error)


@pytest.mark.parametrize("profile", ["nope", "", "safe ", 3, ["safe"], {"safe": 1}, True])
def test_unknown_profile_lists_those_that_exist(profile: object) -> None:
    error = refusal(profile=profile)
    assert (error.status, error.param) == (400, "preference_profile")
    assert "balanced, safe" in str(error)


@pytest.mark.parametrize(
    "model", ["gpt-4", "@safe", "gpt@safe", "prefmix@", "prefmix@nope", "prefmix@safe@safe"]
)
def test_unknown_model_lists_those_that_exist(model: str) -> None:
    error = refusal(model=model)
    assert isinstance(error, UnknownModelError)
    assert (error.status, error.param) == (404, "model")
    assert "prefmix" in str(error)
    assert "balanced, safe" in str(error)


def test_a_model_without_a_profile_behind_the_at_says_so() -> None:
    assert "'prefmix@' has no profile behind the '@'; write prefmix for" in str(
        refusal(model="prefmix@")
    )


def test_huge_names_do_not_fill_the_answer() -> None:
    assert len(str(refusal(model="m" * 100_000))) < 500
    assert len(str(refusal(profile="p" * 100_000))) < 500
    assert len(str(refusal(weights={"w" * 100_000: 1}))) < 500


@pytest.mark.parametrize("seed", range(20))
def test_header_holds_more_digits_than_the_engine_does(seed: int) -> None:
    generator = random.Random(seed)
    resolution = resolved(weights={name: generator.random() for name in NAMES})
    pairs = [
        item.split("=") for item in answer_headers(resolution, "r")["x-prefmix-weights"].split(",")
    ]
    assert [name for name, _ in pairs] == list(NAMES)
    float32_step = 2.0**-24
    for (_, written), weight in zip(pairs, resolution.weights, strict=True):
        assert abs(float(written) - weight) < weight * float32_step / 10


def test_headers_are_compact() -> None:
    assert answer_headers(resolved(weights={"helpful": 1, "harmless": 1}), "r") == {
        "x-prefmix-profile": "custom",
        "x-prefmix-weights": "helpful=0.5,harmless=0.5,honest=0",
        "x-prefmix-weights-version": "7",
        "x-prefmix-mixing": "logits",
        "x-request-id": "r",
    }


def test_affine_weights_leave_the_rest_to_the_reference() -> None:
    spec = MixtureSpec(
        policies=SPEC.policies,
        reference=Policy(name="base", model="org/base"),
        weight_space="affine",
    )
    resolution = resolve(
        Preferences(weights={"helpful": 1.5, "harmless": -1}),
        spec=spec,
        profiles=build_profile_set({}, spec),
        model_names=("m",),
    )
    assert resolution.weights == (1.5, -1.0, 0.0, 0.5)


TRUNK = replace(SPEC, base="org/base")


def way(spec: MixtureSpec = TRUNK, *, mixings: Any = None, **fields: Any) -> str:
    """The way to mix of a request for profiles of which some have a way of their own."""
    profiles = build_profile_set({"plain": {"helpful": 1}, "own": {"helpful": 1}}, spec)
    profiles = replace(profiles, mixings=mixings or {"own": "parameters"})
    return resolve(Preferences(**fields), spec=spec, profiles=profiles, model_names=("m",)).mixing


def test_the_request_decides_its_way_to_mix_then_its_profile_then_the_server() -> None:
    xargs = {MIXING_KEY: "parameters"}
    server = replace(TRUNK, mixing="parameters")
    assert way() == way(profile="plain") == way(weights={"honest": 1}) == "logits"
    assert way(mixing="parameters") == way(extra_args=xargs) == "parameters"
    assert way(profile="own") == way(model="m@own") == "parameters"
    assert way(profile="own", mixing="logits") == "logits"
    assert way(server) == way(server, weights={"honest": 1}) == "parameters"
    assert way(server, mixing="logits") == "logits"
    assert way(server, profile="own", mixings={"own": "logits"}) == "logits"


@pytest.mark.parametrize(
    ("spec", "fields", "param", "message"),
    [
        (
            TRUNK,
            {"mixing": "sum"},
            "preference_mixing",
            "'sum' is no way to mix; allowed: logits, ",
        ),
        (TRUNK, {"mixing": ["logits"]}, "preference_mixing", "is no way to mix"),
        (SPEC, {"mixing": "parameters"}, "preference_mixing", "with `prefmix average`"),
        (SPEC, {"profile": "own"}, "preference_profile", "mixing of profile 'own': full check"),
        (SPEC, {"model": "m@own"}, "model", "mixing of profile 'own': full check"),
        (SPEC, {"extra_args": {MIXING_KEY: "parameters"}}, "vllm_xargs", "full checkpoints"),
        (
            TRUNK,
            {"mixing": "logits", "extra_args": {MIXING_KEY: "logits"}},
            "preference_mixing",
            "both given",
        ),
    ],
)
def test_a_way_that_does_not_exist_here_is_refused(
    spec: MixtureSpec, fields: dict[str, Any], param: str, message: str
) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        way(spec, **fields)
    assert caught.value.param == param


def test_a_default_profile_at_fault_is_no_field_of_the_request() -> None:
    both = build_profile_set({"own": {"helpful": 1}}, SPEC, mixings={"own": "parameters"})
    for model in (None, "m"):
        preferences = Preferences(model=model)
        with pytest.raises(RequestError, match="mixing of profile 'own': full check") as caught:
            resolve(preferences, spec=SPEC, profiles=both, model_names=("m",))
        assert caught.value.param is None

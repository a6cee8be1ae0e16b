from __future__ import annotations

import math
import random
from typing import Any

import pytest

from prefmix.mixing import wire
from prefmix.mixing.simplex import WeightsError, check_weights, weights_from_preferences
from prefmix.mixing.spec import MixtureSpec, Policy


def spec(*, weight_space: Any = "simplex", reference: bool = False) -> MixtureSpec:
    policies = tuple(Policy(name=name, model=name) for name in ("a", "b", "c"))
    extra = Policy(name="r", model="r") if reference else None
    return MixtureSpec(policies=policies, reference=extra, weight_space=weight_space)


def test_ratios_are_normalised_and_unnamed_policies_get_zero() -> None:
    assert weights_from_preferences({"c": 3, "a": 1}, spec()) == (0.25, 0.0, 0.75)
    assert weights_from_preferences({"b": 1e-300}, spec()) == (0.0, 1.0, 0.0)
    assert weights_from_preferences({"a": 1e308, "b": 1e308}, spec()) == (0.5, 0.5, 0.0)


def test_scaling_all_ratios_changes_nothing() -> None:
    rng = random.Random(0)
    for _ in range(200):
        ratios = {name: rng.expovariate(1) for name in "abc"}
        scale = 10 ** rng.uniform(-6, 6)
        scaled = {name: ratio * scale for name, ratio in ratios.items()}
        weights = weights_from_preferences(ratios, spec())
        assert weights == pytest.approx(weights_from_preferences(scaled, spec()), rel=1e-12)
        assert math.fsum(weights) == pytest.approx(1, abs=1e-15)
        assert check_weights(list(weights), num_members=3, weight_space="simplex") == pytest.approx(
            weights
        )


def test_on_the_simplex_the_reference_is_one_more_member() -> None:
    mixture = spec(reference=True)
    assert weights_from_preferences({"a": 1}, mixture) == (1.0, 0.0, 0.0, 0.0)
    assert weights_from_preferences({"a": 1, "r": 1}, mixture) == (0.5, 0.0, 0.0, 0.5)


def test_affine_reference_takes_what_is_left() -> None:
    mixture = spec(weight_space="affine", reference=True)
    assert weights_from_preferences({"a": 2, "b": -0.5}, mixture) == (2.0, -0.5, 0.0, -0.5)
    assert weights_from_preferences({"a": 2, "b": -0.5, "r": -0.5}, mixture) == (2, -0.5, 0, -0.5)


def test_affine_without_reference_must_sum_to_one() -> None:
    mixture = spec(weight_space="affine")
    assert weights_from_preferences({"a": 1.5, "b": -0.5}, mixture) == (1.5, -0.5, 0.0)
    with pytest.raises(WeightsError, match=r"sum to 2, expected 1.*--reference"):
        weights_from_preferences({"a": 2}, mixture)


@pytest.mark.parametrize(
    ("preferences", "reason", "message"),
    [
        ({}, "empty", "no policy is named; name at least one of: a, b, c"),
        ({"z": 1}, "unknown_policy", "unknown policy 'z'; this mixture has: a, b, c"),
        ({3: 1}, "unknown_policy", "unknown policy 3"),
        ({"a": -1, "b": 2}, "negative", "weight of 'a' is -1, negative"),
        ({"a": float("nan")}, "not_finite", "weight of 'a' is NaN, expected a finite number"),
        ({"a": float("inf")}, "not_finite", "is Infinity, expected a finite number"),
        ({"a": 10**400}, "not_finite", "expected a finite number"),
        ({"a": 0, "b": 0.0}, "all_zero", "at least one must be positive"),
        ({"a": "1"}, "not_a_number", "weight of 'a' is '1', expected a number"),
        ({"a": None}, "not_a_number", "is null, expected a number"),
        ({"a": True}, "not_a_number", "is true, expected a number"),
        ([1, 2, 3], "wrong_type", r"\[1, 2, 3\] came, expected an object"),
        ("a", "wrong_type", "'a' came, expected an object"),
        (None, "wrong_type", "null came, expected an object"),
    ],
)
def test_bad_preferences_are_refused(preferences: object, reason: str, message: str) -> None:
    with pytest.raises(WeightsError, match=message) as refused:
        weights_from_preferences(preferences, spec())
    assert refused.value.reason == reason


@pytest.mark.parametrize(
    ("weights", "reason"),
    [
        ("abc", "wrong_type"),
        (0.5, "wrong_type"),
        ({"a": 1}, "wrong_type"),
        ([1.0], "wrong_length"),
        ([0.5, 0.5, 0, 0], "wrong_length"),
        ([0.5, 0.5, "0"], "not_a_number"),
        ([0.5, 0.5, None], "not_a_number"),
        ([1, 0, float("nan")], "not_finite"),
        ([1.5, -0.5, 0], "negative"),
        ([1, 1, 1], "sum"),
        ([0, 0, 0], "sum"),
        ([1e308, 1e308, 1e308], "sum"),
    ],
)
def test_bad_vectors_are_refused_at_the_engines_door(weights: object, reason: str) -> None:
    with pytest.raises(WeightsError) as refused:
        check_weights(weights, num_members=3, weight_space="simplex")
    assert refused.value.reason == reason


def test_affine_vectors_are_bounded() -> None:
    assert check_weights([2, -1], num_members=2, weight_space="affine") == (2.0, -1.0)
    with pytest.raises(WeightsError, match="allowed: ±1000") as refused:
        check_weights([1e4, 1 - 1e4], num_members=2, weight_space="affine")
    assert refused.value.reason == "out_of_range"


def test_rounded_vectors_are_rescaled() -> None:
    weights = check_weights([0.333, 0.333, 0.333], num_members=3, weight_space="simplex")
    assert weights == pytest.approx((1 / 3,) * 3)


def test_weights_survive_the_wire() -> None:
    assert wire.from_extra_args(wire.to_extra_args((0.25, 0.75))) == [0.25, 0.75]
    assert wire.from_extra_args(None) is None
    assert wire.from_extra_args({"other": 1}) is None

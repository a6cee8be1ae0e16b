"""A profile set checks its content; a reader keeps the set that it has read."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from prefmix.mixing.spec import MixtureSpec, Policy
from prefmix.weights.store.profiles import (
    CurrentProfiles,
    ProfileError,
    ProfileSet,
    build_profile_set,
)


def spec(*names: str, **settings: Any) -> MixtureSpec:
    policies = tuple(Policy(name=name, model=f"org/{name}") for name in names)
    return MixtureSpec(policies=policies, **settings)


PAIR = spec("helpful", "harmless")


def test_without_profiles_the_default_is_uniform() -> None:
    with_reference = spec("a", "b", reference=Policy(name="base", model="org/base"))
    profiles = build_profile_set({}, with_reference)
    assert profiles.default == "default"
    assert profiles.profiles == {"default": (0.5, 0.5, 0.0)}


def test_ratios_are_normalised_in_member_order() -> None:
    profiles = build_profile_set({"careful": {"harmless": 3, "helpful": 1}}, PAIR)
    assert profiles.profiles["careful"] == pytest.approx((0.25, 0.75))


@pytest.mark.parametrize(
    ("names", "asked", "default"),
    [
        (["x", "y"], "y", "y"),
        (["x", "y"], None, "x"),
        (["x", "default"], None, "default"),
    ],
)
def test_default_is_the_one_asked_for_else_default_else_the_first(
    names: list[str], asked: str | None, default: str
) -> None:
    profiles = build_profile_set({name: {"helpful": 1} for name in names}, PAIR, default=asked)
    assert profiles.default == default


@pytest.mark.parametrize(
    ("preferences", "default", "parts"),
    [
        ({"x": {"helpfull": 1}}, None, ["'x'", "'helpfull'", "helpful, harmless"]),
        ({"x": {"helpful": -1}}, None, ["'x'", "-1", ">= 0"]),
        ({"x": {}}, None, ["'x'", "no policy is named"]),
        ({"x": 3}, None, ["'x'", "3", "object"]),
        ({"x y": {"helpful": 1}}, None, ["'x y'", "letters"]),
        ({7: {"helpful": 1}}, None, ["7", "not allowed"]),
        ({"custom": {"helpful": 1}}, None, ["'custom'", "another name"]),
        ({"none": {"helpful": 1}}, None, ["'none'", "refused", "another name"]),
        ({"x": {"helpful": 1}}, "y", ["'y'", "does not exist", "x"]),
    ],
)
def test_bad_profiles_are_refused_by_name(
    preferences: dict[Any, Any], default: str | None, parts: list[str]
) -> None:
    with pytest.raises(ProfileError) as caught:
        build_profile_set(preferences, PAIR, default=default)
    assert [part for part in parts if part not in str(caught.value)] == []


def test_hash_covers_the_content_and_nothing_else() -> None:
    def build(**changes: Any) -> ProfileSet:
        settings: dict[str, Any] = {"x": {"helpful": 1}, "y": {"harmless": 1}, **changes}
        return build_profile_set(settings, PAIR, default="x", version=len(changes) + 1)

    assert build().sha256 == build(x={"helpful": 2}).sha256, "the same weights, other ratios"
    assert build().sha256 != build(x={"helpful": 2, "harmless": 1}).sha256
    assert build().sha256 != build(z={"helpful": 1}).sha256
    other_default = build_profile_set(
        {"x": {"helpful": 1}, "y": {"harmless": 1}}, PAIR, default="y"
    )
    assert other_default.sha256 != build().sha256


def test_a_set_travels_to_other_processes_unchanged() -> None:
    profiles = build_profile_set({"x": {"helpful": 1, "harmless": 2}}, PAIR, version=4)
    assert pickle.loads(pickle.dumps(profiles)) == profiles


def test_a_reader_keeps_the_set_it_read() -> None:
    first = build_profile_set({}, PAIR)
    second = build_profile_set({"x": {"helpful": 1}}, PAIR, version=2)
    holder = CurrentProfiles(first)
    read = holder.current
    holder.swap(second)
    assert (read, holder.current) == (first, second)

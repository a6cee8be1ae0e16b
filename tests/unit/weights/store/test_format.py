"""The store's format: accepted files, and refused ones with their messages."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from prefmix.mixing.spec import MixtureSpec, Policy
from prefmix.weights.store.errors import StoreFormatError
from prefmix.weights.store.for_mixture import for_mixture
from prefmix.weights.store.format import dump, parse, spec_of_members
from prefmix.weights.store.profiles import ProfileSet, build_profile_set

A, B = Policy(name="a", model="org/a"), Policy(name="b", model="org/b")
BASE = Policy(name="base", model="org/base")


def data(**changes: Any) -> dict[str, Any]:
    """A good document with some keys replaced; None removes one."""
    good: dict[str, Any] = {
        "format": 1,
        "version": 3,
        "policies": ["a", "b"],
        "default_profile": "even",
        "profiles": {"even": {"weights": {"a": 0.5, "b": 0.5}, "provenance": {"seed": 7}}},
    }
    return {key: value for key, value in {**good, **changes}.items() if value is not None}


def weights(value: Any) -> dict[str, Any]:
    return data(profiles={"even": {"weights": value}})


def read(document: Any) -> ProfileSet:
    return parse(json.dumps(document), source="w.json")


def test_writing_and_reading_are_inverse_to_the_last_bit() -> None:
    third = {"a": 1 / 3, "b": 2 / 3}
    profiles = read(data(profiles={"even": {"weights": third}, "x": {"weights": {"a": 1}}}))
    again = parse(dump(profiles), source="w.json")
    assert again == profiles
    assert again.sha256 == profiles.sha256
    assert again.weights("even") == third
    assert again.weights("x") == {"a": 1.0, "b": 0.0}, "weights are stored complete"


def test_weights_rounded_by_hand_are_normalised_once() -> None:
    profiles = read(weights({"a": 0.333, "b": 0.6665}))
    assert math.fsum(profiles.profiles["even"]) == pytest.approx(1, abs=1e-15)
    assert parse(dump(profiles), source="w.json").sha256 == profiles.sha256


def test_provenance_is_kept_as_it_is() -> None:
    provenance = {"prompts": "sha256:ab", "kl": {"a": 1.5, "b": [1, None, "ü"]}}
    profiles = read(data(profiles={"even": {"weights": {"a": 1}, "provenance": provenance}}))
    assert json.loads(dump(profiles))["profiles"]["even"]["provenance"] == provenance
    other = read(data(profiles={"even": {"weights": {"a": 1}}}))
    assert other.sha256 != profiles.sha256, "another origin is another content"


def test_a_profile_may_have_a_way_to_mix() -> None:
    own = {"weights": {"a": 1}, "mixing": "parameters"}
    profiles = read(data(profiles={"even": own, "plain": {"weights": {"a": 1}}}))
    assert profiles.mixings == {"even": "parameters"}
    stored = json.loads(dump(profiles))["profiles"]
    assert stored["even"]["mixing"] == "parameters"
    assert "mixing" not in stored["plain"]
    other = read(data(profiles={"even": {"weights": {"a": 1}}, "plain": {"weights": {"a": 1}}}))
    assert other.sha256 != profiles.sha256, "another way to mix is another content"


@pytest.mark.parametrize(
    ("document", "parts"),
    [
        ([], ["[]", "one JSON object"]),
        (data(format=2), ["format is 2", "reads format 1"]),
        (data(format=True), ["format is true"]),
        (data(format=None), ["format is missing"]),
        (data(version=0), ["version is 0", "from 1"]),
        (data(version="3"), ["version is '3'"]),
        (data(version=True), ["version is true"]),
        (data(policies="ab"), ["policies is 'ab'", "list"]),
        (data(policies=["a", 3]), ["policies is"]),
        (data(policies=[]), ["at least one policy"]),
        (data(policies=["a", "a"]), ["two policies", "'a'"]),
        (data(policies=["a", "b b"]), ["'b b'", "letters"]),
        (data(weight_space="cone"), ["weight_space is 'cone'", "simplex, affine"]),
        (data(default_profile="x"), ["default_profile is 'x'", "even"]),
        (data(default_profile=None), ["default_profile is missing"]),
        (data(default_profile=3), ["default_profile is 3"]),
        (data(profiles={}), ["profiles is {}"]),
        (data(profiles=[1]), ["profiles is [1]"]),
        (data(profiles={"even": 3}), ["profiles.even is 3"]),
        (data(profiles={"custom": {"weights": {"a": 1}}}), ["'custom'", "another name"]),
        (data(profiles={"a b": {"weights": {"a": 1}}}), ["'a b'", "letters"]),
        (data(profiles={"\n": None}), ["'\\n'", "letters"]),
        (data(profiles={"even": {}}), ["profiles.even: weights is missing"]),
        (data(profiles={"even": {"wieghts": {}}}), ["profiles.even", "'wieghts'", "'weights'?"]),
        (
            data(profiles={"even": {"weights": {"a": 1}, "provenance": 3}}),
            ["profiles.even.provenance is 3"],
        ),
        (
            data(profiles={"even": {"weights": {"a": 1}, "provenance": {"kl": math.nan}}}),
            ["profiles.even.provenance", "NaN"],
        ),
        (
            data(profiles={"even": {"weights": {"a": 1}, "mixing": "sum"}}),
            ["'even'", "mixing", "'sum'", "logits, parameters"],
        ),
        (data(defualt_profile="even"), ["'defualt_profile'", "'default_profile'?"]),
        (weights([1, 0]), ["profiles.even.weights is [1, 0]"]),
        (weights({}), ["'even'", "at least one of: a, b"]),
        (weights({"a": 0.5, "b": 0.4}), ["profiles.even.weights", "0.9", "expected 1", "ratios"]),
        (weights({"a": 2, "b": 3}), ["profiles.even.weights", "5", "expected 1"]),
        (weights({"a": 0, "b": 0}), ["profiles.even.weights", "0", "expected 1"]),
        (weights({"a": 1.5, "b": -0.5}), ["'even'", "'b'", "-0.5", ">= 0"]),
        (weights({"a": math.nan, "b": 1}), ["'even'", "'a'", "NaN", "finite"]),
        (weights({"a": math.inf}), ["'even'", "'a'", "Infinity", "finite"]),
        (weights({"a": 10**400}), ["'even'", "'a'", "finite"]),
        (weights({"a": "1"}), ["'even'", "'a'", "'1'", "number"]),
        (weights({"a": True}), ["'even'", "'a'", "true", "number"]),
        (weights({"a": 0.5, "c": 0.5}), ["'even'", "'c'", "a, b"]),
    ],
)
def test_bad_documents_are_refused_by_file_field_and_value(document: Any, parts: list[str]) -> None:
    with pytest.raises(StoreFormatError) as caught:
        read(document)
    message = str(caught.value)
    assert message.startswith("w.json: ")
    assert [part for part in parts if part not in message] == [], message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ["line 1 column 1", "not JSON"]),
        ('{"format": 1,\n "version": }', ["line 2 column 13", "not JSON"]),
        ('{"format": 1, "format": 1}', ["'format'", "twice"]),
        ("[" * 100_000, ["nested"]),
        ('{"version": ' + "9" * 5000 + "}", ["digits"]),
        (b"\xff\xfe\x00", ["UTF-8"]),
        (b"\xff{}", ["UTF-8"]),
    ],
)
def test_broken_json_is_refused_with_its_place(text: str | bytes, parts: list[str]) -> None:
    with pytest.raises(StoreFormatError) as caught:
        parse(text, source="w.json")
    assert [part for part in ("w.json", *parts) if part not in str(caught.value)] == []


def test_affine_weights_need_their_space_to_be_named() -> None:
    negative = weights({"a": 1.5, "b": -0.5})
    profiles = read({**negative, "weight_space": "affine"})
    assert profiles.weights("even") == {"a": 1.5, "b": -0.5}
    assert parse(dump(profiles), source="w.json") == profiles
    with pytest.raises(StoreFormatError, match="negative"):
        for_mixture(profiles, MixtureSpec(policies=(A, B)), source="w.json")


def test_a_mixture_takes_its_own_policies_in_any_order() -> None:
    profiles = read(weights({"a": 0.25, "b": 0.75}))
    turned = for_mixture(profiles, MixtureSpec(policies=(B, A)), source="w.json")
    assert turned.profiles["even"] == (0.75, 0.25)
    assert turned.sha256 == profiles.sha256
    with_base = MixtureSpec(policies=(A, B), reference=BASE)
    completed = for_mixture(profiles, with_base, source="w.json")
    assert completed.profiles["even"] == (0.25, 0.75, 0.0)


@pytest.mark.parametrize("members", [(A,), (A, BASE), (A, B, BASE)])
def test_profiles_for_other_policies_are_refused(members: tuple[Policy, ...]) -> None:
    with pytest.raises(StoreFormatError) as caught:
        for_mixture(read(data()), MixtureSpec(policies=members), source="w.json")
    for part in ("w.json", "a, b", ", ".join(member.name for member in members)):
        assert part in str(caught.value)


HASH = "0f" * 32


def test_profiles_of_prompted_policies_carry_the_hash_of_the_prompts() -> None:
    spec = spec_of_members(["a", "b"], prompts_sha256=HASH)
    made = build_profile_set({"even": {"a": 1, "b": 1}}, spec)
    back = parse(dump(made), source="s")
    assert (back, back.sha256) == (made, made.sha256)
    assert for_mixture(back, spec, source="s") == made
    plain = build_profile_set({"even": {"a": 1, "b": 1}}, spec_of_members(["a", "b"]))
    assert plain.sha256 != made.sha256
    assert "prompts" not in dump(plain), "a store without prompts reads as it always did"


@pytest.mark.parametrize(("of_file", "of_mixture"), [(HASH, None), (None, HASH), (HASH, "1" * 64)])
def test_profiles_of_other_prompts_are_refused(of_file: str | None, of_mixture: str | None) -> None:
    made = build_profile_set({}, spec_of_members(["a", "b"], prompts_sha256=of_file))
    spec = spec_of_members(["a", "b"], prompts_sha256=of_mixture)
    with pytest.raises(StoreFormatError, match="made for other prompts"):
        for_mixture(made, spec, source="s")


@pytest.mark.parametrize("value", [3, "", "0f", ["0f"], HASH.upper(), HASH + "\n"])
def test_a_hash_of_prompts_that_is_none_is_refused(value: object) -> None:
    with pytest.raises(StoreFormatError, match=r"prompts_sha256 is .*expected 64 digits"):
        parse(json.dumps(data(prompts_sha256=value)), source="s")

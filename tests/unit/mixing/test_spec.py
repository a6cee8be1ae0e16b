from __future__ import annotations

import json
from dataclasses import replace

import pytest

from prefmix.mixing.spec import (
    ARCHITECTURE,
    CONFIG_KEY,
    OVERRIDDEN_KEYS,
    MixtureSpec,
    Policy,
    SpecError,
    hf_overrides,
    with_overrides,
)


def policy(name: str = "a") -> Policy:
    return Policy(name=name, model=f"org/{name}")


def test_members_are_the_policies_then_the_reference() -> None:
    spec = MixtureSpec(policies=(policy("b"), policy("a")), reference=policy("r"))
    assert spec.member_names == ("b", "a", "r")
    assert spec.policy_names == ("b", "a")
    assert spec.num_members == 3
    assert spec.uniform_weights == (0.5, 0.5, 0.0)


def test_spec_survives_json() -> None:
    spec = MixtureSpec(
        policies=(
            policy("a"),
            Policy(name="b", model="/x", revision="main", hf_overrides={"a": {"b": [1, None]}}),
        ),
        reference=policy("r"),
        weight_space="affine",
        vocabulary="common",
        defaults_from="r",
    )
    assert hash(spec) == hash(MixtureSpec.from_dict(spec.to_dict()))
    assert MixtureSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


def test_hf_overrides_name_architecture_and_members() -> None:
    spec = MixtureSpec(policies=(policy(),))
    overrides = json.loads(json.dumps(hf_overrides(spec)))
    assert overrides["architectures"] == [ARCHITECTURE]
    assert MixtureSpec.from_dict(overrides[CONFIG_KEY]) == spec


@pytest.mark.parametrize(
    "name", ["", "a b", "a@b", "a=b", "a,b", "-a", ".a", "x" * 65, "ü", None, 3]
)
def test_names_that_would_break_a_header_label_or_model_are_refused(name: object) -> None:
    with pytest.raises(SpecError, match="is not allowed: use 1 to 64 letters"):
        Policy(name=name, model="m")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: MixtureSpec(policies=()), "at least one policy"),
        (lambda: MixtureSpec(policies=(policy(), policy())), "two policies are named 'a'"),
        (
            lambda: MixtureSpec(policies=(policy(),), reference=policy()),
            "two policies are named 'a'",
        ),
        (
            lambda: MixtureSpec(policies=(policy(),), weight_space="cube"),  # type: ignore[arg-type]
            "weight_space is 'cube'; allowed: simplex, affine",
        ),
        (lambda: Policy(name="a", model=""), "policy 'a' has no model"),
        (
            lambda: MixtureSpec(policies=(policy(),), vocabulary="any"),  # type: ignore[arg-type]
            "vocabulary is 'any'; allowed: same, prefix, common",
        ),
        (
            lambda: MixtureSpec(policies=(policy(),), defaults_from="b"),
            "defaults_from is 'b', which is no policy here; allowed: a",
        ),
        (
            lambda: Policy(name="a", model="m", hf_overrides={"prefmix": 1}),
            "sets 'prefmix', which prefmix sets itself",
        ),
        *(
            (lambda wrong=wrong: Policy(name="a", model="m", hf_overrides=wrong), "JSON values")
            for wrong in ({"a": {1, 2}}, {1: "a"}, {"a": float("nan")}, [1], False)
        ),
        (
            lambda: MixtureSpec(
                policies=(Policy(name="a", model="m", hf_overrides={"x": 1}),), base="org/base"
            ),
            "'a' has hf_overrides, but runs in the layers of the base",
        ),
        (lambda: MixtureSpec.from_dict({"policies": [], "temper": 1}), "unknown mixture key"),
        (lambda: MixtureSpec.from_dict({"policies": {"a": "m"}}), "expected a list"),
        (lambda: MixtureSpec.from_dict({"policies": ["m"]}), "expected an object"),
        (lambda: MixtureSpec.from_dict({}), "policies is null"),
    ],
)
def test_impossible_mixtures_are_refused_with_the_reason(build: object, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        build()  # type: ignore[operator]


def test_overrides_of_one_policy_prevail_over_those_of_all() -> None:
    own = Policy(name="a", model="org/a", hf_overrides={"x": 1, "y": 2})
    spec = with_overrides(
        MixtureSpec(policies=(own, policy("b")), reference=policy("r")), {"y": 3, "z": 4}
    )
    both, shared = {"x": 1, "y": 2, "z": 4}, {"y": 3, "z": 4}
    assert [member.hf_overrides for member in spec.members] == [both, shared, shared]
    overrides = hf_overrides(spec)
    assert {key: overrides[key] for key in overrides.keys() - OVERRIDDEN_KEYS} == both


def test_the_defaults_are_of_one_model() -> None:
    policies = (policy("a"), policy("b"))
    spec = MixtureSpec(policies=policies, reference=policy("r"))
    assert spec.defaults == policies[0]
    assert replace(spec, defaults_from="r").defaults == spec.reference
    base = Policy(name="r", model="org/base")
    trunk = MixtureSpec(policies=policies, reference=base, base="org/base")
    assert trunk.defaults == trunk.checkpoints[0]
    assert replace(trunk, defaults_from="b").defaults == policies[1]
    assert replace(trunk, defaults_from="r").defaults == trunk.checkpoints[0]


def test_an_adapter_may_be_called_base() -> None:
    spec = MixtureSpec(policies=(policy("base"),), base="org/model", defaults_from="base")
    assert spec.defaults == spec.policies[0]


def test_a_base_makes_the_policies_adapters_of_one_checkpoint() -> None:
    policies = (Policy(name="a", model="x/a"), Policy(name="b", model="x/b"))
    reference = Policy(name="r", model="x/base", revision="v1")
    spec = MixtureSpec(policies=policies, reference=reference, base="x/base", base_revision="v1")
    assert spec.adapters == policies
    assert [(each.model, each.revision) for each in spec.checkpoints] == [("x/base", "v1")]
    assert MixtureSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    assert hf_overrides(spec)["architectures"] == ["SharedTrunkMixtureForCausalLM"]
    assert MixtureSpec(policies=policies).checkpoints == policies


def test_a_reference_beside_a_base_is_the_base() -> None:
    policies = (Policy(name="a", model="x/a"),)
    with pytest.raises(SpecError, match="the reference is the base itself: give 'x/base'"):
        MixtureSpec(policies=policies, base="x/base", reference=Policy(name="r", model="x/other"))
    with pytest.raises(SpecError, match="base_revision is given without a base"):
        MixtureSpec(policies=policies, base_revision="v1")

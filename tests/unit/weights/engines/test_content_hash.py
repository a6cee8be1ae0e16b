"""Draws are kept under hashes of all that decides them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from prefmix.mixing.spec import MixtureSpec, Policy
from prefmix.weights.engines.content_hash import content_hashes


def test_overrides_and_defaults_make_another_hash(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    policies = (Policy(name="a", model=str(tmp_path)), Policy(name="b", model="org/b"))
    spec = MixtureSpec(policies=policies)
    overridden = tuple(replace(policy, hf_overrides={"rope_theta": 5}) for policy in policies)
    named = [
        content_hashes(each)
        for each in (
            spec,
            replace(spec, policies=overridden),
            replace(spec, defaults_from="a"),
            replace(spec, defaults_from="b"),
        )
    ]
    assert all(len({hashes[name] for hashes in named}) == 4 for name in ("a", "b"))
    assert content_hashes(replace(spec)) == named[0]
    assert named[0]["a"].startswith("sha256:")
    assert named[0]["b"] == "hub:org/b@main"


def test_an_adapters_hash_has_its_base_and_the_defaults(tmp_path: Path) -> None:
    policies = (Policy(name="a", model="org/a"),)
    reference = Policy(name="r", model="org/base")
    spec = MixtureSpec(policies=policies, reference=reference, base="org/base")
    plain, named = content_hashes(spec), content_hashes(replace(spec, defaults_from="a"))
    assert plain == {"a": "hub:org/base@main + hub:org/a@main", "r": "hub:org/base@main"}
    assert all(named[name] == f"{plain[name]}, defaults from a" for name in plain)

"""Policies that were added to a running server, as the store keeps them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prefmix.mixing.spec import MixtureSpec, Policy, SpecError
from prefmix.weights.store import edits
from prefmix.weights.store.added import AddedPolicy, with_added
from prefmix.weights.store.errors import PolicyInUseError, StoreFormatError, UnknownEntryError
from prefmix.weights.store.format import dump, for_mixture, parse
from prefmix.weights.store.profiles import ProfileError, ProfileSet, build_profile_set
from prefmix.weights.store.store import WeightsStore

BASE = Policy(name="base", model="org/base")
SPEC = MixtureSpec(policies=(Policy(name="a", model="org/a"),), reference=BASE, base="org/base")
NEW = AddedPolicy(adapter="runs/new", sha256="0" * 64)
LATER = AddedPolicy(adapter="runs/new", sha256="1" * 64)


def start() -> ProfileSet:
    return build_profile_set({"own": {"a": 1, "base": 3}}, SPEC)


def with_new() -> ProfileSet:
    added = edits.with_policy(start(), "new", NEW, spec=SPEC)
    return edits.with_profile(added, "both", {"a": 1, "new": 1}, spec=SPEC)


def test_an_added_policy_stands_behind_the_policies_and_before_the_reference() -> None:
    found = with_new()
    assert found.member_names == ("a", "new", "base")
    assert found.weights("own") == {"a": 0.25, "new": 0.0, "base": 0.75}
    assert found.weights("both") == {"a": 0.5, "new": 0.5, "base": 0.0}


def test_the_file_keeps_it_and_the_hash_knows_its_content() -> None:
    found = with_new()
    parsed = parse(dump(found), source="w.json")
    read = for_mixture(parsed, SPEC, source="w.json", takes_added=True)
    assert (read.added, read.member_names, read.sha256) == (
        {"new": NEW},
        found.member_names,
        found.sha256,
    )
    assert edits.with_policy(found, "new", LATER, spec=SPEC).sha256 != found.sha256
    assert "added_policies" not in json.loads(dump(start()))


def test_the_store_returns_to_the_policies_of_a_version_with_its_weights(tmp_path: Path) -> None:
    store = WeightsStore(tmp_path / "w.json", spec=SPEC, takes_added=True)
    store.create(start())
    store.change(lambda old: edits.with_policy(old, "new", NEW, spec=SPEC))
    store.change(lambda old: edits.with_profile(old, "both", {"new": 1}, spec=SPEC))
    store.rollback(1)
    assert (store.read().added, store.read().member_names) == ({}, ("a", "base"))
    store.rollback(3)
    assert store.read().added == {"new": NEW}
    assert store.read().weights("both") == {"a": 0.0, "new": 1.0, "base": 0.0}


def test_only_an_added_policy_without_weight_can_go() -> None:
    found = with_new()
    with pytest.raises(PolicyInUseError, match="'new' has weight in both; change or delete"):
        edits.without_policy(found, "new", spec=SPEC)
    free = edits.without_policy(edits.without_profile(found, "both"), "new", spec=SPEC)
    assert free.sha256 == start().sha256
    with pytest.raises(UnknownEntryError, match=r"'a' is one of the configuration.*are: new"):
        edits.without_policy(found, "a", spec=SPEC)
    with pytest.raises(UnknownEntryError, match=r"'gone' does not exist.*are: none"):
        edits.without_policy(start(), "gone", spec=SPEC)


@pytest.mark.parametrize("name", ["a", "base", "no name", "x" * 65])
def test_a_name_that_no_further_policy_can_have_is_refused(name: str) -> None:
    with pytest.raises(ProfileError, match="name"):
        edits.with_policy(start(), name, NEW, spec=SPEC)


def test_documents_bring_weights_and_no_policies() -> None:
    """As `prefmix weights export` writes them: for the policies that there are."""
    found = with_new()
    document = replace(found, default="both", added={"new": LATER})
    for applied in (edits.merged, edits.replaced):
        after = applied(found, document, source="document", spec=SPEC)
        assert after.added == {"new": NEW}
    with pytest.raises(StoreFormatError, match="made for other policies"):
        edits.merged(start(), document, source="document", spec=SPEC)


def test_only_a_server_has_policies_that_were_added(tmp_path: Path) -> None:
    """A fit, an evaluation or the Python interface has the configuration's alone."""
    WeightsStore(tmp_path / "w.json").create(with_new())
    with pytest.raises(StoreFormatError, match=r"\(new\), which only 'prefmix serve'"):
        WeightsStore(tmp_path / "w.json", spec=SPEC).read()


def test_full_checkpoints_take_no_further_policies() -> None:
    with pytest.raises(SpecError, match="this mixture has full checkpoints"):
        with_added(MixtureSpec(policies=SPEC.policies), {"new": NEW})


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([], "added_policies is .*expected an object"),
        ({"new": {"adapter": "x"}}, "added_policies.new is .*adapter and sha256"),
        ({"new": {"adapter": "", "sha256": "0" * 64}}, "adapter is .*the name of a folder"),
        ({"new": {"adapter": "x" * 513, "sha256": "0" * 64}}, "the name of a folder"),
        ({"new": {"adapter": "x", "sha256": "0"}}, "expected 64 digits"),
        ({"other": {"adapter": "x", "sha256": "0" * 64}}, "which policies does not"),
    ],
)
def test_a_file_with_a_broken_entry_is_refused(value: Any, words: str) -> None:
    broken = {**json.loads(dump(with_new())), "added_policies": value}
    with pytest.raises(StoreFormatError, match=words):
        parse(json.dumps(broken), source="w.json")

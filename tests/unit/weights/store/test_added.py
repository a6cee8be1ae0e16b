"""Policies that were added to a running server, as the store keeps them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prefmix.mixing.spec import MixtureSpec, Policy, SpecError
from prefmix.weights.store import edits
from prefmix.weights.store.added import AddedPolicy, lacking_slots, with_added
from prefmix.weights.store.change import Edit
from prefmix.weights.store.errors import PolicyInUseError, StoreFormatError, UnknownEntryError
from prefmix.weights.store.for_mixture import for_mixture
from prefmix.weights.store.format import document, dump, parse
from prefmix.weights.store.profiles import ProfileError, ProfileSet, build_profile_set
from prefmix.weights.store.store import WeightsStore
from prefmix.weights.store.text_tables import difference_table, history_table

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


PROMPT = AddedPolicy.of(system="Be the secret.")
BOTH = AddedPolicy.of(adapter="runs/new", sha256="0" * 64, system="Be the secret.")


@pytest.mark.parametrize("policy", [PROMPT, BOTH])
def test_the_file_has_a_prompts_text_and_everything_else_its_hash(policy: AddedPolicy) -> None:
    found = edits.with_policy(start(), "new", policy, spec=SPEC)
    assert "secret" not in f"{found!r}{policy!r}{document(found)}"
    assert policy.system_sha256 in json.dumps(document(found))
    for whole in (dump(found), json.dumps(document(found, with_texts=True))):
        read = for_mixture(parse(whole, source="w.json"), SPEC, source="w.json", takes_added=True)
        assert (read.added, read.sha256) == ({"new": policy}, found.sha256)
    # What a server shows has the same hash, but can be no store: the text would be lost.
    shown = parse(json.dumps(document(found)), source="shown.json")
    assert shown.sha256 == found.sha256
    with pytest.raises(StoreFormatError, match=r"shown.json: .*hash of a prompt of new, and not"):
        for_mixture(shown, SPEC, source="shown.json", takes_added=True)
    other = AddedPolicy.of(adapter=policy.adapter, sha256=policy.sha256, system="Be another.")
    assert edits.with_policy(found, "new", other, spec=SPEC).sha256 != found.sha256


def test_a_policy_that_is_a_prompt_is_the_base() -> None:
    base = replace(SPEC, base_revision="v2", reference=None)
    [_, prompted, both] = with_added(base, {"prompted": PROMPT, "both": BOTH}).members
    assert (prompted.model, prompted.revision) == ("org/base", "v2")
    assert (both.model, both.revision) == ("runs/new", None)


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


def test_a_policy_without_kv_cache_has_weight_where_parameters_are_mixed_only(
    tmp_path: Path,
) -> None:
    without = replace(NEW, kv_cache=False)
    store = WeightsStore(tmp_path / "w.json", spec=SPEC, takes_added=True)
    store.create(start())
    store.change(lambda old: edits.with_policy(old, "new", without, spec=SPEC))
    assert (
        json.loads((tmp_path / "w.json").read_text())["added_policies"]["new"]["kv_cache"] is False
    )
    assert store.read().added == {"new": without}

    def both(mixing: str | None, weights: dict[str, int]) -> Edit:
        return lambda old: edits.with_profile(old, "both", weights, spec=SPEC, mixing=mixing)

    for mixing in (None, "logits"):
        with pytest.raises(ProfileError, match="'both' mixes logits and gives policy 'new' weight"):
            store.change(both(mixing, {"a": 1, "new": 1}))
        store.change(both(mixing, {"a": 1}))
    store.change(both("parameters", {"a": 1, "new": 1}))
    with pytest.raises(ProfileError, match="give the profile the mixing 'parameters'"):
        store.change(both(None, {"new": 1}))
    averaging = replace(SPEC, mixing="parameters")
    other = WeightsStore(tmp_path / "w.json", spec=averaging, takes_added=True)
    other.change(both(None, {"new": 1}))
    with pytest.raises(StoreFormatError, match="mixes logits and gives policy 'new' weight"):
        store.read()  # a server whose way to mix is another


def test_slots_are_counted_by_their_kind() -> None:
    def lacking(num_kv: int, num_without: int, slots: int, without: int) -> str | None:
        engine = replace(
            SPEC, adapter_slots=slots, max_adapter_rank=8 * bool(slots), slots_without_kv=without
        )
        kinds = [NEW] * num_kv + [replace(NEW, kv_cache=False)] * num_without
        return lacking_slots({f"new-{index}": each for index, each in enumerate(kinds)}, engine)

    assert lacking(0, 0, 0, 0) is None
    assert lacking(2, 1, 3, 1) is None
    assert lacking(2, 0, 1, 0) == "--adapter-slots 2"
    assert lacking(1, 0, 2, 2) == "--adapter-slots 3 --adapter-slots-without-kv 2"
    assert lacking(0, 1, 2, 0) == "--adapter-slots 3 --adapter-slots-without-kv 1"


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
        ({"new": {"system": "secret", "sha256": "0"}}, r'is \["sha256", "system"\], expected an'),
        ({"new": {"system": " "}}, "added_policies.new.system is empty"),
        ({"new": {"system": "a\x07b"}}, r"system is a text with the control character U\+0007"),
        ({"new": {"system_sha256": "x"}}, "system_sha256 is 'x', expected 64 digits"),
        ({"new": {"adapter": "", "sha256": "0" * 64}}, "adapter is .*the name of a folder"),
        ({"new": {"adapter": "x" * 513, "sha256": "0" * 64}}, "the name of a folder"),
        ({"new": {"adapter": "x", "sha256": "0"}}, "expected 64 digits"),
        ({"new": {"adapter": "x", "sha256": "0" * 64, "kv_cache": 0}}, "kv_cache is 0, expected"),
        ({"new": {"adapter": "x", "sha256": "0" * 64, "rank": 0}}, "adapter and sha256"),
        ({"other": {"adapter": "x", "sha256": "0" * 64}}, "which policies does not"),
    ],
)
def test_a_file_with_a_broken_entry_is_refused(value: Any, words: str) -> None:
    broken = {**json.loads(dump(with_new())), "added_policies": value}
    with pytest.raises(StoreFormatError, match=words):
        parse(json.dumps(broken), source="w.json")


def test_tables_of_versions_show_the_added_policies() -> None:
    """Two versions whose weights are equal may serve other adapters and prompts."""
    one = edits.with_policy(start(), "new", NEW, spec=SPEC)
    two = edits.with_policy(one, "new", LATER, spec=SPEC)
    three = edits.with_policy(two, "new", BOTH, spec=SPEC)
    without = replace(LATER, kv_cache=False)
    prompt = f"prompt {BOTH.system_sha256:.12}"

    def told(old: ProfileSet, new: ProfileSet) -> list[str]:
        return [line for line in difference_table(old, new).splitlines() if "(policy)" in line]

    assert told(one, one) == []
    [_, row] = difference_table(start(), one).splitlines()
    assert row.split()[:3] == ["(policy)", "new", "-"], "no weight has changed"
    assert told(one, two) == [f"(policy)  new     runs/new {'0' * 12}  runs/new {'1' * 12}"]
    assert told(two, three)[0].split("  ")[-1] == f"runs/new {'0' * 12}, {prompt}"
    assert told(one, start())[0].split()[-1] == "-"
    kept = replace(two, added={"new": without})
    assert told(two, kept)[0].endswith(f"runs/new {'1' * 12}, without KV cache")
    lines = history_table([start(), one]).splitlines()
    assert [line.split("  ")[-1].strip() for line in lines] == ["added policies", "new", "-"]
    assert "added" not in history_table([start()])

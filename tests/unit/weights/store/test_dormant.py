"""Profiles that name absent policies: refused, or kept until the policies are there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from prefmix.mixing.spec import MixtureSpec, Policy
from prefmix.server.config.errors import ConfigError
from prefmix.server.config.serve_config import ServeConfig
from prefmix.weights.store import edits
from prefmix.weights.store.added import AddedPolicy
from prefmix.weights.store.errors import PolicyInUseError, StoreFormatError
from prefmix.weights.store.for_mixture import for_mixture
from prefmix.weights.store.format import document, dump, from_document, parse
from prefmix.weights.store.profiles import ProfileError, ProfileSet, build_profile_set
from prefmix.weights.store.store import WeightsStore
from prefmix.weights.store.text_tables import difference_table, profile_table

SPEC = MixtureSpec(
    policies=(Policy(name="a", model="org/a"),),
    reference=Policy(name="base", model="org/base"),
    base="org/base",
)
ADDED = {"new": AddedPolicy.of(adapter="new", sha256="0" * 64)}
FIRST = build_profile_set({"even": {"a": 1, "base": 1}}, SPEC)


def asleep(mixing: str | None = "parameters") -> ProfileSet:
    return edits.with_profile(
        FIRST,
        "both",
        {"a": 1, "new": 3, "base": 0},
        spec=SPEC,
        provenance={"by": "fit"},
        mixing=mixing,
        keeps_dormant=True,
    )


def test_a_profile_wakes_with_its_policy_and_falls_asleep_without() -> None:
    found = asleep()
    assert found.profiles.keys() == {"even"}
    assert found.waiting() == {"both": ["new"]}
    assert dict(found.dormant["both"].weights) == {"a": 0.25, "new": 0.75}
    assert (found.mixings, found.provenance) == ({}, {})
    awake = edits.with_policies(found, ADDED, spec=SPEC, keeps_dormant=True)
    assert awake.weights("both") == {"a": 0.25, "new": 0.75, "base": 0.0}
    assert (awake.mixings["both"], awake.provenance["both"]) == ("parameters", {"by": "fit"})
    assert awake.dormant == {}
    again = edits.without_policy(awake, "new", spec=SPEC, keeps_dormant=True)
    assert again.content() == found.content()
    assert again.sha256 == found.sha256 != FIRST.sha256


def test_without_the_choice_absent_policies_are_refused() -> None:
    with pytest.raises(ProfileError, match="'new'"):
        edits.with_profile(FIRST, "both", {"a": 1, "new": 3}, spec=SPEC)
    awake = edits.with_policies(asleep(), ADDED, spec=SPEC)
    with pytest.raises(PolicyInUseError, match="'new' has weight in both"):
        edits.without_policy(awake, "new", spec=SPEC)
    with pytest.raises(StoreFormatError, match=r"dormant profiles.*both.*--dormant-profiles"):
        for_mixture(asleep(), SPEC, source="w.json")
    assert for_mixture(asleep(), SPEC, source="w.json", takes_dormant=True).dormant


@pytest.mark.parametrize(
    "preferences", [{"a": 1, "not a name": 1}, {"a": 1, "new": -1}, {"new": "x"}, {"new": 0}, [1]]
)
def test_what_no_policy_could_mend_is_refused(preferences: object) -> None:
    with pytest.raises(ProfileError, match="profile 'both'"):
        edits.with_profile(FIRST, "both", preferences, spec=SPEC, keeps_dormant=True)


def test_weight_0_of_an_absent_policy_waits_for_nothing() -> None:
    with pytest.raises(ProfileError, match="'new'"):
        edits.with_profile(FIRST, "both", {"a": 1, "new": 0}, spec=SPEC, keeps_dormant=True)


def test_the_default_never_sleeps() -> None:
    with pytest.raises(ProfileError, match=r"'both' is dormant: .*\(new\), and cannot be the def"):
        edits.with_default(asleep(), "both")
    with pytest.raises(ProfileError, match="'even' is dormant"):
        edits.with_profile(FIRST, "even", {"new": 1}, spec=SPEC, keeps_dormant=True)
    awake = edits.with_policies(asleep(), ADDED, spec=SPEC, keeps_dormant=True)
    awake = edits.with_default(awake, "both")
    with pytest.raises(PolicyInUseError, match="the default, which cannot be dormant"):
        edits.without_policy(awake, "new", spec=SPEC, keeps_dormant=True)


def test_a_dormant_profile_is_replaced_and_deleted_as_any() -> None:
    live = edits.with_profile(asleep(), "both", {"a": 1}, spec=SPEC, keeps_dormant=True)
    assert (live.dormant, live.weights("both")["a"]) == ({}, 1)
    back = edits.with_profile(live, "both", {"new": 1}, spec=SPEC, keeps_dormant=True)
    assert back.profiles.keys() == {"even"}
    assert edits.without_profile(back, "both").content() == FIRST.content()


def test_documents_bring_dormant_profiles_where_they_are_kept() -> None:
    merged = edits.merged(FIRST, asleep(), source="x", spec=SPEC, keeps_dormant=True)
    assert merged.content() == asleep().content()
    live = edits.with_profile(FIRST, "both", {"a": 1}, spec=SPEC)
    merged = edits.merged(live, asleep(), source="x", spec=SPEC, keeps_dormant=True)
    assert merged.content() == asleep().content()
    assert edits.merged(asleep(), live, source="x", spec=SPEC).content() == live.content()
    replaced = edits.replaced(live, asleep(), source="x", spec=SPEC, keeps_dormant=True)
    assert replaced.content() == asleep().content()
    for apply in (edits.merged, edits.replaced):
        with pytest.raises(StoreFormatError, match="--dormant-profiles"):
            apply(FIRST, asleep(), source="x", spec=SPEC)


def test_the_store_keeps_them_and_says_what_is_wrong_with_them(tmp_path: Path) -> None:
    assert parse(dump(asleep()), source="x") == asleep()
    data = document(asleep())
    assert data["dormant_profiles"]["both"]["weights"] == {"a": 0.25, "new": 0.75}
    for broken, words in (
        ([], "dormant_profiles is"),
        ({"even": {"weights": {"new": 1}}}, "is among profiles, too"),
        ({"x": {"weights": {"a": 1}}}, "waits for no policy"),
        ({"x": {"weights": {"new": 2}}}, "dormant_profiles.x.weights sum to 2"),
        ({"x": {"weights": {"new": 1}, "mixing": "y"}}, "'x': mixing"),
    ):
        with pytest.raises(StoreFormatError, match=words):
            from_document({**data, "dormant_profiles": broken}, source="x")
    path = tmp_path / "w.json"
    path.write_text(json.dumps(data))
    with pytest.raises(StoreFormatError, match="--dormant-profiles"):
        WeightsStore(path, spec=SPEC).read()
    store = WeightsStore(path, spec=SPEC, takes_dormant=True, max_profiles=2)
    assert store.read() == asleep()
    with pytest.raises(ProfileError, match="there are 3 profiles"):
        store.change(lambda now: edits.with_profile(now, "x", {"a": 1}, spec=SPEC))


def test_tables_show_what_they_wait_for() -> None:
    assert profile_table(asleep()).endswith("both: dormant, waits for new")
    assert "both     (dormant)" in difference_table(FIRST, asleep())


def test_a_configurations_profiles_may_wait_for_policies_to_come() -> None:
    given = {
        "base": {"model": "org/base"},
        "adapters": {"a": {"model": "org/a"}},
        "profiles": {"even": {"a": 1}, "own": {"weights": {"new": 1}, "mixing": "logits"}},
    }
    refusing = ServeConfig.model_validate(given)
    with pytest.raises(ConfigError, match="'new'"):
        refusing.profile_set(refusing.spec())
    config = ServeConfig.model_validate({**given, "dormant_profiles": True})
    found = config.profile_set(config.spec())
    assert (found.default, found.waiting()) == ("even", {"own": ["new"]})
    assert found.dormant["own"].mixing == "logits"
    for default in ({"default_profile": "own"}, {"profiles": {"default": {"new": 1}}}):
        wrong = ServeConfig.model_validate({**given, "dormant_profiles": True, **default})
        with pytest.raises(ConfigError, match="cannot be the default"):
            wrong.profile_set(wrong.spec())

"""The limit on profiles, at every way in; messages that stay short however many there are."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from prefmix.mixing.name_list import MAX_NAMES, listed
from prefmix.server.admin.listener import admin_app
from prefmix.server.admin.live_weights import LiveWeights
from prefmix.server.admin.routes import AdminState
from prefmix.server.api.resolve import Preferences, resolve
from prefmix.server.auth.tokens import Token, Tokens
from prefmix.server.http.errors import RequestError
from prefmix.weights.store import edits
from prefmix.weights.store import profiles as store_profiles
from prefmix.weights.store.errors import StoreFormatError
from prefmix.weights.store.format import document, dump, from_document, spec_of_members
from prefmix.weights.store.profiles import (
    MAX_PROFILES,
    CurrentProfiles,
    ProfileError,
    ProfileSet,
    build_profile_set,
)
from prefmix.weights.store.store import WeightsStore

SPEC = spec_of_members(["a", "b"])


def many(number: int, *, version: int = 1) -> ProfileSet:
    names = {f"profile-{index}": {"a": 1} for index in range(number)}
    return build_profile_set(names, SPEC, version=version)


@pytest.fixture
def full(tmp_path: Path) -> LiveWeights:
    """A server that has as many profiles as it takes by default."""
    store = WeightsStore(tmp_path / "w.json", spec=SPEC)
    profiles = CurrentProfiles(store.create(many(MAX_PROFILES)))
    return LiveWeights(
        spec=SPEC, profiles=profiles, store=store.path, folder=tmp_path, num_processes=1
    )


def ask(live: LiveWeights, method: str, path: str, body: object = None) -> tuple[int, str]:
    client = TestClient(
        admin_app(AdminState(tokens=Tokens([Token.of("ops", "secret")]), live=live))
    )
    headers = {"Authorization": "Bearer secret"}
    answer = client.request(method, f"/admin{path}", json=body, headers=headers)
    return answer.status_code, answer.text


def test_a_full_server_takes_changes_but_no_further_profile(full: LiveWeights) -> None:
    put = {"weights": {"b": 1}}
    status, text = ask(full, "PUT", "/profiles/one-more", put)
    assert status == 400
    assert f"there are {MAX_PROFILES + 1} profiles" in text
    assert f"takes {MAX_PROFILES} at most" in text
    assert "--max-profiles" in text
    assert ask(full, "PUT", "/profiles/profile-7", put)[0] == 200
    assert ask(full, "DELETE", "/profiles/profile-8")[0] == 200
    assert ask(full, "PUT", "/profiles/one-more", put)[0] == 200
    assert len(full.current.profiles) == MAX_PROFILES


@pytest.mark.parametrize("path", ["/weights/apply", "/weights/apply?replace=true"])
def test_a_document_is_counted_before_it_is_read(full: LiveWeights, path: str) -> None:
    body = document(many(1))
    body["profiles"] = {f"p{number}": 7 for number in range(20_000)}  # none of which is valid
    status, text = ask(full, "POST", path, body)
    assert (status, "there are 20000 profiles" in text) == (400, True), text
    assert full.current.version == 1


def test_a_document_of_many_policies_is_refused_before_it_is_spread(full: LiveWeights) -> None:
    """256 profiles of 60,000 numbers each would take 100 MiB."""
    policies = [f"p{number}" for number in range(60_000)]
    profiles = {f"x{number}": {"weights": {"p0": 1}} for number in range(MAX_PROFILES)}
    body = document(many(1)) | {"policies": policies, "profiles": profiles, "default_profile": "x0"}
    status, text = ask(full, "POST", "/weights/apply", body)
    assert (status, "policies has 60000 names, expected 1000 at most" in text) == (400, True), text


def test_a_file_with_too_many_profiles_is_refused_and_changes_nothing(full: LiveWeights) -> None:
    """They are counted before the first of them is looked at: none here is valid."""
    body = document(many(1)) | {"version": 2}
    body["profiles"] = {f"p{number}": 7 for number in range(100_000)}
    full.store.path.write_text(json.dumps(body))
    status, text = ask(full, "POST", "/weights/reload")
    assert (status, "there are 100000 profiles" in text) == (400, True), text
    assert ask(full, "PUT", "/profiles/profile-7", {"weights": {"b": 1}})[0] == 400
    assert full.current.version == 1


def test_a_server_may_take_more_or_fewer(tmp_path: Path) -> None:
    store = WeightsStore(tmp_path / "w.json", spec=SPEC, max_profiles=2)
    with pytest.raises(ProfileError, match=r"there are 3 profiles, .* takes 2 at most"):
        store.create(many(3))
    assert not store.path.exists()
    store.create(many(2))
    with pytest.raises(ProfileError, match="there are 3 profiles"):
        store.change(lambda now: edits.with_profile(now, "x", {"a": 1}))
    unlimited = WeightsStore(tmp_path / "w.json", spec=SPEC)
    unlimited.change(lambda now: edits.with_profile(now, "x", {"a": 1}))
    with pytest.raises(StoreFormatError, match="there are 3 profiles"):
        store.read()
    unlimited.change(lambda now: edits.without_profile(now, "x"))
    assert len(store.read().profiles) == 2


def refusals() -> dict[str, Callable[[ProfileSet], object]]:
    """Requests and changes that name what does not exist among many."""

    def asked(**preferences: object) -> Callable[[ProfileSet], object]:
        return lambda profiles: resolve(
            Preferences(**preferences),  # type: ignore[arg-type]
            spec=SPEC,
            profiles=profiles,
            model_names=("m",),
        )

    wrong_members = document(many(1)) | {"policies": [f"p{number}" for number in range(900)]}
    return {
        "a profile": asked(profile="profile"),
        "a profile of a model": asked(model="m@profile"),
        "a model": asked(model="n"),
        "a change": lambda profiles: edits.without_profile(profiles, "profile"),
        "a default": lambda profiles: from_document(
            document(profiles) | {"default_profile": "x" * 10_000}, source="w.json"
        ),
        "a name": lambda profiles: edits.with_profile(profiles, "x" * 100_000, {"a": 1}),
        "policies": lambda profiles: edits.merged(
            profiles,
            from_document(
                wrong_members | {"profiles": {"x": {"weights": {"p1": 1}}}, "default_profile": "x"},
                source="w.json",
            ),
            source="w.json",
        ),
    }


@pytest.mark.parametrize("what", refusals())
def test_a_refusal_is_short_however_many_profiles_there_are(what: str) -> None:
    profiles = many(10_000)
    with pytest.raises((RequestError, ValueError)) as caught:
        refusals()[what](profiles)
    assert 20 < len(str(caught.value)) < 1500


def test_a_list_of_names_is_whole_or_says_how_many_there_are() -> None:
    assert listed([]) == ""
    assert listed({"a": 1, "b": 2}) == "a, b"
    names = [f"n{number}" for number in range(MAX_NAMES)]
    assert listed(names) == ", ".join(names)
    assert listed([*names, "last"]) == ", ".join(names) + ", ... (21 in all)"
    assert len(listed(["x" * 10**6] * 10**4)) < 2000


def test_the_hash_of_a_set_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers to requests name it, and a set may hold megabytes of provenance."""
    profiles = many(3)
    wanted = profiles.sha256
    monkeypatch.setattr(store_profiles.json, "dumps", lambda *_, **__: pytest.fail("again"))
    assert profiles.sha256 == wanted
    monkeypatch.undo()
    assert json.loads(dump(profiles))["version"] == 1

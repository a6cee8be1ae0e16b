"""Versions say who made them and when; a signature counts for its own version only."""

from __future__ import annotations

import getpass
import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from prefmix.mixing.spec import MixtureSpec, Policy
from prefmix.weights.store.edits import with_profile
from prefmix.weights.store.errors import StoreFormatError
from prefmix.weights.store.format import MAX_AUTHOR_CHARS, from_document
from prefmix.weights.store.profiles import build_profile_set
from prefmix.weights.store.signing import signed
from prefmix.weights.store.store import WeightsStore
from prefmix.weights.store.text_tables import history_table

SPEC = MixtureSpec(policies=(Policy(name="a", model="x"), Policy(name="b", model="y")))


@pytest.fixture
def store(tmp_path: Path) -> WeightsStore:
    store = WeightsStore(tmp_path / "w.json", spec=SPEC)
    store.create(build_profile_set({}, SPEC))
    return store


def put(store: WeightsStore, a: float, *, by: str | None = None) -> None:
    store.change(lambda current: with_profile(current, "x", {"a": a, "b": 1}), by=by)


def test_each_version_keeps_its_author_and_its_time(store: WeightsStore) -> None:
    before = datetime.now(UTC).replace(microsecond=0)
    put(store, 1, by="ops")
    put(store, 2)
    store.rollback(2)
    entries = store.history()
    assert [entry.version for entry in entries] == [1, 2, 3, 4]
    signatures = [entry.signed for entry in entries]
    me = getpass.getuser()
    assert [each and each.by for each in signatures] == [me, "ops", me, me]
    for each in signatures:
        assert each is not None
        assert before <= datetime.fromisoformat(each.at) <= datetime.now(UTC)
    table = history_table(entries).splitlines()
    assert table[0].split() == ["version", "time", "by", "sha256", "default", "profiles"]
    assert re.match(r"2 +\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ +ops +[0-9a-f]{12} ", table[3])


def test_an_equal_content_is_not_signed_again(store: WeightsStore) -> None:
    put(store, 1, by="ops")
    content = store.path.read_bytes()
    put(store, 1, by="other")
    assert store.path.read_bytes() == content


def test_the_hash_is_of_the_content_alone(store: WeightsStore) -> None:
    put(store, 1, by="ops")
    first = store.read()
    assert first.sha256 == signed(first, by="someone else").sha256
    assert first == signed(first, by="someone else")


def test_files_without_a_signature_are_read(store: WeightsStore) -> None:
    put(store, 1)
    for file in (store.path, *store.path.with_name("w.json.history").glob("*.json")):
        document = json.loads(file.read_text())
        del document["changed"]
        file.write_text(json.dumps(document))
    assert [entry.signed for entry in store.history()] == [None, None]
    assert [line.split()[1:3] for line in history_table(store.history()).splitlines()[1:]] == [
        ["-", "-"],
        ["-", "-"],
    ]
    put(store, 2, by="ops")
    assert store.read().signed is not None


def test_a_file_that_was_edited_by_hand_is_nobody_s(store: WeightsStore) -> None:
    put(store, 1, by="ops")
    document = json.loads(store.path.read_text())
    document["version"] += 1
    document["profiles"]["x"]["weights"] = {"a": 0.25, "b": 0.75}
    store.path.write_text(json.dumps(document))
    assert store.read().version == 3
    assert store.read().signed is None


def test_a_name_of_many_lines_or_characters_stays_one_line(store: WeightsStore) -> None:
    put(store, 1, by="a\nb" + "x" * 500)
    signature = store.read().signed
    assert signature is not None
    assert signature.by == ("a?b" + "x" * 500)[:MAX_AUTHOR_CHARS]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ("me", "changed is 'me'"),
        ({"version": 1, "at": "now"}, "changed: by is missing"),
        ({"version": "1", "at": "now", "by": "me"}, "changed.version is '1'"),
        ({"version": 1, "at": 5, "by": "me"}, "changed.at is 5"),
        ({"version": 1, "at": "now", "by": "me\nme"}, "changed.by is 'me\\nme'"),
        ({"version": 1, "at": "now", "by": "x" * 129}, "changed.by is 'xxx"),
        ({"version": 1, "at": "now", "by": "me", "why": ""}, "changed: unknown key 'why'"),
    ],
)
def test_a_signature_of_another_form_is_refused(changed: Any, message: str) -> None:
    document = {
        "format": 1,
        "version": 1,
        "policies": ["a", "b"],
        "default_profile": "x",
        "profiles": {"x": {"weights": {"a": 0.5, "b": 0.5}}},
        "changed": changed,
    }
    with pytest.raises(StoreFormatError, match=re.escape(message)):
        from_document(document, source="w.json")

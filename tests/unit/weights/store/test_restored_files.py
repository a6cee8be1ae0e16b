"""A file that is put in place of the store: no version number ever returns with other content."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from prefmix.weights.store import durable_file
from prefmix.weights.store.edits import with_profile
from prefmix.weights.store.errors import (
    StaleVersionError,
    StoreError,
    StoreFormatError,
    StoreReadOnlyError,
)
from prefmix.weights.store.format import MAX_VERSION, dump, spec_of_members
from prefmix.weights.store.numbering import Served
from prefmix.weights.store.profiles import ProfileSet, build_profile_set
from prefmix.weights.store.store import WeightsStore

SPEC = spec_of_members(["a", "b"])


def put(store: WeightsStore, a: float, *, expected: str | None = None) -> ProfileSet:
    change = store.change(lambda now: with_profile(now, "x", {"a": a, "b": 1}), expected=expected)
    return change.after


@pytest.fixture
def store(tmp_path: Path) -> WeightsStore:
    """A store at version 6."""
    store = WeightsStore(tmp_path / "w.json", spec=SPEC)
    store.create(build_profile_set({}, SPEC))
    for a in range(1, 6):
        put(store, a)
    return store


def restore(store: WeightsStore, version: int) -> None:
    shutil.copy(store.path.with_name("w.json.history") / f"{version}.json", store.path)


@pytest.mark.parametrize("version", [1, 3, 5])
def test_a_restored_file_counts_as_a_version_above_all(store: WeightsStore, version: int) -> None:
    """No server is running, so that only the files know of version 6."""
    seen = store.read()
    content = store.read_version(version)
    kept = {number: store.read_version(number).sha256 for number in store.versions()}
    restore(store, version)
    found = store.read()
    assert (found.version, found.sha256) == (7, content.sha256)
    with pytest.raises(StaleVersionError, match="the store is at version 7"):
        put(store, 9, expected="6")
    with pytest.raises(StaleVersionError):
        put(store, 9, expected=seen.sha256)
    assert put(store, 9, expected="7").version == 8
    for number, sha256 in kept.items():
        assert store.read_version(number).sha256 == sha256, "the history is never overwritten"
    assert store.read_version(7).sha256 == content.sha256


def test_a_start_writes_a_restored_file_anew(store: WeightsStore) -> None:
    restore(store, 3)
    taken = store.create(build_profile_set({}, SPEC))
    assert (taken.version, taken.weights("x")) == (7, {"a": 2 / 3, "b": 1 / 3})
    assert json.loads(store.path.read_text())["version"] == 7
    assert store.take_up() == store.read() == taken
    restore(store, 3)
    assert store.create(taken).version == 8


def test_a_server_keeps_what_a_restored_file_displaced(store: WeightsStore) -> None:
    served = Served(in_force=store.read())
    restore(store, 2)
    assert store.take_up(served).version == 7
    assert store.versions() == [1, 2, 3, 4, 5, 6]
    assert store.read_version(6) == served.in_force
    assert store.rollback().after.sha256 == served.in_force.sha256


def test_equal_content_keeps_its_number(store: WeightsStore) -> None:
    """A backup of what is in force is no change, whatever its number."""
    put(store, 4)
    assert store.read().sha256 == store.read_version(5).sha256, "version 7 is version 5 again"
    served = Served(in_force=store.read())
    restore(store, 5)
    assert store.take_up(served) == served.in_force
    assert json.loads(store.path.read_text())["version"] == 7


def test_a_lost_history_does_not_bring_a_number_back(store: WeightsStore) -> None:
    """A running server remembers; so does the note in what is left of the history."""
    copy = store.path.read_bytes()
    served = Served(in_force=put(store, 9))
    history = store.path.with_name("w.json.history")
    for path in history.glob("*.json"):
        path.unlink()
    store.path.write_bytes(copy)
    assert store.read().version == 8
    shutil.rmtree(history)
    assert store.read(served=served).version == 8
    assert store.take_up(served).version == 8
    shutil.rmtree(history)
    assert put(store, 10).version == 9


def test_a_used_number_is_refused_for_other_content_by_changes_too(store: WeightsStore) -> None:
    other = build_profile_set({"z": {"a": 1}}, SPEC, version=3)
    store.path.write_text(dump(other))
    for call in (
        store.read,
        store.take_up,
        lambda: put(store, 1),
        lambda: store.change(lambda now: now, dry_run=True),
    ):
        with pytest.raises(StoreFormatError, match="version is 3, but that number has been used"):
            call()
    assert json.loads(store.path.read_text())["version"] == 3
    repaired = store.rollback()
    assert repaired.after.version > 6
    assert repaired.set_aside is not None
    assert "z" in repaired.set_aside.read_text()


def test_a_write_that_was_cut_short_is_no_restored_file(store: WeightsStore) -> None:
    """A writer was killed after it had kept version 6 and before it wrote version 7."""
    (store.path.with_name("w.json.history") / "6.json").write_bytes(store.path.read_bytes())
    assert store.read().version == 6
    assert put(store, 9, expected="6").version == 7


def test_where_nothing_can_be_written_a_file_has_the_number_that_it_says(
    store: WeightsStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A ConfigMap that is put back: no change can be made there that a number could confuse."""
    served = Served(in_force=store.read())
    restore(store, 2)
    real = os.open

    def read_only(path: object, flags: int, *rest: int) -> int:
        if flags & (os.O_RDWR | os.O_WRONLY | os.O_CREAT):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return real(path, flags, *rest)

    monkeypatch.setattr(durable_file.os, "open", read_only)
    taken = store.take_up(served)
    assert (taken.version, taken.sha256) == (2, store.read_version(2).sha256)
    with pytest.raises(StoreReadOnlyError):
        put(store, 1)


@pytest.mark.parametrize(
    "name", ["007.json", "-1.json", "9" * 40 + ".json", "٣.json", "x.json", "0.json", ".json"]
)
def test_other_names_in_the_history_are_no_versions(store: WeightsStore, name: str) -> None:
    (store.path.with_name("w.json.history") / name).write_text("{}")
    assert store.versions() == [1, 2, 3, 4, 5]
    assert put(store, 9).version == 7


def test_a_history_that_cannot_be_listed_stops_no_change(
    store: WeightsStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The change is written by then: an error would leave it out of force."""

    def fail(path: object) -> list[str]:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("prefmix.weights.store.files.os.listdir", fail)
    assert put(store, 9).version == 7
    assert store.read().version == 7


@pytest.mark.parametrize("note", [b"", b"x", b"-3", b"9" * 100, b"\xff\xfe", b"7 8"])
def test_a_note_of_the_newest_number_that_says_nothing_is_passed_over(
    store: WeightsStore, note: bytes
) -> None:
    (store.path.with_name("w.json.history") / "newest").write_bytes(note)
    assert store.read().version == 6
    assert put(store, 9).version == 7


@pytest.mark.parametrize("version", [2**53, 2**63, 2**64, 10**400])
def test_a_number_that_not_every_reader_holds_is_refused(store: WeightsStore, version: int) -> None:
    good = json.loads(store.path.read_text())
    store.path.write_text(json.dumps({**good, "version": version}))
    with pytest.raises(
        StoreFormatError, match=r"version is \d+(\.\.\.)?, expected \d+ at most"
    ) as caught:
        store.read()
    assert len(str(caught.value)) < 500
    store.path.write_text(json.dumps({**good, "version": MAX_VERSION}))
    assert store.read().version == MAX_VERSION
    with pytest.raises(StoreFormatError, match=r"would break the store: .*version is"):
        put(store, 1)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_text("{"),
        lambda path: path.write_bytes(b'"\xff"'),
        lambda path: path.write_text('{"format": 1, "format": 1}'),
        lambda path: path.write_text(path.read_text().replace('"version": 4', '"version": 5')),
        lambda path: path.write_text('{"a": ' * 5000),
        lambda path: (path.unlink(), os.mkfifo(path)),
        lambda path: (path.unlink(), path.mkdir()),
        lambda path: (path.unlink(), path.symlink_to(path)),
        lambda path: (path.unlink(), path.symlink_to("/dev/zero")),
        lambda path: os.truncate(path, 10 * 2**30),
    ],
)
def test_a_spoiled_entry_of_the_history_stops_nothing(
    store: WeightsStore, spoil: Callable[[Path], object]
) -> None:
    spoil(store.path.with_name("w.json.history") / "4.json")
    assert [entry.version for entry in store.history()] == [1, 2, 3, 5, 6]
    with pytest.raises(StoreError):
        store.rollback(4)
    assert put(store, 9).version == 7


def test_a_store_that_was_lost_begins_above_its_history(store: WeightsStore) -> None:
    """A server that starts without its file makes a new one; the history keeps its numbers."""
    store.path.unlink()
    initial = build_profile_set({"new": {"b": 1}}, SPEC)
    assert store.create(initial).version == 7
    assert put(store, 3, expected="7").version == 8
    assert [entry.version for entry in store.history()] == [1, 2, 3, 4, 5, 7, 8]

"""The store: versions, no lost update, refusals that keep the old version."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from prefmix.mixing.spec import MixtureSpec, Policy
from prefmix.weights.store import durable_file
from prefmix.weights.store.change import Rollback
from prefmix.weights.store.edits import (
    merged,
    replaced,
    with_default,
    with_profile,
    without_profile,
)
from prefmix.weights.store.errors import (
    StaleVersionError,
    StoreBusyError,
    StoreError,
    StoreFileError,
    StoreFormatError,
    StoreMissingError,
    UnknownEntryError,
)
from prefmix.weights.store.format import spec_of_members
from prefmix.weights.store.numbering import Served
from prefmix.weights.store.profiles import ProfileError, ProfileSet, build_profile_set
from prefmix.weights.store.store import WeightsStore
from prefmix.weights.store.text_tables import difference_table

SPEC = MixtureSpec(policies=(Policy(name="a", model="x"), Policy(name="b", model="y")))


@pytest.fixture
def store(tmp_path: Path) -> WeightsStore:
    """A new store with the uniform profile, version 1."""
    store = WeightsStore(tmp_path / "w.json", spec=SPEC)
    store.create(build_profile_set({}, SPEC))
    return store


def put(store: WeightsStore, a: float, *, name: str = "x", expected: str | None = None) -> int:
    """Sets one profile and returns the store's version."""
    change = store.change(
        lambda current: with_profile(current, name, {"a": a, "b": 1}), expected=expected
    )
    return change.after.version


def test_missing_store_is_created_once(tmp_path: Path) -> None:
    store = WeightsStore(tmp_path / "w.json", spec=SPEC)
    with pytest.raises(StoreMissingError, match=r"w\.json does not exist"):
        store.read()
    first = store.create(build_profile_set({}, SPEC, version=9))
    assert (first.version, first.profiles) == (1, {"default": (0.5, 0.5)})
    again = store.create(build_profile_set({"other": {"a": 1}}, SPEC))
    assert again == first == store.read()


def test_versions_grow_by_one_and_are_kept(store: WeightsStore) -> None:
    assert [put(store, a) for a in (1, 2, 3)] == [2, 3, 4]
    assert store.versions() == [1, 2, 3]
    assert [entry.version for entry in store.history()] == [1, 2, 3, 4]
    assert store.read_version(2).weights("x") == {"a": 0.5, "b": 0.5}
    assert store.read().weights("x") == {"a": 0.75, "b": 0.25}


def test_equal_content_changes_nothing(store: WeightsStore) -> None:
    put(store, 2)
    before = {path: path.stat().st_mtime_ns for path in store.path.parent.rglob("*.json")}
    change = store.change(lambda current: with_profile(current, "x", {"a": 20, "b": 10}))
    assert change.is_noop
    assert change.after.version == 2
    assert {path: path.stat().st_mtime_ns for path in store.path.parent.rglob("*.json")} == before


def test_dry_run_checks_and_writes_nothing(store: WeightsStore) -> None:
    def edit(current: ProfileSet) -> ProfileSet:
        return with_profile(current, "x", {"a": 1})

    change = store.change(edit, dry_run=True)
    assert (change.after.version, change.is_noop) == (2, False)
    assert (store.read().version, store.versions()) == (1, [])
    with pytest.raises(ProfileError, match="'c'"):
        store.change(lambda current: with_profile(current, "x", {"c": 1}), dry_run=True)


def test_stale_expectation_is_refused(store: WeightsStore) -> None:
    seen = store.read().sha256
    assert put(store, 1, expected="1") == 2
    for stale in ("1", seen, "nonsense"):
        with pytest.raises(StaleVersionError, match="version 2"):
            put(store, 5, expected=stale)
    assert put(store, 2, expected=store.read().sha256) == 3
    assert put(store, 3, expected="*") == 4


def test_rollback_is_a_new_version_with_old_content(store: WeightsStore) -> None:
    put(store, 1)
    put(store, 2)
    change = store.rollback()
    assert change.after.version == 4
    assert store.read().sha256 == store.read_version(2).sha256
    assert store.rollback(3).after.version == 5
    assert store.read().sha256 == store.read_version(3).sha256
    assert store.rollback(5).is_noop
    with pytest.raises(UnknownEntryError, match="version 77 is not kept; kept are: 1, 2, 3, 4"):
        store.rollback(77)


def test_rollback_without_history_says_so(store: WeightsStore) -> None:
    with pytest.raises(UnknownEntryError, match="none"):
        store.rollback()


def test_a_history_is_read_one_version_at_a_time(
    store: WeightsStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fifty versions of megabytes each would be gigabytes at once."""
    for a in (1, 2, 3):
        put(store, a)
    read: list[int] = []
    real = WeightsStore.read_version
    monkeypatch.setattr(
        WeightsStore, "read_version", lambda self, number: read.append(number) or real(self, number)
    )
    entries = store.each_version()
    assert read == []
    assert next(entries).version == 1
    assert read == [1]
    assert [entry.version for entry in entries] == [2, 3, 4]


def test_history_is_bounded(tmp_path: Path) -> None:
    store = WeightsStore(tmp_path / "w.json", spec=SPEC, history_limit=3)
    store.create(build_profile_set({}, SPEC))
    for a in range(1, 8):
        put(store, a)
    assert (store.versions(), store.read().version) == ([5, 6, 7], 8)


def test_changes_of_profiles_and_default(store: WeightsStore) -> None:
    put(store, 3)
    store.change(lambda current: with_default(current, "x"))
    with pytest.raises(ProfileError, match="'x' is the default"):
        store.change(lambda current: without_profile(current, "x"))
    store.change(lambda current: without_profile(current, "default"))
    with pytest.raises(UnknownEntryError, match="'default' does not exist; the profiles are: x"):
        store.change(lambda current: with_default(current, "default"))
    assert (store.read().default, list(store.read().profiles)) == ("x", ["x"])


def test_merging_keeps_the_default_and_replacing_does_not() -> None:
    ours = build_profile_set(
        {"x": {"a": 1}, "y": {"b": 1}}, SPEC, default="x", provenance={"x": {"old": 1}}, version=5
    )
    fit = build_profile_set({"x": {"a": 1, "b": 1}}, SPEC, provenance={"x": {"seed": 1}})
    both = merged(ours, fit, source="fit.json")
    assert (both.default, both.version, both.weights("x")) == ("x", 5, {"a": 0.5, "b": 0.5})
    assert (list(both.profiles), both.provenance) == (["x", "y"], {"x": {"seed": 1}})
    assert list(replaced(ours, fit, source="fit.json").profiles) == ["x"]
    plain = build_profile_set({"x": {"b": 1}}, SPEC)
    assert merged(ours, plain, source="fit.json").provenance == {}, "the old origin is untrue now"
    mixed = build_profile_set({"x": {"a": 1}}, SPEC, mixings={"x": "parameters"})
    taken = merged(ours, mixed, source="fit.json")
    assert taken.mixings == {"x": "parameters"}
    assert with_profile(taken, "z", {"a": 1}, mixing="logits").mixings["z"] == "logits"
    for removed in (merged(taken, plain, source="fit.json"), with_profile(taken, "x", {"a": 1})):
        assert removed.mixings == {}, "the new weights leave it to the server"
    assert without_profile(with_default(taken, "y"), "x").mixings == {}
    assert "(mixing)" in difference_table(taken, ours)
    foreign = build_profile_set({}, spec_of_members(["a", "c"]))
    with pytest.raises(StoreFormatError, match=r"fit\.json: policies are a, c"):
        merged(ours, foreign, source="fit.json")


def test_a_store_for_other_policies_is_refused_and_kept(tmp_path: Path) -> None:
    other = WeightsStore(tmp_path / "w.json")
    other.create(build_profile_set({}, spec_of_members(["a", "c"])))
    text = other.path.read_text()
    ours = WeightsStore(other.path, spec=SPEC)
    for call in (ours.read, lambda: put(ours, 1), lambda: ours.create(other.read())):
        with pytest.raises(StoreFormatError, match="other policies"):
            call()
    assert other.path.read_text() == text


def test_a_broken_file_is_never_overwritten(store: WeightsStore) -> None:
    store.path.write_text('{"format": 1,\n}')
    with pytest.raises(StoreFormatError, match="line 2 column 1"):
        put(store, 1)
    assert store.path.read_text() == '{"format": 1,\n}'


BROKEN = '{"format": 1, "version": 3, "policies": ["a"'


def test_a_rollback_repairs_a_broken_file_and_keeps_it(store: WeightsStore) -> None:
    put(store, 1)
    put(store, 2)
    store.path.write_text(BROKEN)
    with pytest.raises(StoreFormatError, match=r"not JSON.*'prefmix weights rollback' returns"):
        put(store, 1)
    tried = store.rollback(dry_run=True)
    assert store.path.read_text() == BROKEN
    change = store.rollback()
    assert change == tried
    # The broken file had number 3, which may be in force somewhere with other content.
    assert (change.before, change.after.version) == (store.read_version(2), 4)
    assert store.read() == change.after
    assert change.after.sha256 == store.read_version(2).sha256
    assert change.set_aside == store.path.with_name("w.json.broken.4")
    assert change.set_aside.read_text() == BROKEN
    assert store.versions() == [1, 2]
    assert put(store, 7) == 5


@pytest.mark.parametrize(
    ("text", "version"), [("", 4), (BROKEN.replace("3", "90"), 91), ('{"version": -5}', 4)]
)
def test_a_repair_counts_on_from_whatever_number_was_used(
    store: WeightsStore, text: str, version: int
) -> None:
    put(store, 1)
    put(store, 2)
    store.path.write_text(text)
    assert store.rollback(1).after.version == version
    assert store.read().sha256 == store.read_version(1).sha256


def test_a_repair_returns_to_what_is_in_force_and_then_keeps_it(store: WeightsStore) -> None:
    put(store, 1)
    in_force = store.read()
    store.path.write_text(BROKEN)
    change = store.change(Rollback(store), served=Served(in_force=in_force))
    assert (change.after.version, change.after.sha256) == (4, in_force.sha256)
    assert store.versions() == [1, 2]


def test_a_repair_skips_what_cannot_be_read_either(store: WeightsStore) -> None:
    put(store, 1)
    put(store, 2)
    (store.path.parent / "w.json.history" / "2.json").write_text("{")
    store.path.write_text(BROKEN)
    with pytest.raises(UnknownEntryError, match=r"version 2 is not kept; kept are: 1$"):
        store.rollback(2)
    with pytest.raises(StaleVersionError, match="expected 3, but the store is at version 1"):
        store.rollback(expected="3")
    with pytest.raises(StaleVersionError, match="expected an empty text, but the store is"):
        store.rollback(expected="")
    assert store.path.read_text() == BROKEN
    assert store.rollback().after.sha256 == store.read_version(1).sha256


def test_a_broken_file_without_history_stays(store: WeightsStore) -> None:
    store.path.write_text(BROKEN)
    with pytest.raises(StoreFormatError, match="there is no earlier version to return to"):
        store.rollback()
    assert [path.name for path in store.path.parent.glob("*.broken*")] == []


def test_a_repair_that_cannot_keep_the_broken_file_changes_nothing(
    store: WeightsStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(store, 1)
    store.path.write_text(BROKEN)

    def full(path: Path, content: bytes, **more: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("prefmix.weights.store.files.replace_file", full)
    with pytest.raises(StoreFileError, match=r"w\.json\.broken\.4: No space left.*nothing was"):
        store.rollback()
    assert store.path.read_text() == BROKEN


def test_a_folder_a_pipe_and_a_missing_folder_are_refused(tmp_path: Path) -> None:
    initial = build_profile_set({}, SPEC)
    folder = WeightsStore(tmp_path, spec=SPEC)
    with pytest.raises(StoreFileError, match=str(tmp_path)):
        folder.create(initial)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(StoreFileError, match="not a regular file"):
        WeightsStore(tmp_path / "pipe").read()
    with pytest.raises(StoreFileError, match=r"the folder .* does not exist; make it"):
        WeightsStore(tmp_path / "no" / "w.json").create(initial)


def test_a_link_is_followed_and_rights_are_kept(store: WeightsStore, tmp_path: Path) -> None:
    store.path.chmod(0o640)
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "elsewhere" / "link.json"
    link.symlink_to(store.path)
    assert put(WeightsStore(link, spec=SPEC), 1) == 2
    assert link.is_symlink()
    assert (store.read().version, store.path.stat().st_mode & 0o777) == (2, 0o640)
    assert store.versions() == [1], "one store has one history, whatever name was used"


@pytest.mark.parametrize(
    ("call", "place"),
    [
        ("open", ".lock"),
        ("open", "history/.2.json.new"),
        ("open", "/.w.json.new"),
        ("fsync", "history/.2.json.new"),
        ("fsync", "/.w.json.new"),
        ("rename", "history/.2.json.new"),
        ("rename", "/.w.json.new"),
    ],
)
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_each_step_of_a_write_may_fail(
    store: WeightsStore, monkeypatch: pytest.MonkeyPatch, call: str, place: str, number: int
) -> None:
    put(store, 1)
    text = store.path.read_text()
    real = getattr(os, call)
    failed = []

    def fail(subject: object, *rest: object) -> object:
        path = os.readlink(f"/proc/self/fd/{subject}") if isinstance(subject, int) else subject
        if str(path).endswith(place):
            failed.append(path)
            raise OSError(number, os.strerror(number))
        return real(subject, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(durable_file.os, call, fail)
        with pytest.raises(StoreFileError) as caught:
            put(store, 2)
    assert len(failed) == 1
    assert os.strerror(number) in str(caught.value)
    assert "version 2 is kept" in str(caught.value) or place == ".lock"
    assert store.path.read_text() == text
    assert [path.name for path in store.path.parent.rglob("*.new")] == []
    assert put(store, 2) == 3, "the store works again once the disk does"


def test_a_disk_that_does_not_confirm_is_reported(
    store: WeightsStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder's sync fails after the rename, so the new version is on the disk."""
    real = durable_file.sync_folder

    def fail(folder: Path) -> None:
        if folder == store.path.parent:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(folder)

    monkeypatch.setattr(durable_file, "sync_folder", fail)
    with pytest.raises(StoreFileError, match="now holds version 2, but the disk did not confirm"):
        put(store, 1)
    assert store.read().version == 2


def test_a_full_disk_keeps_the_old_version(store: WeightsStore) -> None:
    """The kernel limits every file to little more than the store's size."""
    script = """
import resource, signal, sys
from pathlib import Path
from prefmix.weights.store.edits import with_profile
from prefmix.weights.store.store import WeightsStore
store = WeightsStore(Path(sys.argv[1]))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
limit = store.path.stat().st_size + 10
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    store.change(lambda current: with_profile(current, "much-longer", {"a": 1, "b": 2}))
except ValueError as error:
    print(error)
"""
    run = subprocess.run(
        [sys.executable, "-c", script, str(store.path)], capture_output=True, text=True, timeout=60
    )
    assert "File too large; version 1 is kept" in run.stdout, run.stderr
    assert store.read().version == 1
    assert not list(store.path.parent.glob(".*.new"))


@pytest.mark.skipif(
    os.geteuid() != 0
    or subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode != 0,
    reason="needs the right to mount",
)
@pytest.mark.parametrize("kind", ["full", "read-only"])
def test_a_real_file_system_that_is_full_or_read_only(tmp_path: Path, kind: str) -> None:
    """The store lies on a tmpfs of 64 KiB in a mount namespace of its own."""
    script = f"""
set -e
mount -t tmpfs -o size=64k tmpfs {tmp_path}
cd {tmp_path}
{sys.executable} - <<'END'
import os
from prefmix.weights.store.edits import with_profile
from prefmix.weights.store.profiles import build_profile_set
from prefmix.weights.store.store import WeightsStore
from prefmix.weights.store.format import spec_of_members
store = WeightsStore("w.json")
store.create(build_profile_set({{}}, spec_of_members(["a", "b"])))
before = open("w.json", "rb").read()
if {kind!r} == "full":
    with open("filler", "wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 4096)
        except OSError:
            pass
else:
    assert os.system("mount -o remount,ro {tmp_path}") == 0
try:
    store.change(lambda current: with_profile(current, "x", {{"a": 1}}))
except ValueError as error:
    print(error)
assert open("w.json", "rb").read() == before
assert store.read().version == 1
print("kept")
END
"""
    run = subprocess.run(
        ["unshare", "-m", "bash", "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[4])},
    )
    message, kept = run.stdout.splitlines() or ("", run.stderr)
    assert kept == "kept", run.stderr
    reason = "No space left on device" if kind == "full" else "Read-only file system"
    assert reason in message


def test_a_lock_that_is_kept_is_reported(store: WeightsStore, tmp_path: Path) -> None:
    hasty = WeightsStore(store.path, spec=SPEC, lock_timeout_s=0.05)
    with (
        durable_file.file_lock(tmp_path / "w.json.lock", timeout_s=1),
        pytest.raises(StoreBusyError, match=r"w\.json\.lock for 0\.05 s"),
    ):
        put(hasty, 1)
    assert put(hasty, 1) == 2


def test_a_prepared_change_is_written_only_by_commit(store: WeightsStore) -> None:
    def edit(current: ProfileSet) -> ProfileSet:
        return with_profile(current, "x", {"a": 1})

    with store.prepared(edit) as change:
        assert store.read().version == 1
    assert store.read().version == 1
    with store.prepared(edit) as change:
        store.commit(change)
        assert store.read() == change.after
    assert (change.after.version, store.versions()) == (2, [1])


def test_a_change_that_the_format_cannot_carry_is_refused(store: WeightsStore) -> None:
    with pytest.raises(StoreError, match="would break the store"):
        store.change(lambda current: replace(current, default="nobody"))
    assert json.loads(store.path.read_text())["version"] == 1


def test_full_checkpoints_take_no_profile_that_mixes_parameters(
    store: WeightsStore, tmp_path: Path
) -> None:
    """Neither by a change nor from the file: every request of the profile would be refused."""
    with pytest.raises(ProfileError, match=r"profile 'p': mixing: full checkpoints"):
        store.change(lambda current: with_profile(current, "p", {"a": 1}, mixing="parameters"))
    assert store.read().version == 1
    outside = WeightsStore(store.path)
    outside.change(lambda current: with_profile(current, "p", {"a": 1}, mixing="parameters"))
    with pytest.raises(StoreFormatError, match=r"w\.json: profile 'p': mixing: full checkpoints"):
        store.read()
    assert store.change(Rollback(store, 1)).after.mixings == {}

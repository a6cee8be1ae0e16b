"""Files that someone has planted beside the store, and files that root has written."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from prefmix.mixing.spec import MixtureSpec, Policy
from prefmix.weights.store.added import AddedPolicy
from prefmix.weights.store.change import Rollback
from prefmix.weights.store.durable_file import file_lock, replace_file
from prefmix.weights.store.edits import with_policy, with_profile
from prefmix.weights.store.errors import StoreError, StoreFileError
from prefmix.weights.store.format import MAX_BYTES, spec_of_members
from prefmix.weights.store.numbering import Served
from prefmix.weights.store.profiles import build_profile_set
from prefmix.weights.store.store import WeightsStore

SPEC = spec_of_members(["a", "b"])
SECRET = "the content of another file"


@pytest.fixture
def store(tmp_path: Path) -> WeightsStore:
    """A store at version 2, in a folder of its own."""
    (tmp_path / "store").mkdir()
    store = WeightsStore(tmp_path / "store" / "w.json", spec=SPEC, lock_timeout_s=0.2)
    store.create(build_profile_set({}, SPEC))
    assert put(store, 1) == 2
    return store


def put(store: WeightsStore, a: float) -> int:
    change = store.change(lambda now: with_profile(now, "x", {"a": a, "b": 1}))
    return change.after.version


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """A file that the server may write, and should not."""
    path = tmp_path / "target"
    path.write_text(SECRET)
    return path


@pytest.mark.parametrize("link", [os.symlink, os.link])
@pytest.mark.parametrize(
    "name", [".w.json.new", "w.json.history/.2.json.new", "w.json.history/.newest.new"]
)
def test_nothing_is_written_through_a_planted_temporary_file(
    store: WeightsStore, target: Path, name: str, link: Callable[[Path, Path], None]
) -> None:
    link(target, store.path.parent / name)
    assert put(store, 5) == 3
    assert target.read_text() == SECRET
    assert store.read().version == 3
    assert not store.path.is_symlink()


@pytest.mark.parametrize("name", ["w.json.history/2.json", "w.json.history/newest"])
def test_a_planted_entry_of_the_history_is_replaced_not_followed(
    store: WeightsStore, target: Path, name: str
) -> None:
    (store.path.parent / name).unlink(missing_ok=True)
    (store.path.parent / name).symlink_to(target)
    assert put(store, 5) == 3
    assert target.read_text() == SECRET


def test_a_planted_history_is_refused(store: WeightsStore, target: Path, tmp_path: Path) -> None:
    """A link to a folder elsewhere, in which numbered files would be overwritten."""
    history = store.path.with_name("w.json.history")
    history.rename(tmp_path / "away")
    (tmp_path / "others").mkdir()
    history.symlink_to(tmp_path / "others")
    with pytest.raises(StoreFileError, match=r"cannot make .*w\.json\.history: it is not a folder"):
        put(store, 5)
    assert list((tmp_path / "others").iterdir()) == []


@pytest.mark.parametrize(
    "plant",
    [
        lambda path, target: path.symlink_to(target),
        lambda path, target: path.symlink_to(target.with_name("new")),
        lambda path, target: path.mkdir(),
        lambda path, target: os.mkfifo(path),
        lambda path, target: path.symlink_to("/dev/tty"),
    ],
)
def test_a_planted_lock_is_refused_at_once(
    store: WeightsStore, target: Path, plant: Callable[[Path, Path], None]
) -> None:
    lock = store.path.with_name("w.json.lock")
    lock.unlink()
    plant(lock, target)
    with pytest.raises(StoreFileError, match=r"w\.json\.lock"):
        put(store, 5)
    assert target.read_text() == SECRET
    assert not target.with_name("new").exists()
    assert store.read().version == 2


def test_a_lock_that_is_removed_while_it_is_waited_for_is_not_held(tmp_path: Path) -> None:
    """Else two writers would each hold a lock of that name."""
    path = tmp_path / "lock"
    script = (
        "import sys; from pathlib import Path\n"
        "from prefmix.weights.store.durable_file import file_lock\n"
        "print('waiting', flush=True)\n"
        "with file_lock(Path(sys.argv[1]), timeout_s=30):\n"
        "    print('held', flush=True)\n"
    )
    words = [sys.executable, "-c", script, str(path)]
    with contextlib.ExitStack() as stack:
        stack.enter_context(file_lock(path, timeout_s=1))
        waiter = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        assert waiter.stdout is not None
        assert waiter.stdout.readline() == "waiting\n"
        time.sleep(0.2)  # until it has opened the file
        path.unlink()
        with file_lock(path, timeout_s=10):
            stack.close()
            says, _, _ = select.select([waiter.stdout], [], [], 0.5)
            assert not says, "the removed file is free, but another holds the lock"
    with waiter:
        assert waiter.stdout.readline() == "held\n"


def test_a_link_to_no_store_is_not_repaired(store: WeightsStore, target: Path) -> None:
    """A rollback of what cannot be read would overwrite whatever the link points to."""
    good = store.read()
    link = target.with_name("link.json")
    link.symlink_to(target)
    linked = WeightsStore(link, spec=SPEC)
    history = store.path.with_name("w.json.history")
    with pytest.raises(StoreFileError, match="to which it links, is not a store"):
        linked.change(Rollback(linked), served=Served(in_force=good))
    assert target.read_text() == SECRET
    assert history.is_dir()


def test_a_rollback_over_a_huge_sparse_file_keeps_it(store: WeightsStore) -> None:
    """100 GB of nothing are not read; the file gets the second name."""
    good = store.read()
    with store.path.open("wb") as file:
        file.truncate(100 * 10**9)
    with pytest.raises(StoreError, match=f"more than {MAX_BYTES // 2**20} MiB"):
        put(store, 1)
    change = store.rollback()
    assert change.set_aside is not None
    assert change.set_aside.stat().st_size == 100 * 10**9
    assert store.read() == change.after
    assert change.after.version > good.version


def test_a_successor_has_the_rights_of_the_file_and_nothing_more(tmp_path: Path) -> None:
    path = tmp_path / "w.json"
    path.write_text("old")
    path.chmod(0o4750)
    replace_file(path, b"new")
    assert path.stat().st_mode & 0o7777 == 0o640


def test_history_and_lock_have_the_rights_of_the_store(store: WeightsStore) -> None:
    folder = store.path.parent
    for path in (folder / "w.json.history").iterdir():
        path.unlink()
    (folder / "w.json.history").rmdir()
    (folder / "w.json.lock").unlink()
    store.path.chmod(0o600)
    assert put(store, 7) == 3
    modes = {path.name: path.stat().st_mode & 0o777 for path in folder.rglob("*")}
    assert modes == {
        "w.json": 0o600,
        "w.json.lock": 0o600,
        "w.json.history": 0o700,
        "2.json": 0o600,
        "newest": 0o600,
    }


def test_files_with_system_texts_are_for_owner_and_group_alone(store: WeightsStore) -> None:
    folder, base = store.path.parent, Policy(name="base", model="org/base")
    spec = MixtureSpec(policies=(Policy(name="a", model="x"),), reference=base, base="org/base")
    store.path.unlink()
    store = WeightsStore(store.path, spec=spec, takes_added=True)
    store.create(build_profile_set({}, spec))
    store.path.chmod(0o664)

    def told(name: str, text: str) -> int:
        policy = AddedPolicy.of(system=text)
        return store.change(lambda now: with_policy(now, name, policy, spec=spec)).after.version

    def rights(path: Path) -> int:
        return path.stat().st_mode & 0o777

    first = told("kind", "Be kind.")
    kept = folder / "w.json.history"
    assert (rights(store.path), rights(kept / f"{first - 1}.json")) == (0o660, 0o664)
    store.path.chmod(0o644)
    told("brief", "Be brief.")
    assert (rights(store.path), rights(kept / f"{first}.json")) == (0o640, 0o640)
    store.path.write_bytes(store.path.read_bytes()[:-9])
    store.path.chmod(0o644)
    change = store.change(Rollback(store, first))
    assert change.set_aside is not None
    assert (rights(change.set_aside), b"Be kind." in change.set_aside.read_bytes()) == (0o640, True)
    store.path.unlink()  # without a model
    store.change(Rollback(store, first))
    assert rights(store.path) == 0o600


def test_a_broken_file_that_is_kept_has_the_rights_of_the_store(store: WeightsStore) -> None:
    store.path.write_text("{")
    store.path.chmod(0o600)
    aside = store.change(Rollback(store, 1)).set_aside
    assert aside is not None
    assert aside.stat().st_mode & 0o777 == 0o600


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
SERVER = 54321


def as_server(folder: Path, script: str) -> str:
    """Runs a script as a user without rights of its own; `store` is the store."""
    whole = (
        f"import os, sys\nos.setgid({SERVER})\nos.setuid({SERVER})\n"
        "from prefmix.weights.store.edits import with_policy, with_profile\n"
        "from prefmix.weights.store.format import spec_of_members\n"
        "from prefmix.weights.store.profiles import build_profile_set\n"
        "from prefmix.weights.store.store import WeightsStore\n"
        "store = WeightsStore('w.json')\n"
        "put = lambda a: store.change(lambda n: with_profile(n, 'x', {'a': a, 'b': 1}))\n" + script
    )
    # From a copy of the path, as the interpreter's own folders may be closed to that user.
    run = subprocess.run(
        [sys.executable, "-c", "import sys\n" + PRELOAD + whole],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


PRELOAD = (
    "import prefmix.weights.store.store, prefmix.weights.store.edits, json, random, tempfile\n"
)


@pytest.fixture
def served_folder(tmp_path: Path) -> Path:
    """A folder of the server's user, all above it open to that user."""
    folder = tmp_path / "served"
    folder.mkdir()
    os.chown(folder, SERVER, SERVER)
    for parent in folder.parents:
        if parent.stat().st_uid == 0 and not parent.stat().st_mode & 0o001:
            parent.chmod(parent.stat().st_mode | 0o001)
    return folder


@needs_root
@pytest.mark.parametrize("maker", ["server", "root"])
def test_root_leaves_the_files_to_the_server(served_folder: Path, maker: str) -> None:
    store = WeightsStore(served_folder / "w.json")
    if maker == "root":
        store.create(build_profile_set({}, SPEC))
    else:
        as_server(served_folder, "store.create(build_profile_set({}, spec_of_members(['a', 'b'])))")
    assert put(store, 3) == 2, "root edits the file, as an operator in a container does"
    assert as_server(served_folder, "print(put(5).after.version)") == "3"
    assert put(store, 7) == 4
    assert as_server(served_folder, "print(store.rollback(2).after.version)") == "5"
    owners = {path.name: path.stat().st_uid for path in served_folder.rglob("*")}
    assert set(owners.values()) == {SERVER}, owners


@needs_root
def test_a_lock_that_another_user_owns_is_held_all_the_same(served_folder: Path) -> None:
    script = "store.create(build_profile_set({}, spec_of_members(['a', 'b'])))\n"
    (served_folder / "w.json.lock").touch(mode=0o644)
    assert as_server(served_folder, script + "print(put(5).after.version)") == "2"

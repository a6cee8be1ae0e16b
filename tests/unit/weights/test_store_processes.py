"""The store under several processes and under kill -9: no update is lost, nothing is torn."""

from __future__ import annotations

import itertools
import random
import subprocess
import sys
import time
from pathlib import Path

from weights.profiles import build_profile_set
from weights.store import WeightsStore
from weights.store_format import spec_of_members

WRITER = """
import sys
from weights.changes import with_profile
from weights.store import WeightsStore
path, name, first, last = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
store = WeightsStore(path, history_limit=1000)
print("ready", flush=True)
for number in range(first, last):
    step = {"step": number}
    change = store.change(
        lambda p: with_profile(p, name, {"a": 1 + number, "b": 1}, provenance=step)
    )
    print(change.after.version, flush=True)
"""
PADDING = {"text": "x" * 20_000}
"""Makes the file larger than a page, so that a torn write would show."""


def new_store(folder: Path) -> WeightsStore:
    store = WeightsStore(folder / "w.json", history_limit=1000)
    spec = spec_of_members(["a", "b"])
    store.create(build_profile_set({}, spec, provenance={"default": PADDING}))
    return store


def start(store: WeightsStore, name: str, first: int, last: int) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", WRITER, str(store.path), name, str(first), str(last)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True)


def test_two_writers_lose_no_update(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    writers = [start(store, name, 0, 100) for name in ("x", "y")]
    answers = [writer.communicate(timeout=60)[0].split()[1:] for writer in writers]
    assert [writer.returncode for writer in writers] == [0, 0]
    versions = [[int(word) for word in words] for words in answers]
    for own in versions:
        assert own == sorted(set(own)), "versions strictly increase for each writer"
    assert sorted([*versions[0], *versions[1]]) == list(range(2, 202)), "each number was given once"
    entries = store.history()
    assert [entry.version for entry in entries] == list(range(1, 202))
    for before, after in itertools.pairwise(entries):
        changed = {
            name
            for name in after.profiles
            if before.provenance.get(name) != after.provenance.get(name)
        }
        assert len(changed) == 1, "every version is its predecessor with one update"
    assert store.read().provenance["x"] == store.read().provenance["y"] == {"step": 99}


def test_kill_9_leaves_the_old_version_or_the_new(tmp_path: Path) -> None:
    """A writer is killed at random instants until 200 writes are done; each time all is whole."""
    store = new_store(tmp_path)
    rng = random.Random(0)
    done, kills = 0, 0
    deadline = time.monotonic() + 40
    while done < 200 and time.monotonic() < deadline:
        with start(store, "x", done, 200) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "ready\n"
            time.sleep(rng.uniform(0, 0.06))
            writer.kill()
            said = [int(word) for word in writer.stdout.read().split()]
        kills += 1

        current = store.read()
        if said:
            assert current.version in (said[-1], said[-1] + 1), "what was confirmed is there"
        assert current.provenance["default"] == PADDING
        step = current.provenance.get("x", {}).get("step", -1)
        assert current.version == step + 2, "one version a step: none lost, none doubled"
        assert step in (done - 1, *range(done, 200))
        done = step + 1
        # Everything that bears a version's name is whole and holds that version.
        for version in store.versions():
            assert store.read_version(version).version == version
        assert set(range(1, current.version)) <= set(store.versions())
        # The present version may have been copied already for a successor that never came.
        assert set(store.versions()) <= set(range(1, current.version + 1))
        assert store.history()[-1] == current
    assert (done, kills > 4) == (200, True)
    assert store.change(lambda profiles: profiles).is_noop, "no lock is left behind"

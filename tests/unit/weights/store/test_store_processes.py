"""The store under several processes and under kill -9: no update is lost, nothing is torn."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

from support.store_writer import kill_a_writer, new_store, start


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
    while done < 200:
        done = kill_a_writer(store, rng, done=done, last=200)
        kills += 1
    assert (done, kills > 4) == (200, True)
    assert store.change(lambda profiles: profiles).is_noop, "no lock is left behind"

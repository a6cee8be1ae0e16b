"""A process that writes a store until it is killed, and checks of the store after that."""

from __future__ import annotations

import itertools
import random
import subprocess
import sys
import time
from pathlib import Path

from prefmix.weights.store.format import spec_of_members
from prefmix.weights.store.profiles import build_profile_set
from prefmix.weights.store.store import WeightsStore

WRITER = """
import sys
from prefmix.weights.store.edits import with_profile
from prefmix.weights.store.store import WeightsStore
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
    """A store at version 1."""
    store = WeightsStore(folder / "w.json", history_limit=1000)
    spec = spec_of_members(["a", "b"])
    store.create(build_profile_set({}, spec, provenance={"default": PADDING}))
    return store


def start(store: WeightsStore, name: str, first: int, last: int) -> subprocess.Popen[str]:
    """Starts a writer of one version for each number; it says `ready`, then each version."""
    words = [sys.executable, "-c", WRITER, str(store.path), name, str(first), str(last)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True)


def kill_a_writer(store: WeightsStore, rng: random.Random, *, done: int, last: int) -> int:
    """Kills a writer at a random instant after some changes and checks its files.

    Args:
      store: made by `new_store`, written by such writers only.
      rng: for the instant.
      done: numbers written so far.
      last: the number at which the writer would end by itself.
    Returns: the count of numbers written by then.
    Raises: AssertionError if anything is lost or torn.
    """
    with start(store, "x", done, last) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
        confirmed = list(itertools.islice(writer.stdout, rng.randrange(30)))
        time.sleep(rng.uniform(0, 0.005))  # into the midst of the next change or two
        writer.kill()
        said = [int(word) for word in (*confirmed, *writer.stdout.read().split())]

    current = store.read()
    if said:
        assert current.version in (said[-1], said[-1] + 1), "what was confirmed is there"
    assert current.provenance["default"] == PADDING
    step = current.provenance.get("x", {}).get("step", -1)
    assert current.version == step + 2, "one version a step: none lost, none doubled"
    assert step in (done - 1, *range(done, last))
    # Everything that bears a version's name is whole and holds that version.
    for version in store.versions():
        assert store.read_version(version).version == version
    assert set(range(1, current.version)) <= set(store.versions())
    # The present version may have been copied already for a successor that never came.
    assert set(store.versions()) <= set(range(1, current.version + 1))
    assert store.history()[-1] == current
    return int(step) + 1

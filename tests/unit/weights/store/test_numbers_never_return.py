"""Servers, commands, restarts and restored files in any order: one number means one content."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from prefmix.weights.store.edits import with_profile
from prefmix.weights.store.format import spec_of_members
from prefmix.weights.store.numbering import Served
from prefmix.weights.store.profiles import ProfileSet, build_profile_set
from prefmix.weights.store.store import WeightsStore

SPEC = spec_of_members(["a", "b"])
STEPS = 60


class World:
    """One store, a server and a command that change it, and someone who puts files in its place."""

    def __init__(self, folder: Path, rng: random.Random) -> None:
        self.rng = rng
        self.store = WeightsStore(folder / "w.json", spec=SPEC, history_limit=5)
        self.backups: list[Path] = []
        self.content_of: dict[int, str] = {}
        self.in_force = self.store.create(build_profile_set({}, SPEC))
        self.note(self.in_force)

    def note(self, profiles: ProfileSet) -> None:
        """Notes a set that was in force or on the disk. Raises: AssertionError."""
        known = self.content_of.setdefault(profiles.version, profiles.sha256)
        assert known == profiles.sha256, f"version {profiles.version} has had other content"

    def edit(self, profiles: ProfileSet) -> ProfileSet:
        return with_profile(profiles, "x", {"a": self.rng.randint(1, 3), "b": 1})

    def served(self) -> Served:
        return Served(in_force=self.in_force)

    def server_changes(self) -> None:
        change = self.store.change(self.edit, served=self.served())
        assert change.before is not None
        self.note(change.before)
        self.take(change.after)

    def command_changes(self) -> None:
        change = self.store.change(self.edit)
        self.note(change.after)

    def server_reloads(self) -> None:
        self.take(self.store.take_up(self.served()))

    def server_restarts(self) -> None:
        self.take(self.store.create(build_profile_set({}, SPEC)))

    def someone_copies(self) -> None:
        backup = self.store.path.with_name(f"backup-{len(self.backups)}")
        shutil.copy(self.store.path, backup)
        self.backups.append(backup)

    def someone_restores(self) -> None:
        history = self.store.path.with_name("w.json.history")
        files = [*history.glob("*.json"), *self.backups]
        if files:
            shutil.copy(self.rng.choice(sorted(files)), self.store.path)

    def someone_looks(self) -> None:
        assert self.store.read() == self.store.read()

    def take(self, profiles: ProfileSet) -> None:
        """Puts a set in force. Raises: AssertionError if a number goes down."""
        assert profiles.version >= self.in_force.version
        self.note(profiles)
        self.in_force = profiles


@pytest.mark.parametrize("seed", range(8))
def test_one_number_means_one_content_and_none_goes_down(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    world = World(tmp_path, rng)
    steps = [
        *(world.server_changes,) * 2,
        world.command_changes,
        world.server_reloads,
        world.server_restarts,
        world.someone_copies,
        *(world.someone_restores,) * 2,
        world.someone_looks,
    ]
    taken = []
    for _ in range(STEPS):
        step = rng.choice(steps)
        taken.append(step.__name__)
        try:
            step()
        except AssertionError as error:
            raise AssertionError(f"{error}, after {taken}") from None
    assert len(world.content_of) > 5

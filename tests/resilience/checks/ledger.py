"""The versions of the profiles in a run: their content, and when each can have been in force.

Changes are made one at a time, so that the versions which an answer may report are known exactly.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

from prefmix.weights.store.edits import with_profile
from prefmix.weights.store.store import WeightsStore
from resilience.harness.asked_server import Answer
from resilience.harness.demo_server import MEMBERS, DemoServer
from resilience.inputs.shapes import LASTING, PASSING

_VISIBLE_WITHIN_S = 60.0


@dataclass(kw_only=True)
class Version:
    """One set of profiles; times are monotonic seconds."""

    number: int
    profiles: dict[str, dict[str, float]]
    default: str
    first_possible_at: float
    """The moment at which the change to this version was sent."""
    last_possible_at: float = float("inf")
    """The moment at which the next version was known to be in force."""


class Ledger:
    """Makes changes, one after another, and notes what each has put in force."""

    def __init__(self, demo: DemoServer, *, seed: int) -> None:
        self.demo = demo
        self.versions: dict[int, Version] = {}
        self.results: Counter[str] = Counter()
        """Answers of the admin routes that change something: ok, unchanged, refused."""
        self.num_swaps = 0
        """Changes made in the file, past the server."""
        self._rng = random.Random(seed)
        self._store = WeightsStore(demo.store)
        self._note(time.monotonic())

    def change(self) -> None:
        """Makes one change of a kind drawn by the seed; some change nothing, some are refused."""
        ways = (self._put, self._put, self._put, self._delete, self._default, self._roll_back,
                self._swap_file, self._stale)  # fmt: skip
        began = time.monotonic()
        self._rng.choice(ways)()
        self._note(began)

    def explain(self, version: int, *, sent_at: float, head_at: float) -> str:
        """The reason for which an answer's version is impossible; empty if it is possible."""
        found = self.versions.get(version)
        if found is None:
            return f"version {version} has never existed"
        if found.first_possible_at > head_at:
            return f"version {version} did not exist yet"
        if found.last_possible_at < sent_at:
            return f"version {version} had been replaced before the request was sent"
        return ""

    def weights_header(self, version: int, profile: str) -> str | None:
        """The `x-prefmix-weights` of a profile; None if the version lacks the profile."""
        weights = self.versions[version].profiles.get(profile)
        if weights is None:
            return None
        return ",".join(f"{name}={weights[name]:.9g}" for name in MEMBERS)

    def _note(self, began: float) -> None:
        shown = self.demo.admin("GET", "/weights").body
        number, now = shown["version"], time.monotonic()
        if number in self.versions:
            return
        for version in self.versions.values():
            version.last_possible_at = min(version.last_possible_at, now)
        self.versions[number] = Version(
            number=number,
            profiles={name: entry["weights"] for name, entry in shown["profiles"].items()},
            default=shown["default_profile"],
            first_possible_at=began,
        )

    def _count(self, answer: Answer) -> None:
        if answer.status == 200:
            self.results["ok" if answer.body["changed"] else "unchanged"] += 1
        else:
            assert answer.status in (400, 404, 412), answer
            self.results["refused"] += 1

    def _ratios(self) -> dict[str, int]:
        return {name: self._rng.randint(0, 20) for name in MEMBERS[:3]} | {"reference": 1}

    def _put(self) -> None:
        name = self._rng.choice(LASTING + PASSING)
        body = {"weights": self._ratios(), "provenance": {"by": "the mixed run"}}
        self._count(self.demo.admin("PUT", f"/profiles/{name}", body))

    def _delete(self) -> None:
        self._count(self.demo.admin("DELETE", f"/profiles/{self._rng.choice(PASSING)}"))

    def _default(self) -> None:
        self._count(self.demo.admin("PUT", "/default", {"profile": self._rng.choice(LASTING)}))

    def _roll_back(self) -> None:
        kept = self._store.versions()
        body: dict[str, Any] = {"version": self._rng.choice(kept[-5:])} if kept else {}
        self._count(self.demo.admin("POST", "/weights/rollback", body))

    def _stale(self) -> None:
        body = {"weights": self._ratios()}
        answer = self.demo.admin("PUT", "/profiles/balanced", body, **{"If-Match": '"0"'})
        assert answer.status == 412, answer
        self._count(answer)

    def _swap_file(self) -> None:
        """Changes the file as a second writer, and waits until the server's watch takes it up."""
        name, ratios = self._rng.choice(PASSING), self._ratios()
        change = self._store.change(lambda current: with_profile(current, name, ratios))
        self.num_swaps += not change.is_noop
        deadline = time.monotonic() + _VISIBLE_WITHIN_S
        while self.demo.admin("GET", "/weights").body["version"] != change.after.version:
            assert time.monotonic() < deadline, "a file put in place was not taken up"
            time.sleep(0.02)

"""One server, two writers of its store, and steps in an order drawn by a seed.

    python -m resilience.scenarios.interleaving [--steps 600] [--restarts 4] [--record]

Requests that stream while weights change, changes of every kind, stale and refused ones, files
swapped, broken, lost and repaired, SIGHUP, two writers at once, clients that hang up, the whole
server killed and started again; after every step all promises are checked (promises.py).
"""

from __future__ import annotations

import random
import signal
import statistics
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from prefmix.weights.store import edits
from prefmix.weights.store.change import Change
from prefmix.weights.store.format import document
from prefmix.weights.store.profiles import ProfileSet
from prefmix.weights.store.store import WeightsStore
from resilience.checks.promises import Model, Stream, check, shown, wait_in_force
from resilience.harness.asked_server import Answer
from resilience.harness.demo_server import MEMBERS, DemoServer, running
from resilience.harness.report import publish, run_parser, table
from resilience.inputs.shapes import LASTING, PASSING
from support.admin_server import wait

_MAX_STREAMS = 6


class Interleaving:
    """The steps; each updates the model to the expected state of the server."""

    def __init__(self, demo: DemoServer, *, seed: int) -> None:
        self.demo = demo
        self.rng = random.Random(seed)
        self.model = Model(shown(demo))
        self.taken: Counter[str] = Counter()
        self.ready_s: list[float] = []
        self._store = WeightsStore(demo.store)
        self._steps: tuple[Callable[[], None], ...] = (
            *(self.put_profile,) * 3,
            self.delete_profile,
            self.choose_default,
            self.apply_document,
            self.roll_back,
            self.be_stale,
            self.rehearse,
            self.be_refused,
            self.swap_file,
            self.race,
            self.break_file,
            self.lose_file,
            self.restore_file,
            self.hang_up_signal,
            self.reload,
            *(self.open_stream,) * 2,
            self.finish_stream,
            self.leave_stream,
        )

    def step(self) -> None:
        """Takes one step and checks everything."""
        chosen = self.rng.choice(self._steps)
        self.taken[chosen.__name__.replace("_", " ")] += 1
        chosen()
        check(self.demo, self.model)

    def kill_and_restart(self) -> None:
        """Kills the whole server; after a restart the same profiles are in force.

        Half of the times an earlier file is put back meanwhile, which then counts as a new version.
        """
        self.taken["kill and restart"] += 1
        self.demo.kill()
        restored = self._put_earlier_back() if self.rng.random() < 0.5 else None
        for stream in self.model.streams:
            stream.hang_up()
        self.model.streams.clear()
        self.demo.start()
        self.ready_s.append(self.demo.ready_s)
        self.model.last_reload_successful = True
        if restored is not None:
            self.model.put_in_force(replace(restored, version=self.model.in_force.version + 1))
        check(self.demo, self.model)

    def end(self) -> None:
        """Reads every open stream to its end."""
        while self.model.streams:
            self.finish_stream()
        self.demo.settle()
        check(self.demo, self.model)

    # --- changes over HTTP -------------------------------------------------------------------

    def put_profile(self) -> None:
        name, ratios = self._name(), self._ratios()
        self._changed(
            self.demo.admin("PUT", f"/profiles/{name}", {"weights": ratios}, **self._if_match()),
            edits.with_profile(self.model.in_force, name, ratios),
        )

    def delete_profile(self) -> None:
        name = self.rng.choice(PASSING)
        answer = self.demo.admin("DELETE", f"/profiles/{name}", **self._if_match())
        if name not in self.model.in_force.profiles:
            assert answer.status == 404, answer
        else:
            self._changed(answer, edits.without_profile(self.model.in_force, name))

    def choose_default(self) -> None:
        name = self.rng.choice(LASTING)
        answer = self.demo.admin("PUT", "/default", {"profile": name}, **self._if_match())
        self._changed(answer, edits.with_default(self.model.in_force, name))

    def apply_document(self) -> None:
        fresh = edits.with_profile(self.model.in_force, self._name(), self._ratios())
        self._changed(self.demo.admin("POST", "/weights/apply", document(fresh)), fresh)

    def roll_back(self) -> None:
        kept = [number for number in self._store.versions() if number < self.model.in_force.version]
        body = {"version": self.rng.choice(kept)} if kept and self.rng.random() < 0.5 else None
        answer = self.demo.admin("POST", "/weights/rollback", body)
        if not kept:
            assert answer.status == 404, answer
        else:
            self._changed(answer, self._store.read_version(body["version"] if body else max(kept)))

    def be_stale(self) -> None:
        seen = self.rng.choice(['"0"', f'"{"0" * 64}"', str(self.model.in_force.version + 1)])
        answer = self.demo.admin(
            "PUT", f"/profiles/{self._name()}", {"weights": self._ratios()}, **{"If-Match": seen}
        )
        assert answer.status == 412, answer

    def rehearse(self) -> None:
        """Asks for a dry run, which must change nothing."""
        path = f"/profiles/{self._name()}?dry_run=true"
        answer = self.demo.admin("PUT", path, {"weights": self._ratios()})
        assert (answer.status, answer.body["dry_run"]) == (200, True), answer

    def be_refused(self) -> None:
        method, path, body = self.rng.choice(
            [
                ("PUT", "/profiles/x", {"weights": {"nobody": 1}}),
                ("PUT", "/profiles/x", {"weights": {"polite": -1}}),
                ("PUT", "/profiles/custom", {"weights": {"polite": 1}}),
                ("PUT", "/profiles/a%20b", {"weights": {"polite": 1}}),
                ("PUT", "/default", {"profile": "nobody"}),
                ("DELETE", f"/profiles/{self.model.in_force.default}", None),
                ("POST", "/weights/apply", {"format": 2}),
                ("POST", "/weights/rollback", {"version": 10**6}),
            ]
        )
        assert self.demo.admin(method, path, body).status in (400, 404)

    def reload(self) -> None:
        answer = self.demo.admin("POST", "/weights/reload")
        assert (answer.status, answer.body["changed"]) == (200, False), answer
        self.model.last_reload_successful = True

    # --- the file ----------------------------------------------------------------------------

    def swap_file(self) -> None:
        """Changes the file as a second writer; the watch, SIGHUP or a reload takes it up."""
        change = self._write()
        if not change.is_noop:
            way = self.rng.randrange(3)
            if way == 1:
                self.demo.server.process.send_signal(signal.SIGHUP)
            elif way == 2:
                assert self.demo.admin("POST", "/weights/reload").status == 200
            self.model.put_in_force(wait_in_force(self.demo, change.after.version))
            assert self.model.in_force == change.after
        self.model.last_reload_successful = True

    def race(self) -> None:
        """Lets both writers change the store at once: two versions, and neither change is lost."""
        made: list[Change] = []
        names = self.rng.sample(PASSING, 2)
        stamp = {"stamp": self.rng.random()}
        ratios = self._ratios()
        writer = threading.Thread(
            target=lambda: made.append(
                self._store.change(
                    lambda old: edits.with_profile(old, names[0], ratios, provenance=stamp)
                )
            )
        )
        writer.start()
        body = {"weights": ratios, "provenance": stamp}
        answer = self.demo.admin("PUT", f"/profiles/{names[1]}", body)
        writer.join()
        assert answer.status == 200, answer
        numbers = {answer.body["version"], made[0].after.version}
        first = self.model.in_force.version
        assert numbers == {first + 1, first + 2}, "each number is given once"
        found = wait_in_force(self.demo, first + 2)
        assert found.provenance[names[0]] == found.provenance[names[1]] == stamp
        self.model.contents[made[0].after.version] = made[0].after.sha256
        self.model.put_in_force(found)
        self._wait_reloaded()

    def break_file(self) -> None:
        good = self.demo.store.read_bytes()
        wreck = self.rng.choice(
            [good[: len(good) // 2], b"", b"\0" * 50, b"[]", good.replace(b'"weights"', b'"wait"')]
        )
        self.demo.store.write_bytes(wreck)
        self._unreadable(400)
        if self.rng.random() < 0.5:
            self._restored(good)
            return
        answer = self.demo.admin("POST", "/weights/rollback")
        assert answer.status == 200, answer
        assert answer.body["set_aside"] is not None
        self.model.is_file_good = True
        wanted = replace(self.model.in_force, version=answer.body["version"])
        self.model.put_in_force(wanted)
        self._wait_reloaded()

    def lose_file(self) -> None:
        good = self.demo.store.read_bytes()
        self.demo.store.unlink()
        self._unreadable(409)
        self._restored(good)

    def restore_file(self) -> None:
        """Puts an earlier version's file back: its content is a version above all seen."""
        before = self.model.in_force
        restored = self._put_earlier_back()
        if restored is None:
            return
        is_new = restored.sha256 != before.sha256
        stale = self.demo.admin("PUT", "/default", {"profile": LASTING[0]}, **{"If-Match": '"0"'})
        assert stale.status == 412, stale
        assert self.demo.admin("POST", "/weights/reload").status == 200
        found = wait_in_force(self.demo, before.version + is_new)
        assert found == replace(restored, version=before.version + is_new)
        self.model.put_in_force(found)
        self._wait_reloaded()

    def hang_up_signal(self) -> None:
        """Sends SIGHUP for a file that has not changed."""
        self.demo.server.process.send_signal(signal.SIGHUP)
        self.model.last_reload_successful = True

    # --- requests under way ------------------------------------------------------------------

    def open_stream(self) -> None:
        if len(self.model.streams) == _MAX_STREAMS:
            self.finish_stream()
        stream = Stream.open(self.demo)
        assert stream.version == self.model.in_force.version
        self.model.streams.append(stream)

    def finish_stream(self) -> None:
        if self.model.streams:
            self.model.streams.pop(self.rng.randrange(len(self.model.streams))).finish()

    def leave_stream(self) -> None:
        if self.model.streams:
            self.model.streams.pop(self.rng.randrange(len(self.model.streams))).hang_up()

    # -----------------------------------------------------------------------------------------

    def _changed(self, answer: Answer, wanted: ProfileSet) -> None:
        """Checks the answer to a change that had to succeed."""
        before = self.model.in_force
        assert answer.status == 200, answer
        is_noop = wanted.sha256 == before.sha256
        assert answer.body["changed"] is not is_noop
        number = before.version + (not is_noop)
        assert (answer.body["version"], answer.body["previous_version"]) == (number, before.version)
        self.model.put_in_force(replace(wanted, version=number))
        assert answer.body["sha256"] == self.model.in_force.sha256

    def _unreadable(self, status: int) -> None:
        """Checks that every reader reports the unreadable file, and that nothing changes."""
        self.model.is_file_good = False
        self.model.last_reload_successful = False
        answer = self.demo.admin("POST", "/weights/reload")
        assert answer.status == status, answer
        assert str(self.demo.store) in answer.body["error"]["message"]
        put = self.demo.admin("PUT", "/profiles/passing-1", {"weights": {"polite": 1}})
        assert put.status == status, put
        check(self.demo, self.model)

    def _restored(self, content: bytes) -> None:
        aside = self.demo.store.with_name("aside")
        aside.write_bytes(content)
        aside.rename(self.demo.store)
        answer = self.demo.admin("POST", "/weights/reload")
        assert (answer.status, answer.body["changed"]) == (200, False), answer
        self.model.is_file_good = True
        self._wait_reloaded()

    def _put_earlier_back(self) -> ProfileSet | None:
        """Copies a file of the history over the store. Returns: its content; None without one."""
        kept = [number for number in self._store.versions() if number < self.model.in_force.version]
        if not kept:
            return None
        number = self.rng.choice(kept)
        content = self._store.read_version(number)
        history = self.demo.store.with_name(f"{self.demo.store.name}.history")
        aside = self.demo.store.with_name("aside")
        aside.write_bytes((history / f"{number}.json").read_bytes())
        aside.rename(self.demo.store)
        return content

    def _wait_reloaded(self) -> None:
        """Waits until the watch, too, has seen that the file is good."""
        wait(
            lambda: self.demo.metrics()["prefmix_weights_last_reload_successful", frozenset()] == 1
        )
        self.model.last_reload_successful = True

    def _write(self) -> Change:
        name, ratios = self._name(), self._ratios()
        return self._store.change(lambda old: edits.with_profile(old, name, ratios))

    def _name(self) -> str:
        return self.rng.choice(LASTING + PASSING)

    def _ratios(self) -> dict[str, int]:
        return {name: self.rng.randint(0, 3) for name in MEMBERS[:3]} | {"reference": 1}

    def _if_match(self) -> dict[str, str]:
        current = self.model.in_force
        way = self.rng.randrange(3)
        seen = ("", f'"{current.sha256}"', str(current.version))[way]
        return {"If-Match": seen} if seen else {}


def run(
    demo: DemoServer, *, num_steps: int, num_restarts: int, seed: int = 0
) -> tuple[str, dict[str, Any]]:
    """Takes the steps, restarts spread evenly. Returns: a table, and the figures.

    Raises: AssertionError with the step, if a promise is broken.
    """
    walk = Interleaving(demo, seed=seed)
    check(demo, walk.model)
    restarts = {num_steps * (number + 1) // (num_restarts + 1) for number in range(num_restarts)}
    began = time.monotonic()
    for number in range(num_steps):
        try:
            if number in restarts:
                walk.kill_and_restart()
            walk.step()
        except AssertionError as error:
            last = [*walk.taken.elements()][-1:]
            raise AssertionError(f"seed {seed}, step {number} ({last}): {error}") from error
    walk.end()
    figures = {
        "steps": num_steps,
        "seconds": round(time.monotonic() - began, 1),
        "versions": walk.model.in_force.version,
        "restarts": num_restarts,
        "ready_s_median": round(statistics.median(walk.ready_s), 1) if walk.ready_s else None,
        "by_step": dict(sorted(walk.taken.items())),
    }
    rows: list[tuple[object, ...]] = [("step", "times"), *sorted(walk.taken.items())]
    return table(rows), figures


def main() -> int:
    """Runs the command; returns the exit code."""
    parser = run_parser(__doc__)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--restarts", type=int, default=4)
    args = parser.parse_args()
    with running() as demo:
        text, figures = run(demo, num_steps=args.steps, num_restarts=args.restarts, seed=args.seed)
    publish("interleaving", text, figures, record=args.record)
    return 0


if __name__ == "__main__":
    sys.exit(main())

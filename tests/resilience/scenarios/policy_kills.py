"""Servers that are killed at random instants while their policies change, and start again.

    python -m resilience.scenarios.policy_kills [--kills 50] [--record]

A stream of additions, replacements and removals runs without a pause, and all processes of the
server get SIGKILL at an instant that is drawn. The next server has the policies of the last change
that was answered, or those of the change after it; it names them, and its answers are exact.
"""

from __future__ import annotations

import http.client
import random
import statistics
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from prefmix.mixing.ways_to_mix import MIXINGS
from prefmix.weights.store.store import WeightsStore
from resilience.harness.policy_server import BASE, CONTENTS, OWN, PolicyServer, completion, served
from resilience.harness.policy_traffic import prompts
from resilience.harness.report import publish, run_parser, table
from support.exactness import TOLERANCE_NATS, Job, Oracle

_NAMES = ("careful", "brief")
_LONGEST_S = 1.5
"""A kill comes this long after the first change at most: after none of them, or dozens."""

Contents = Mapping[str, str]


class Stream:
    """Changes in a thread, one after the other, until the server does not answer."""

    def __init__(self, server: PolicyServer, contents: Contents, rng: random.Random) -> None:
        self.answered = dict(contents)
        """The added policies after the last change that was answered."""
        self.asked: Contents | None = None
        """The added policies after the change that had no answer; None if there was none."""
        self.num_answered = 0
        self.failure: BaseException | None = None
        self._server, self._rng = server, rng
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def join(self) -> None:
        """Waits for the end. Raises: what a change raised that the kill does not explain."""
        self._thread.join()
        if self.failure is not None:
            raise self.failure

    def _run(self) -> None:
        try:
            while True:
                method, path, body, following = self._drawn()
                self.asked = following
                try:
                    answer = self._server.admin(method, path, body)
                except (OSError, http.client.HTTPException, ValueError):
                    return
                assert answer.status == 200, answer
                self.answered, self.asked = dict(following), None
                self.num_answered += 1
        except BaseException as error:
            self.failure = error

    def _drawn(self) -> tuple[str, str, Any, Contents]:
        name = self._rng.choice(_NAMES)
        path = f"/policies/{name}"
        if name in self.answered and self._rng.random() < 0.4:
            left = {key: each for key, each in self.answered.items() if key != name}
            return "DELETE", path, None, left
        steps = [f"step-{number}" for number in range(len(CONTENTS))]
        step = self._rng.choice([each for each in steps if each != self.answered.get(name)])
        return "PUT", path, {"adapter": step}, {**self.answered, name: step}


def run(server: PolicyServer, *, times: int, seed: int = 0) -> tuple[str, dict[str, Any]]:
    """Kills a server as often as asked. Returns: a table, and the figures.

    Raises: AssertionError if a change is lost or seen half, or a server does not start.
    """
    rng = random.Random(seed)
    found: Counter[str] = Counter()
    ready_s = []
    num_answered = 0
    try:
        server.start()
        for name in _added(server).keys() - set(_NAMES):  # of a run before
            assert server.admin("DELETE", f"/policies/{name}").status == 200
        contents = _added(server)
        for _ in range(times):
            stream = Stream(server, contents, rng)
            time.sleep(rng.uniform(0.0, _LONGEST_S))
            server.kill()
            stream.join()
            num_answered += stream.num_answered
            stored = _added(server)
            if stream.asked is None:
                found["between two changes"] += 1
            else:
                found["old" if stored == stream.answered else "new"] += 1
            assert stored in (stream.answered, stream.asked), (stored, stream.answered)
            contents = stored
            began = time.monotonic()
            server.start()
            ready_s.append(time.monotonic() - began)
            check(server, contents)
        assert (server.stop(), server.server.survivors()) == (0, [])
    finally:
        server.kill()
    figures = {
        "kills": times,
        "changes_answered": num_answered,
        **{f"kills_{kind.replace(' ', '_')}": number for kind, number in sorted(found.items())},
        "ready_s_median": round(statistics.median(ready_s), 1),
        "ready_s_max": round(max(ready_s), 1),
    }
    return table([("policy kills", ""), *figures.items()]), figures


def check(server: PolicyServer, contents: Contents) -> None:
    """Checks that a server has these policies: by name, in the store, and by its answers."""
    listed = server.admin("GET", "/policies").body
    named = {each["name"]: each.get("adapter") for each in listed["policies"] if each["added"]}
    assert named == contents
    assert listed["version"] == WeightsStore(server.store).read().version
    prompt = prompts()[0]
    weights = {OWN: 1.0, BASE: 1.0, **dict.fromkeys(contents, 1.0)}
    oracle = Oracle([server.truth[contents.get(name, name)] for name in weights])
    for mixing in MIXINGS:
        answer = server.complete(completion(prompt, weights, mixing))
        assert answer.status == 200, answer
        [choice] = answer.body["choices"]
        equal = (1 / len(weights),) * len(weights)
        errors = oracle.errors(
            Job(prompt=prompt, weights=equal, mixing=mixing),
            choice["token_ids"],
            choice["logprobs"]["token_logprobs"],
        )
        assert np.abs(errors).max() < TOLERANCE_NATS


def _added(server: PolicyServer) -> Contents:
    added = WeightsStore(server.store).read().added
    return {name: str(policy.adapter) for name, policy in added.items()}


def main() -> int:
    """Runs the command; returns the exit code."""
    parser = run_parser(__doc__)
    parser.add_argument("--kills", type=int, default=50)
    args = parser.parse_args()
    with served() as server:
        text, figures = run(server, times=args.kills, seed=args.seed)
    publish("policy_kills", text, figures, record=args.record)
    return 0


if __name__ == "__main__":
    sys.exit(main())

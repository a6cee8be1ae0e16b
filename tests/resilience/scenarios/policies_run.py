"""Policies that come, are replaced and go under load, in both ways to mix; then every account.

    python -m resilience.scenarios.policies_run [--changes 200] [--api-servers 2] [--engines 2]

16 clients name the policies that there are. No request fails that did not name a removed policy,
every answer is of a version that was in force when it was admitted, and is that of the adapters
which the version has, compared with merged checkpoints in transformers. Before and after each
change the same two requests are compared as well. Memory is measured under load, and over changes
alone. Prints a table, then one line of JSON.
"""

from __future__ import annotations

import asyncio
import random
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import Any

import numpy as np

from prefmix.mixing.ways_to_mix import MIXINGS
from resilience.checks.policy_ledger import PolicyLedger
from resilience.checks.resources import Sample, Sampler, sample
from resilience.checks.truth import differences
from resilience.harness.policy_server import (
    BASE,
    CONTENTS,
    NUM_SLOTS,
    OWN,
    PolicyServer,
    completion,
    served,
)
from resilience.harness.policy_traffic import Asked, PolicyTraffic, prompts
from resilience.harness.report import publish, run_parser, table
from support.exactness import TOLERANCE_NATS, Job, Oracle

_NAMES = ("careful", "brief", "kind", "new")
_MOST_AT_ONCE = NUM_SLOTS - 1
"""A replacement needs a slot beside the one that it leaves."""

_WAIT_S = 60.0

LIMIT_MIB_ALONE = 8.0
"""Largest growth of all processes over the second half of the changes without load."""

LIMIT_MIB = 64.0
"""Largest growth of all processes under load, from the second quarter to the last."""


class Changer:
    """Adds, replaces and removes policies in a drawn order, and writes down each answer."""

    def __init__(self, server: PolicyServer, ledger: PolicyLedger, *, seed: int) -> None:
        self.results: Counter[str] = Counter()
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self._server, self._ledger = server, ledger
        self._rng = random.Random(seed)

    def change(self) -> str:
        """Makes one change of a drawn kind; returns the name of the policy."""
        added = [name for name in self._ledger.contents if name not in (OWN, BASE)]
        kinds = ["replace", "replace", "remove"] if added else []
        if len(added) < _MOST_AT_ONCE:
            kinds += ["add", "add"]
        kind = self._rng.choice(kinds)
        if kind == "add":
            name = self._rng.choice([each for each in _NAMES if each not in added])
        else:
            name = self._rng.choice(added)
        began = time.monotonic()
        if kind == "remove":
            self._remove(name)
        else:
            before = self._ledger.contents.get(name)
            steps = [f"step-{number}" for number in range(len(CONTENTS))]
            self._put(name, self._rng.choice([each for each in steps if each != before]))
        self.seconds[kind].append(time.monotonic() - began)
        self.results[kind] += 1
        if self._rng.random() < 0.1:
            self._be_refused(name)
        return name

    def _put(self, name: str, content: str) -> None:
        contents = {**self._ledger.contents, name: content}
        self._confirmed("PUT", f"/policies/{name}", contents, {"adapter": content})

    def _remove(self, name: str) -> None:
        contents = {key: each for key, each in self._ledger.contents.items() if key != name}
        path = f"/policies/{name}"
        if self._rng.random() < 0.5:
            asked_at = time.monotonic()
            answer = self._server.admin("DELETE", path)
            if answer.status == 200:
                self._ledger.note(answer.body["version"], contents, asked_at=asked_at)
                return
            assert (answer.status, "drain=true" in str(answer.body)) == (503, True), answer
            self.results["removal refused, as requests use the policy"] += 1
        self._confirmed("DELETE", f"{path}?drain=true", contents)

    def _confirmed(self, method: str, path: str, contents: Any, body: Any = None) -> None:
        """Makes a change, again as long as requests use what has left the free slots."""
        until = time.monotonic() + _WAIT_S
        while True:
            asked_at = time.monotonic()
            answer = self._server.admin(method, path, body)
            if answer.status == 200:
                assert answer.body["changed"], answer
                self._ledger.note(answer.body["version"], contents, asked_at=asked_at)
                return
            is_busy = answer.status == 503 and "still use" in str(answer.body)
            assert (is_busy, time.monotonic() < until) == (True, True), answer
            self.results["put refused, as requests use the slots"] += 1

    def _be_refused(self, name: str) -> None:
        """Asks for what cannot be; nothing changes."""
        before = self._server.admin("GET", "/policies").body
        for method, path, body, status in (
            ("PUT", f"/policies/{name}", {"adapter": "../own"}, 400),
            ("PUT", f"/policies/{OWN}", {"adapter": "step-0"}, 400),
            ("DELETE", "/policies/nobody", None, 404),
        ):
            answer = self._server.admin(method, path, body)
            assert answer.status == status, answer
            self.results["refused as it should be"] += 1
        assert self._server.admin("GET", "/policies").body == before


class Probes:
    """Two requests with each change's policy, one for each way to mix, just before and after."""

    def __init__(self, server: PolicyServer, ledger: PolicyLedger) -> None:
        self.asked: list[Asked] = []
        self._server, self._ledger = server, ledger
        self._prompt = prompts()[0]

    def send(self, name: str) -> None:
        """Asks for a policy; it is unknown if the newest version lacks it."""
        is_there = name in self._ledger.contents
        for mixing in MIXINGS:
            asked = Asked(
                prompt=self._prompt,
                weights={OWN: 1.0, name: 1.0},
                mixing=mixing,
                sent_at=time.monotonic(),
                is_probe=True,
            )
            answer = self._server.complete(completion(self._prompt, asked.weights, mixing, seed=0))
            asked.head_at = time.monotonic()
            if not is_there:
                assert answer.status == 400, answer
                assert "unknown policy" in answer.body["error"]["message"], answer
                continue
            asked.status, asked.version = answer.status, 0
            assert answer.status == 200, answer
            asked.version = int(answer.headers["x-prefmix-weights-version"])
            # All changes before it have been answered, and no other is under way.
            assert asked.version == max(self._ledger.versions), answer.headers
            asked.used = {**dict.fromkeys(self._ledger.contents, 0.0), OWN: 0.5, name: 0.5}
            [choice] = answer.body["choices"]
            asked.tokens = choice["token_ids"]
            asked.logprobs = choice["logprobs"]["token_logprobs"]
            self.asked.append(asked)


def run(
    server: PolicyServer,
    *,
    num_changes: int,
    num_alone: int,
    warm_up_s: float,
    num_clients: int = 16,
    seed: int = 0,
    most_compared: int = 2000,
) -> tuple[str, dict[str, Any]]:
    """Runs the load and checks everything. Returns: a table, and the figures by name.

    Args:
      num_alone: changes that are made afterwards without load, over which memory is compared.
      warm_up_s: load before the first change, whose answers fill caches and are checked, too.
      most_compared: answers of clients that are compared with the truth, beside all probes.
    Raises: AssertionError.
    """
    ledger = PolicyLedger(server.admin("GET", "/policies").body["version"])
    traffic = PolicyTraffic(server, ledger, seed=seed, num_clients=num_clients)
    changer, probes = Changer(server, ledger, seed=seed), Probes(server, ledger)
    failures: list[BaseException] = []
    is_over = threading.Event()

    def follow() -> None:
        try:
            for _ in range(num_changes):
                name = changer.change()
                probes.send(name)
                others = [each for each in ledger.contents if each not in (name, OWN)]
                probes.send(random.Random(len(probes.asked)).choice(others))
        except BaseException as error:
            failures.append(error)
        finally:
            is_over.set()

    changing = threading.Thread(target=follow, daemon=True)
    until = time.monotonic() + warm_up_s
    asyncio.run(traffic.run(goes_on=lambda: time.monotonic() < until))
    began = time.monotonic()
    with Sampler(
        server.server.family(), every_s=0.5, num_requests=lambda: traffic.num_sent
    ) as sampler:
        changing.start()
        asyncio.run(traffic.run(goes_on=lambda: not is_over.is_set()))
        changing.join()
    seconds = time.monotonic() - began
    if failures:
        raise failures[0]
    gone = check_outcomes(traffic.asked, ledger)
    errors = compare(server, ledger, [*probes.asked, *traffic.asked], most=most_compared, seed=seed)
    check_cache_hits(server)
    grown = sum(growth(each) for each in sampler.samples.values())
    alone = changes_alone(server, changer, num_alone)
    server.assert_sound()
    figures = {
        "requests": traffic.num_sent,
        "seconds": round(seconds, 1),
        "answered": sum(each.status == 200 for each in traffic.asked),
        "named_a_removed_policy": gone,
        "versions": len(ledger.versions),
        "versions_answered": len({each.version for each in traffic.asked} - {None}),
        **{kind.replace(" ", "_"): count for kind, count in sorted(changer.results.items())},
        **errors,
        **{
            f"{kind}_ms_median": round(1e3 * float(np.median(each)), 1)
            for kind, each in changer.seconds.items()
        },
        "mib_grown_under_load": round(grown, 2),
        **alone,
    }
    return table([("policies run", ""), *figures.items()]), figures


def check_outcomes(asked: Iterable[Asked], ledger: PolicyLedger) -> int:
    """Checks that each request was answered by a version that it may have met, or named a policy
    that one of these lacks. Returns: the number of the latter."""
    gone = 0
    for each in asked:
        window = {"sent_at": each.sent_at, "head_at": each.head_at}
        if each.status == 200:
            assert each.version is not None
            assert ledger.may_see(each.version, **window), f"{each.version} was not in force"
            names = ledger.versions[each.version].contents
            assert each.used.keys() == names.keys(), "names of one version, weights of another"
            if each.weights is not None:
                named = {name for name, weight in each.used.items() if weight}
                assert named == each.weights.keys(), each
            continue
        assert each.weights is not None, each
        assert each.status == 400, each
        absent = [name for name in each.weights if f"unknown policy '{name}'" in each.failure]
        absent += [name for name in each.weights if f'unknown policy "{name}"' in each.failure]
        assert absent, each
        assert ledger.may_lack(absent[0], **window), f"{absent[0]} was there: {each}"
        gone += 1
    return gone


def compare(
    server: PolicyServer, ledger: PolicyLedger, asked: Iterable[Asked], *, most: int, seed: int
) -> dict[str, Any]:
    """Compares answers with merged checkpoints, again by models read anew where one is off.

    Returns: the number compared, and the worst errors.
    Raises: AssertionError if one is off by the tolerance both times.
    """
    answered = [each for each in asked if each.status == 200]
    probes = [each for each in answered if each.is_probe]
    others = [each for each in answered if not each.is_probe]
    random.Random(seed).shuffle(others)
    names = list(server.truth)
    oracle = Oracle([server.truth[name] for name in names])
    models = dict(zip(names, oracle.models, strict=True))
    worst = dict.fromkeys(MIXINGS, 0.0)
    compared = Counter[str]()
    unlike: list[str] = []
    for each in [*probes, *others[:most]]:
        assert each.version is not None
        contents = ledger.versions[each.version].contents
        used = [(contents[name], weight) for name, weight in each.used.items() if weight]
        oracle.models = [models[name] for name, _ in used]
        job = Job(
            prompt=each.prompt, weights=tuple(weight for _, weight in used), mixing=each.mixing
        )
        found = float(np.abs(oracle.errors(job, each.tokens, each.logprobs)).max())
        if found >= TOLERANCE_NATS:  # an answer that is wrong is wrong by models read anew, too
            first, anew = found, Oracle([server.truth[name] for name, _ in used])
            found = float(np.abs(anew.errors(job, each.tokens, each.logprobs)).max())
            off = f"{first} and {found} nats off at version {each.version}"
            assert found < TOLERANCE_NATS, f"{off}: {each}"
            read = [name for name, _ in used]
            tokens = (*each.prompt, *each.tokens)
            unlike.append(f"{off}: {differences(read, oracle.models, anew.models, tokens)}")
        worst[each.mixing] = max(worst[each.mixing], found)
        compared[each.mixing] += 1
    return {
        **{f"compared_{name}": compared[name] for name in MIXINGS},
        "compared_before_and_after_changes": len(probes),
        "compared_again": len(unlike),
        **{f"unlike_{number}": each for number, each in enumerate(unlike[:3])},
        **{f"worst_nats_{name}": float(f"{worst[name]:.2g}") for name in MIXINGS},
    }


def check_cache_hits(server: PolicyServer) -> None:
    """The load met cached blocks; else it would prove nothing about them."""
    lines = server.ask("GET", "/metrics").body.splitlines()
    hits = [line for line in lines if line.startswith("vllm:prefix_cache_hits_total")]
    assert sum(float(line.rpartition(" ")[2]) for line in hits) > 0


def growth(samples: Sequence[Sample]) -> float:
    """The growth of a process's resident memory from the second quarter to the last, in MiB."""
    quarter = max(len(samples) // 4, 1)
    second, last = samples[quarter : 2 * quarter], samples[-quarter:]
    return fmean(each.rss_mib for each in last) - fmean(each.rss_mib for each in second or last)


def changes_alone(server: PolicyServer, changer: Changer, num_changes: int) -> dict[str, Any]:
    """Changes without load. Returns: the growth of all processes' memory over the second half.

    Raises: AssertionError if files or threads are left over from it.
    """

    def held() -> list[Sample]:
        family = [each for each in server.server.family() if each.is_running()]
        return [sample(each, num_requests=0) for each in family]

    for _ in range(num_changes // 2):
        changer.change()
    before = held()
    for _ in range(num_changes - num_changes // 2):
        changer.change()
    after = held()
    more = {
        name: round(sum(getattr(each, name) for each in after))
        - round(sum(getattr(each, name) for each in before))
        for name in ("num_files", "num_threads")
    }
    assert more["num_files"] <= 2, f"files stay open: {more}"
    assert more["num_threads"] <= 4, f"threads stay: {more}"  # of pools that are not yet full
    grown = sum(each.rss_mib for each in after) - sum(each.rss_mib for each in before)
    return {"changes_alone": num_changes, "mib_of_second_half_alone": round(grown, 2), **more}


def main() -> int:
    """Runs the command; returns the exit code."""
    parser = run_parser(__doc__)
    parser.add_argument("--changes", type=int, default=200)
    parser.add_argument("--alone", type=int, default=200, help="changes without load")
    parser.add_argument("--warm-up", type=float, default=60, help="seconds; default 60")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--api-servers", type=int, default=1, help="API processes; default 1")
    parser.add_argument("--engines", type=int, default=1, help="data-parallel engines; default 1")
    args = parser.parse_args()
    engine = [f"--api-server-count={args.api_servers}"] if args.api_servers > 1 else []
    engine += [f"--data-parallel-size={args.engines}"] if args.engines > 1 else []
    with served(*engine) as server:
        text, figures = run(
            server.start(),
            num_changes=args.changes,
            num_alone=args.alone,
            warm_up_s=args.warm_up,
            num_clients=args.clients,
            seed=args.seed,
        )
    publish("policies_run", text, figures, record=args.record)
    return 0


if __name__ == "__main__":
    sys.exit(main())

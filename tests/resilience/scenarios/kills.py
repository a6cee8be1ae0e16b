"""Writers, fits and servers killed at random instants: nothing is lost, and all start again.

python -m resilience.scenarios.kills [--store 150] [--fit 40] [--serve 10] [--record]
"""

from __future__ import annotations

import asyncio
import http.client
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from prefmix.weights.store.store import WeightsStore
from resilience.harness.demo_server import DemoServer
from resilience.harness.report import publish, run_parser, table
from resilience.harness.traffic import Traffic
from support.server_process import PREFMIX, clean_environment
from support.store_writer import kill_a_writer, new_store

_FIT_TIMEOUT_S = 600


def kill_writers(folder: Path, *, times: int, seed: int) -> dict[str, Any]:
    """Kills writers of a store. Raises: AssertionError if a version is lost or torn."""
    rng = random.Random(seed)
    done = 0
    for number in range(times):
        if done % 500 == 0:  # a fresh store now and then keeps its history quick to check
            (folder / f"store-{number}").mkdir()
            store, done = new_store(folder / f"store-{number}"), 0
        done = kill_a_writer(store, rng, done=done, last=500)
    assert store.change(lambda profiles: profiles).is_noop, "no lock is left behind"
    return {"store_kills": times}


def kill_fits(folder: Path, *, times: int, seed: int) -> dict[str, Any]:
    """Kills fits from a score table; each is started again and comes to the same answer.

    Raises: AssertionError if the profile that was there before is lost, or an answer differs.
    """
    rng = random.Random(seed)
    scores = _score_table(folder / "scores.parquet")
    began = time.monotonic()
    output = folder / "whole.json"
    assert _fit(scores, output).wait(timeout=_FIT_TIMEOUT_S) == 0
    whole_s = time.monotonic() - began
    wanted = WeightsStore(output).read()
    moments: list[str] = []
    for number in range(times):
        output = folder / f"fit-{number}.json"
        process = _fit(scores, output)
        time.sleep(rng.uniform(0.2, 1.1) * whole_s)
        process.kill()
        moments.append("after" if process.wait() == 0 else "before")
        if output.exists():  # then it is whole
            assert WeightsStore(output).read().profiles == wanted.profiles
        assert _fit(scores, output).wait(timeout=_FIT_TIMEOUT_S) == 0
        assert WeightsStore(output).read().profiles == wanted.profiles, "another answer"
        assert not list(folder.glob(".*.new")), "what was written aside is left behind"
    return {
        "fit_kills": times,
        "fit_killed_before_its_end": moments.count("before"),
        "fit_whole_s": round(whole_s, 2),
    }


def kill_servers(demo: DemoServer, *, times: int, seed: int) -> dict[str, Any]:
    """Kills a server under load while its weights change, every other time its main process alone.

    Raises: AssertionError if a change that was confirmed is lost, or anything is left behind.
    """
    rng = random.Random(seed)
    ready_s, gone_s = [demo.ready_s], []
    confirmed = 0
    for number in range(times):
        confirmed += _changes_until_killed(demo, rng, only_main=number % 2 == 1, gone_s=gone_s)
        demo.start()
        ready_s.append(demo.ready_s)
        store = WeightsStore(demo.store)
        kept = store.read().provenance.get("killed", {}).get("step", 0)
        # The last one may have been written without having been confirmed.
        assert kept in (confirmed, confirmed + 1), f"{confirmed} were confirmed, {kept} are kept"
        confirmed = kept
        assert demo.admin("GET", "/weights").body["version"] == store.read().version
        demo.assert_sound()
    return {
        "serve_kills": times,
        "changes_confirmed": confirmed,
        "ready_s_median": round(statistics.median(ready_s), 1),
        "ready_s_max": round(max(ready_s), 1),
        "all_gone_s_max": round(max(gone_s, default=0.0), 2),
    }


def _changes_until_killed(
    demo: DemoServer, rng: random.Random, *, only_main: bool, gone_s: list[float]
) -> int:
    """Kills a server under load; returns the number of changes that it had confirmed."""
    begun = WeightsStore(demo.store).read().provenance.get("killed", {}).get("step", 0)
    confirmed = begun
    is_over = threading.Event()

    def change() -> None:
        nonlocal confirmed
        while not is_over.is_set():
            step = confirmed + 1
            body = {"weights": {"positive": step, "polite": 1}, "provenance": {"step": step}}
            try:
                answer = demo.admin("PUT", "/profiles/killed", body)
            except (OSError, http.client.HTTPException, ValueError):
                return
            assert answer.status == 200, answer
            confirmed = step

    traffic = Traffic(demo, seed=rng.randrange(2**31), num_clients=8)
    changing = threading.Thread(target=change)
    load = threading.Thread(
        target=lambda: asyncio.run(traffic.run(goes_on=lambda: not is_over.is_set()))
    )
    changing.start()
    load.start()
    time.sleep(rng.uniform(0.5, 4))
    family = demo.server.family()
    killed_at = time.monotonic()
    if only_main:
        demo.server.process.kill()
    else:
        demo.kill()
    _, alive = psutil.wait_procs(family, timeout=30)
    gone_s.append(time.monotonic() - killed_at)
    is_over.set()
    load.join()
    changing.join()
    left = [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]
    assert not left, f"processes outlive the server: {left}"
    demo.server.process.wait()
    return confirmed - begun


def _score_table(path: Path) -> Path:
    """A score table whose fit takes a second or two."""
    rng = np.random.default_rng(0)
    prompts, responses = 200, 16
    size = prompts * responses
    reference = rng.normal(-40, 5, size)
    columns: dict[str, Any] = {
        "prompt_id": np.repeat(np.arange(prompts), responses),
        "response_id": np.tile(np.arange(responses), prompts),
        "num_tokens": rng.integers(5, 40, size),
        "logprob_reference": reference,
        **{f"logprob_{name}": reference + rng.normal(0, 1, size) for name in ("a", "b", "c")},
    }
    pq.write_table(pa.table(columns), path)
    return path


def _fit(scores: Path, output: Path) -> subprocess.Popen[bytes]:
    words = ["fit", "--scores", str(scores), "--sampler", "reference", "--output", str(output)]
    return subprocess.Popen(
        [str(PREFMIX), *words, "--report", str(output.with_suffix(".report"))],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=clean_environment(OMP_NUM_THREADS="1"),
    )


def run(
    folder: Path, *, store: int, fit: int, serve: int, seed: int = 0
) -> tuple[str, dict[str, Any]]:
    """Kills as often as asked. Returns: a table, and the figures."""
    figures = kill_writers(folder, times=store, seed=seed)
    figures |= kill_fits(folder, times=fit, seed=seed)
    if serve:
        demo = DemoServer(folder / "served")
        try:
            figures |= kill_servers(demo.start(), times=serve, seed=seed)
            assert demo.stop() == 0
        finally:
            demo.kill()
    return table([("kills", ""), *figures.items()]), figures


def main() -> int:
    """Runs the command; returns the exit code."""
    parser = run_parser(__doc__)
    parser.add_argument("--store", type=int, default=150, help="kills of writers")
    parser.add_argument("--fit", type=int, default=40, help="kills of fits")
    parser.add_argument("--serve", type=int, default=10, help="kills of servers under load")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    with tempfile.TemporaryDirectory(prefix="prefmix-resilience-") as folder:
        text, figures = run(
            Path(folder), store=args.store, fit=args.fit, serve=args.serve, seed=args.seed
        )
    publish("kills", text, figures, record=args.record)
    return 0


if __name__ == "__main__":
    sys.exit(main())

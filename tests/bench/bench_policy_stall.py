"""The time in which serving stands still while an adapter comes, is replaced or goes.

    python tests/bench/bench_policy_stall.py [--size demo|134m] [--changes 20] [--clients 4]

Starts `prefmix serve` with slots: on the demo's base with its sharp adapters, or on a random model
of 134M parameters (bfloat16) with random adapters of rank 16. Clients stream long answers all the
time. Each change puts one of two adapters into a policy's place. Two times are taken:

    engine   prefmix_policy_stall_seconds: the copy into the slot and the check of its layers,
             during which no step of the engine can run
    clients  the longest interval between two events of any of the streams, from the start of the
             PUT to 100 ms after its answer; beside it the same over as long a time without a change

Prints a table, then one line of JSON.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import shutil
import signal
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

import httpx

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from prefmix.bench.contestants.models import SIZES  # noqa: E402
from prefmix.bench.contestants.random_models import Shape, save_adapter, save_model  # noqa: E402
from support.server_process import ServerProcess  # noqa: E402

TOKEN = "bench-token"
_DEMO = ROOT / "policies" / "demo"
_AFTER_S = 0.1
_REST_S = 0.4
_WARM_UP_S = 10.0


def main() -> int:
    """Runs the bench; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--size", choices=("demo", "134m"), default="demo")
    parser.add_argument("--changes", type=int, default=20)
    parser.add_argument("--clients", type=int, default=4, help="streams at a time")
    args = parser.parse_args()
    # Ended from outside, the server has to end as well.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base, own = models(folder, args.size)
        words = [
            *("--base", str(base), "--adapter", f"own={own}", "--adapter-slots", "2"),
            *("--weights-store", str(folder / "weights.json")),
            *("--policies-dir", str(folder / "policies")),
            *("--", "--enforce-eager", "--max-model-len", "512"),
            *("--kv-cache-memory-bytes", str(2**29)),
        ]
        server = ServerProcess(folder, words, PREFMIX_ADMIN_TOKEN=TOKEN)
        try:
            server.wait_ready()
            report = measured(server, num_changes=args.changes, num_clients=args.clients)
            server.end(signal.SIGTERM)
        finally:
            server.kill()
    print(f"{'ms':<42}{'first':>9}{'median':>9}{'largest':>9}")
    for row, times in report.items():
        figures = (times[0], statistics.median(times), max(times))
        print(f"{row:<42}" + "".join(f"{each:>9.1f}" for each in figures))
    settings = {
        "size": args.size,
        "changes": args.changes,
        "clients": args.clients,
        "cores": os.cpu_count(),
        "load_average_1min": round(os.getloadavg()[0], 2),
    }
    print(json.dumps({**settings, **{row: [round(t, 2) for t in v] for row, v in report.items()}}))
    return 0


def models(folder: Path, size: str) -> tuple[Path, Path]:
    """Writes the two adapters that come, in `folder`/policies; returns the base and an adapter."""
    policies = folder / "policies"
    if size == "demo":
        for name in ("positive", "concise"):
            shutil.copytree(_DEMO / "sharp" / name, policies / name)
        return _DEMO / "checkpoints" / "reference", _DEMO / "sharp" / "polite"
    import torch

    names = ("layers", "hidden", "intermediate", "heads", "kv_heads", "vocab")
    shape = Shape(**dict(zip(names, SIZES[size], strict=True)))
    base = save_model(folder / "base", shape.config(), seed=0, dtype=torch.bfloat16)
    for seed, name in enumerate(("positive", "concise"), start=1):
        save_adapter(policies / name, base, rank=16, seed=seed)
    return base, save_adapter(folder / "own", base, rank=16, seed=3)


def measured(
    server: ServerProcess, *, num_changes: int, num_clients: int
) -> dict[str, list[float]]:
    """Times of each change, in ms, by what they are."""
    found: dict[str, list[float]] = {
        "PUT, until it is answered": [],
        "engine stands still": [],
        "longest interval of a stream, a change": [],
        "longest interval of a stream, none": [],
    }
    streams = [Stream(server.url) for _ in range(num_clients)]
    time.sleep(_WARM_UP_S)
    with httpx.Client(
        base_url=server.url, headers={"Authorization": f"Bearer {TOKEN}"}, timeout=120
    ) as admin:
        for number in range(num_changes):
            body = {"adapter": ("positive", "concise")[number % 2]}
            began = time.perf_counter()
            answer = admin.put("/admin/policies/fresh", json=body)
            assert answer.status_code == 200, answer.text
            ended = time.perf_counter()
            time.sleep(_REST_S)
            while time.perf_counter() < ended + 2 * _AFTER_S + (ended - began):
                time.sleep(0.01)
            metrics = admin.get("/metrics").text
            stall = re.search(r"^prefmix_policy_stall_seconds (\S+)", metrics, flags=re.MULTILINE)
            assert stall is not None
            change = (began, ended + _AFTER_S)
            none = (ended + _AFTER_S, ended + 2 * _AFTER_S + (ended - began))
            times = (
                ended - began,
                float(stall[1]),
                *(max(stream.longest(*window) for stream in streams) for window in (change, none)),
            )
            for row, seconds in zip(found.values(), times, strict=True):
                row.append(seconds * 1e3)
    for stream in streams:
        stream.end()
    return found


class Stream:
    """A client that streams one long answer after the other, and notes when events come."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._times: list[list[float]] = []
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def longest(self, began: float, ended: float) -> float:
        """The longest interval between two events of one answer that touches a time, in s."""
        pairs = [pair for times in list(self._times) for pair in itertools.pairwise(times)]
        touching = [b - a for a, b in pairs if a < ended and b > began]
        return max(touching, default=0.0)

    def end(self) -> None:
        """Ends the stream."""
        self._is_over.set()
        self._thread.join()

    def _follow(self) -> None:
        body = {
            "prompt": "Review the Park Hotel.",
            "max_tokens": 400,
            "ignore_eos": True,
            "stream": True,
            "preference_weights": {"own": 1},
        }
        with httpx.Client(base_url=self._url, timeout=120) as client:
            while not self._is_over.is_set():
                times: list[float] = []
                self._times.append(times)
                with client.stream("POST", "/v1/completions", json=body) as answer:
                    assert answer.status_code == 200
                    for line in answer.iter_lines():
                        if line.startswith("data: {"):
                            times.append(time.perf_counter())
                        if self._is_over.is_set():
                            break


if __name__ == "__main__":
    sys.exit(main())

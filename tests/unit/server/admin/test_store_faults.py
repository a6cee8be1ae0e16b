"""A running server survives a spoiled store, fault by fault as in docs/operations.md."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import prometheus_client
import pytest
from starlette.testclient import TestClient

from prefmix.mixing.spec import MixtureSpec, Policy
from prefmix.server.admin.listener import admin_app
from prefmix.server.admin.live_weights import LiveWeights
from prefmix.server.admin.routes import AdminState
from prefmix.server.admin.store_watch import fingerprint
from prefmix.server.auth.tokens import Token, Tokens
from prefmix.weights.store.profiles import CurrentProfiles, build_profile_set
from prefmix.weights.store.store import WeightsStore

SPEC = MixtureSpec(policies=(Policy(name="a", model="x"), Policy(name="b", model="y")))
BODY = {"weights": {"a": 3, "b": 1}}


class Faulty:
    """The admin routes on a store of their own, at version 2."""

    def __init__(self, folder: Path) -> None:
        self.store = WeightsStore(folder / "w.json", spec=SPEC)
        profiles = CurrentProfiles(self.store.create(build_profile_set({}, SPEC)))
        self.live = LiveWeights(
            spec=SPEC, profiles=profiles, store=self.store.path, folder=folder, num_processes=1
        )
        state = AdminState(tokens=Tokens([Token.of("ops", "secret")]), live=self.live)
        self.client = TestClient(admin_app(state))
        assert self.change().status_code == 200

    def ask(self, method: str, path: str, body: Any = None) -> httpx.Response:
        return self.client.request(
            method, f"/admin{path}", json=body, headers={"Authorization": "Bearer secret"}
        )

    def change(self, body: Any = BODY) -> httpx.Response:
        return self.ask("PUT", "/profiles/x", body)

    def refused(self, response: httpx.Response, status: int, *parts: str) -> None:
        """Checks the refusal's shape and words, and that version 2 still serves."""
        assert response.status_code == status, response.text
        error = response.json()["error"]
        assert (set(error), error["code"]) == ({"message", "type", "param", "code"}, status)
        missing = [part for part in (str(self.store.path), *parts) if part not in error["message"]]
        assert missing == [], error["message"]
        assert self.live.current.version == 2
        assert self.live.current.weights("x") == {"a": 0.75, "b": 0.25}


@pytest.fixture
def faulty(tmp_path: Path) -> Faulty:
    """A server's admin routes and its store."""
    return Faulty(tmp_path)


def prometheus(name: str) -> float | None:
    return prometheus_client.REGISTRY.get_sample_value(name)


def endless(path: Path) -> None:
    path.symlink_to(path)


def huge(path: Path, num_bytes: int = 100 * 2**20) -> None:
    with path.open("wb") as file:
        file.truncate(num_bytes)


def listener(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


FAULTS: dict[str, tuple[Callable[[Path], object], int, str]] = {
    "a folder": (Path.mkdir, 503, "put a regular file in its place"),
    "a pipe": (os.mkfifo, 503, "put a regular file in its place"),
    "a device": (lambda path: path.symlink_to("/dev/zero"), 503, "put a regular file in its place"),
    "a socket": (listener, 503, "put a regular file in its place"),
    "an endless link": (endless, 503, "put a regular file in its place"),
    "nothing": (lambda path: None, 409, "rollback"),
    "100 MB": (huge, 400, "more than 16 MiB, which no set of profiles needs; "),
    "100 GB": (lambda path: huge(path, 10**11), 400, "more than 16 MiB"),
    "an endless number": (
        lambda path: path.write_text('{"version": 1' + "0" * 10**6),
        400,
        "rollback",
    ),
    "half a file": (lambda path: path.write_text('{"format": 1, "ver'), 400, "not JSON"),
    "bytes": (lambda path: path.write_bytes(os.urandom(4096)), 400, ""),
}


@pytest.mark.parametrize("what", FAULTS)
def test_a_spoiled_store_changes_nothing_and_says_what_to_do(faulty: Faulty, what: str) -> None:
    spoil, status, remedy = FAULTS[what]
    good = faulty.store.path.read_bytes()
    faulty.store.path.unlink()
    spoil(faulty.store.path)
    began = time.monotonic()
    for response in (faulty.ask("POST", "/weights/reload"), faulty.change({"weights": {"a": 1}})):
        faulty.refused(response, status, remedy)
    assert time.monotonic() - began < 60
    assert prometheus("prefmix_weights_last_reload_successful") == 0

    if faulty.store.path.is_dir():
        faulty.store.path.rmdir()
    else:
        faulty.store.path.unlink(missing_ok=True)
    faulty.store.path.write_bytes(good)
    assert faulty.ask("POST", "/weights/reload").status_code == 200
    assert prometheus("prefmix_weights_last_reload_successful") == 1
    assert faulty.change({"weights": {"a": 1}}).json()["version"] == 3


def test_a_disk_that_fails_is_told_from_a_bad_file(faulty: Faulty) -> None:
    """The store is a regular file of the kernel's that cannot be read from its beginning."""
    faulty.store.path.unlink()
    faulty.store.path.symlink_to("/proc/self/mem")
    response = faulty.ask("POST", "/weights/reload")
    assert response.status_code == 503
    assert "mem: Input/output error; the disk fails" in response.json()["error"]["message"]
    assert faulty.live.current.version == 2


@pytest.mark.parametrize("what", ["nothing", "100 MB", "100 GB", "half a file", "bytes"])
def test_a_rollback_repairs_the_store_from_what_is_in_force(faulty: Faulty, what: str) -> None:
    faulty.store.path.unlink()
    FAULTS[what][0](faulty.store.path)
    answer = faulty.ask("POST", "/weights/rollback")
    assert answer.status_code == 200, answer.text
    assert answer.json()["version"] > 2
    assert (answer.json()["set_aside"] is None) == (what == "nothing")
    assert faulty.store.read() == faulty.live.current
    assert faulty.live.current.weights("x") == {"a": 0.75, "b": 0.25}
    assert faulty.store.read_version(2).weights("x") == {"a": 0.75, "b": 0.25}


def test_a_lost_history_stops_nothing(faulty: Faulty) -> None:
    """The history is written before the store, so a history that cannot be written is a refusal."""
    history = faulty.store.path.with_name("w.json.history")
    for path in history.iterdir():
        path.unlink()
    history.rmdir()
    history.write_text("in the way")
    faulty.refused(faulty.change({"weights": {"a": 1}}), 503, "version 2 is kept")
    history.unlink()
    assert faulty.change({"weights": {"a": 1}}).json()["version"] == 3


def may_mount() -> bool:
    return subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode == 0


@pytest.mark.parametrize(
    ("kind", "status", "reason", "remedy"),
    [
        ("limited", 507, "File too large", "make room there"),
        ("full", 507, "No space left on device", "make room there"),
        ("read-only", 409, "Read-only file system", "change the file where it comes from"),
    ],
)
def test_a_change_that_cannot_be_written(
    tmp_path: Path, kind: str, status: int, reason: str, remedy: str
) -> None:
    """The store lies on a tmpfs of 64 KiB in a mount namespace, or its size is limited."""
    if kind != "limited" and not may_mount():
        pytest.skip("needs the right to mount")
    script = f"""
import json, os, resource, runpy, signal, sys
from pathlib import Path
Faulty = runpy.run_path({__file__!r})["Faulty"]
folder, kind = Path({str(tmp_path)!r}), {kind!r}
faulty = Faulty(folder)
before = faulty.store.path.read_bytes()
if kind == "full":
    with open(folder / "filler", "wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 4096)
        except OSError:
            pass
elif kind == "read-only":
    assert os.system(f"mount -o remount,ro {{folder}}") == 0
else:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 10,) * 2)
response = faulty.change({{"weights": {{"a": 1}}, "provenance": {{"note": "n" * 8000}}}})
assert faulty.store.path.read_bytes() == before
assert faulty.live.current.version == 2
assert faulty.ask("POST", "/weights/reload").status_code == 200
print(json.dumps([response.status_code, response.json()["error"]["message"]]))
"""
    command = [sys.executable, "-c", script]
    if kind != "limited":
        mount = f'mount -t tmpfs -o size=64k tmpfs {tmp_path} && exec "$@"'
        command = ["unshare", "-m", "bash", "-c", mount, "bash", *command]
    root = Path(__file__).parents[4]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=root)
    assert run.stdout, run.stderr
    answered, message = json.loads(run.stdout.splitlines()[-1])
    assert answered == status, message
    assert "w.json" in message
    assert reason in message
    assert remedy in message


def test_a_clock_that_jumps_back_hides_no_new_file(
    faulty: Faulty, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file put in place while the clock is years behind is older than the one before it."""
    before = fingerprint(faulty.store.path)
    monkeypatch.setattr(time, "time", lambda: 0.0)
    WeightsStore(faulty.store.path, spec=SPEC).change(lambda current: build_profile_set({}, SPEC))
    os.utime(faulty.store.path, (0, 0))
    assert fingerprint(faulty.store.path) != before
    assert faulty.ask("POST", "/weights/reload").json()["version"] == 3
    assert prometheus("prefmix_weights_last_reload_success_timestamp_seconds") == 0
    monkeypatch.setattr(time, "time", lambda: 4e9)
    assert faulty.change().json()["version"] == 4

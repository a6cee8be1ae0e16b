"""The promises of a change of weights, checked after every step of an interleaving.

All of a change or nothing; a bad file changes nothing; one number means one content; requests under
way keep what they were admitted with; a GET changes nothing.
"""

from __future__ import annotations

import http.client
import json
import time
from dataclasses import dataclass, field
from typing import Any

from prefmix.weights.store.format import from_document
from prefmix.weights.store.profiles import ProfileSet
from prefmix.weights.store.store import WeightsStore
from resilience.harness.asked_server import KEY
from resilience.harness.demo_server import MEMBERS, DemoServer, total

_VISIBLE_WITHIN_S = 60.0


@dataclass
class Stream:
    """An answer that is being read a little at a time."""

    connection: http.client.HTTPConnection
    response: http.client.HTTPResponse
    version: int
    weights: str

    @classmethod
    def open(cls, demo: DemoServer, **body: Any) -> Stream:
        """Sends a request for a long answer and reads its first piece."""
        connection = http.client.HTTPConnection("127.0.0.1", demo.server.port, timeout=60)
        wanted = {"prompt": "Tell me about the Park Hotel.", "stream": True, "max_tokens": 200}
        connection.request(
            "POST",
            "/v1/completions",
            body=json.dumps({**wanted, "ignore_eos": True, **body}),
            headers={"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"},
        )
        response = connection.getresponse()
        assert response.status == 200, response.read()
        assert response.readline().startswith(b"data: ")
        return cls(
            connection,
            response,
            int(response.headers["x-prefmix-weights-version"]),
            response.headers["x-prefmix-weights"],
        )

    def finish(self) -> None:
        """Reads the answer to its end, which must be [DONE]."""
        rest = self.response.read()
        self.connection.close()
        assert rest.endswith(b"data: [DONE]\n\n"), rest[-300:]

    def hang_up(self) -> None:
        """Hangs up before the answer has ended."""
        self.connection.close()
        self.response.close()


@dataclass
class Model:
    """The expected state of the server."""

    in_force: ProfileSet
    is_file_good: bool = True
    last_reload_successful: bool = True
    streams: list[Stream] = field(default_factory=list)
    contents: dict[int, str] = field(default_factory=dict)
    """The hash of every version there has been."""

    def put_in_force(self, profiles: ProfileSet) -> None:
        """Notes a change that the server has made."""
        known = self.contents.setdefault(profiles.version, profiles.sha256)
        assert known == profiles.sha256, f"version {profiles.version} had another content before"
        assert profiles.version >= self.in_force.version, "a version number has gone down"
        self.in_force = profiles


def shown(demo: DemoServer) -> ProfileSet:
    """The profiles in force, as the admin routes show them."""
    body = dict(demo.admin("GET", "/weights").body)
    sha256 = body.pop("sha256")
    profiles = from_document(body, source="GET /admin/weights")
    assert profiles.sha256 == sha256
    return profiles


def wait_in_force(demo: DemoServer, version: int) -> ProfileSet:
    """Waits until the server has taken up a version that another program wrote to the file."""
    deadline = time.monotonic() + _VISIBLE_WITHIN_S
    while (found := shown(demo)).version < version:
        assert time.monotonic() < deadline, f"version {version} was not taken up"
        time.sleep(0.02)
    return found


def check(demo: DemoServer, model: Model) -> None:
    """Checks every promise. Raises: AssertionError."""
    assert demo.server.process.poll() is None, demo.server.stderr[-3000:]
    wanted = model.in_force
    assert shown(demo) == wanted
    mixture = demo.ask("GET", "/v1/mixture").body
    assert (mixture["version"], mixture["sha256"]) == (wanted.version, wanted.sha256)
    assert set(mixture["profiles"]) == set(wanted.profiles)
    cards = {card["id"] for card in demo.ask("GET", "/v1/models").body["data"]}
    assert cards == {"demo", *(f"demo@{name}" for name in wanted.profiles)}

    answer = demo.complete()
    assert answer.status == 200, answer
    reported = (answer.headers["x-prefmix-weights-version"], answer.headers["x-prefmix-profile"])
    assert reported == (str(wanted.version), wanted.default)
    assert answer.headers["x-prefmix-weights"] == _header(wanted)
    assert demo.ask("GET", "/health").status == 200

    metrics = demo.metrics()
    assert total(metrics, "prefmix_weights_version") == wanted.version
    assert total(metrics, "prefmix_weights_last_reload_successful") == model.last_reload_successful
    if model.is_file_good:
        _check_file(demo, wanted)


def _check_file(demo: DemoServer, wanted: ProfileSet) -> None:
    store = WeightsStore(demo.store)
    assert store.read() == wanted, "the file is what is in force"
    history = store.history()
    versions = [entry.version for entry in history]
    assert versions == sorted(set(versions))
    assert history[-1] == wanted
    told = demo.admin("GET", "/weights/history").body["versions"]
    assert [entry["version"] for entry in told] == versions


def _header(profiles: ProfileSet) -> str:
    weights = profiles.weights(profiles.default)
    return ",".join(f"{name}={weights[name]:.9g}" for name in MEMBERS)

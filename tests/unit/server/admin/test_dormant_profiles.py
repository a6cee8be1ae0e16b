"""Profiles that name absent policies, over the admin routes and in requests."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from prefmix.server.api.resolve import Preferences, resolve
from prefmix.server.http.errors import RequestError, UnknownModelError
from support.runtime.policies_server import SPEC, FakeSlots, Server, write


@pytest.fixture
def server(tmp_path: Path) -> Server:
    return Server(tmp_path, FakeSlots(), keeps_dormant=True)


def test_a_profile_waits_for_its_policy_and_serves_once_it_is_there(
    server: Server, tmp_path: Path
) -> None:
    put = server.ask("PUT", "/profiles/both", {"weights": {"a": 1, "new": 1}})
    assert put.status_code == 200, put.text
    assert put.json()["dormant"] == {"both": ["new"]}
    shown = server.ask("GET", "/weights").json()
    assert shown["dormant_profiles"] == {"both": {"weights": {"a": 0.5, "new": 0.5}}}
    assert shown["profiles"].keys() == {"even"}
    default = server.ask("PUT", "/default", {"profile": "both"})
    assert default.status_code == 400
    assert "'both' is dormant" in default.json()["error"]["message"]

    for preferences, kind, param in (
        (Preferences(profile="both"), RequestError, "preference_profile"),
        (Preferences(model="m@both"), UnknownModelError, "model"),
    ):
        profiles = server.profiles.current
        with pytest.raises(kind, match=r"dormant: .* not there \(new\)") as refused:
            resolve(preferences, spec=SPEC, profiles=profiles, model_names=("m",))
        assert refused.value.param == param

    came = server.ask("PUT", "/policies/new", write(tmp_path, "new"))
    assert came.json()["dormant"] == {}
    current = server.profiles.current
    found = resolve(
        Preferences(profile="both"),
        spec=server.current.current.spec,
        profiles=current,
        model_names=("m",),
    )
    assert dict(zip(current.member_names, found.weights, strict=True)) == {
        "a": 0.5,
        "new": 0.5,
        "base": 0,
    }
    # It falls asleep with the policy, also after another start.
    gone = server.ask("DELETE", "/policies/new")
    assert gone.status_code == 200, gone.text
    assert gone.json()["dormant"] == {"both": ["new"]}
    again = Server(tmp_path, FakeSlots(), keeps_dormant=True)
    assert again.profiles.current.waiting() == {"both": ["new"]}
    assert again.ask("DELETE", "/profiles/both").json()["dormant"] == {}


def test_by_default_they_are_refused(tmp_path: Path) -> None:
    server = Server(tmp_path, FakeSlots())
    put = server.ask("PUT", "/profiles/both", {"weights": {"a": 1, "new": 1}})
    assert put.status_code == 400
    assert server.profiles.current.profiles.keys() == {"even"}


def test_every_api_process_has_them(tmp_path: Path) -> None:
    servers = [
        Server(tmp_path, FakeSlots(), of=2, name=name, keeps_dormant=True) for name in ("x", "y")
    ]

    async def run() -> None:
        for server in servers:
            await server.live.start()
        body = {"weights": {"new": 1}}
        put = await asyncio.to_thread(servers[0].ask, "PUT", "/profiles/p", body)
        assert put.status_code == 200, put.text

    try:
        asyncio.run(run())
        assert [each.profiles.current.waiting() for each in servers] == [{"p": ["new"]}] * 2
    finally:
        for server in servers:
            server.live.close()

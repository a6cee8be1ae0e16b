"""`GET /`: a browser comes to the console, a program learns where things are."""

from __future__ import annotations

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from prefmix.server.auth.hosts import AllowedHosts, HostMiddleware
from prefmix.server.console import routes
from prefmix.server.console.settings import ConsoleSettings

CHROMIUM = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8"


def client(*, is_on: bool = True, root_path: str = "", host: str = "localhost") -> TestClient:
    """A server of the console and two routes more, which answers to loopback alone."""
    app = FastAPI(title="prefmix", docs_url=None, root_path=root_path)
    for path in ("/v1/mixture", "/metrics"):
        app.add_api_route(path, lambda: None)
    routes.attach(app, ConsoleSettings(is_on=is_on))
    allowed = AllowedHosts((), bound="127.0.0.1")
    return TestClient(
        HostMiddleware(app, allowed=allowed), base_url=f"http://{host}", follow_redirects=False
    )


def test_a_browser_is_sent_to_the_console() -> None:
    answer = client().get("/", headers={"accept": CHROMIUM})
    assert (answer.status_code, answer.headers["location"]) == (302, "/console")
    assert answer.headers["vary"] == "Accept"


@pytest.mark.parametrize(
    "accept",
    [
        *("*/*", "", "application/json", "application/json, text/plain, */*", "text/*", ";;q=,"),
        *("text/html;q=0, */*", "text/html;q=0.5, application/json", "text/html;q=x"),
    ],
)
def test_a_program_is_told_where_things_are(accept: str) -> None:
    """Only what is served is named."""
    answer = client().get("/", headers={"accept": accept})
    assert answer.json() == {
        "server": "prefmix",
        "links": {
            "api": "/v1",
            "mixture": "/v1/mixture",
            "console": "/console",
            "openapi": "/openapi.json",
            "metrics": "/metrics",
        },
    }
    assert answer.headers["vary"] == "Accept"
    assert client().head("/", headers={"accept": accept}).status_code == 200


def test_without_the_console_everybody_gets_the_list() -> None:
    for accept in (CHROMIUM, "*/*"):
        answer = client(is_on=False).get("/", headers={"accept": accept})
        assert answer.status_code == 200
        assert "console" not in answer.json()["links"]


@pytest.mark.parametrize("accept", [CHROMIUM, "*/*"])
def test_no_answer_repeats_the_host_that_was_named(accept: str) -> None:
    for host in ("10.9.8.7:1234", "a.localhost"):
        answer = client(host=host).get("/", headers={"accept": accept})
        assert host.partition(":")[0] not in f"{answer.headers} {answer.text}"
    assert client(host="elsewhere.example").get("/").status_code == 421


def test_a_proxy_s_prefix_is_kept() -> None:
    http = client(root_path="/team/mix")
    assert http.get("/", headers={"accept": CHROMIUM}).headers["location"] == "/team/mix/console"
    assert http.get("/").json()["links"]["mixture"] == "/team/mix/v1/mixture"

"""The console's routes: its own files and nothing else, under a strict policy."""

from __future__ import annotations

import argparse
import re
import tomllib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from prefmix.server.cli.serve import add_arguments, overrides_from_flags
from prefmix.server.config.config_file import load_config
from prefmix.server.console import routes
from prefmix.server.console.routes import FOLDER, page_files
from prefmix.server.console.settings import ConsoleSettings

ROOT = Path(__file__).resolve().parents[4]
MAX_PAGE_BYTES = 100_000


def client(**settings: Any) -> TestClient:
    app = FastAPI()
    routes.attach(app, ConsoleSettings(**({"is_on": True} | settings)))
    return TestClient(app)


def policy(header: str) -> dict[str, str]:
    """A Content-Security-Policy by directive."""
    pairs = (part.strip().partition(" ") for part in header.split(";"))
    return {name: value for name, _, value in pairs}


class Addresses(HTMLParser):
    """The addresses that a page loads, and its inline styles, scripts and handlers."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.inline: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.loaded += [str(given[name]) for name in ("src", "href") if name in given]
        self.inline += [name for name in given if name == "style" or name.startswith("on")]
        if tag == "style" or (tag == "script" and "src" not in given):
            self.inline.append(tag)


def test_every_file_of_the_page_is_served_with_its_type() -> None:
    types = {".html": "text/html", ".js": "text/javascript", ".css": "text/css"}
    with client() as http:
        assert http.get("/console").content == page_files()["index.html"]
        for name, content in page_files().items():
            answer = http.get(f"/console/{name}")
            assert (answer.status_code, answer.content) == (200, content)
            expected = types.get(Path(name).suffix, "image/svg+xml")
            assert answer.headers["content-type"].split(";")[0] == expected


def test_the_page_forbids_other_hosts_inline_scripts_and_frames() -> None:
    with client() as http:
        for path in ("/console", "/console/main.js"):
            headers = http.get(path).headers
            rules = policy(headers["content-security-policy"])
            assert rules["default-src"] == "'self'"
            assert rules["frame-ancestors"] == rules["base-uri"] == rules["object-src"] == "'none'"
            assert "unsafe" not in headers["content-security-policy"]
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["referrer-policy"] == "no-referrer"


def test_the_page_is_small_complete_and_names_no_other_host() -> None:
    assert sum(map(len, page_files().values())) < MAX_PAGE_BYTES
    texts = {name: content.decode() for name, content in page_files().items()}
    for name, text in texts.items():
        addresses = set(re.findall(r"https?://[^\s\"'`)]+", text))
        assert addresses <= {"http://www.w3.org/2000/svg"}, name
        for other in re.findall(r'from "\./([\w.]+)"|url\("([\w.]+)"\)', text):
            assert "".join(other) in texts, name
    for name, folder in (("index.html", "console/"), ("reports.html", "")):
        page = Addresses(texts[name])
        assert page.inline == []
        loaded = [address.removeprefix(folder) for address in page.loaded]
        links = {"../console", "reports"}
        assert set(loaded) - links <= set(texts)


def test_the_page_keeps_nothing_and_writes_no_html() -> None:
    script = "".join(text.decode() for name, text in page_files().items() if name.endswith(".js"))
    for word in ("localStorage", "sessionStorage", "indexedDB", "cookie", "innerHTML", "eval("):
        assert word not in script
    assert "outerHTML" not in script
    assert "insertAdjacentHTML" not in script


def test_the_wheel_has_every_file_of_the_page() -> None:
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert f"{FOLDER.name}/*" in data["package-data"]["prefmix.server.console"]
    assert all(path.is_file() for path in FOLDER.iterdir()), "the pattern takes no folders"


def test_without_the_console_there_is_none() -> None:
    with client(is_on=False) as http:
        for path in ("/console", "/console/main.js", "/console/settings", "/console/reports"):
            assert http.get(path).status_code == 404
    with TestClient(FastAPI()) as http:
        assert http.get("/console").status_code == 404


@pytest.mark.parametrize(
    "path",
    [
        "/console/routes.py",
        "/console/../routes.py",
        "/console/..%2fconsole.py",
        "/console/%2e%2e/console.py",
        "/console/%2fetc%2fpasswd",
    ],
)
def test_no_other_file_is_served(path: str) -> None:
    with client() as http:
        assert http.get(path).status_code == 404


def test_the_page_learns_what_it_begins_with_and_can_offer(tmp_path: Path) -> None:
    with client() as http:
        begins = {"prompt": None, "chat": True, "admin": False, "reports": False}
        assert http.get("/console/settings").json() == begins
    given = {"prompt": "Ask", "has_chat_template": False, "has_admin": True, "reports": tmp_path}
    with client(**given) as http:
        begins = {"prompt": "Ask", "chat": False, "admin": True, "reports": True}
        assert http.get("/console/settings").json() == begins


def test_flags_and_file_say_whether_and_with_what(tmp_path: Path) -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    assert overrides_from_flags(parser.parse_args([])) == {}
    words = ["--no-console", "--reports-dir", "fits", "--console-prompt", "Ask"]
    given = overrides_from_flags(parser.parse_args(words))
    assert given == {"console": False, "reports_dir": "fits", "console_prompt": "Ask"}

    path = tmp_path / "mixture.yaml"
    path.write_text("policies: {a: org/a}")
    config = load_config(path, {})
    assert (config.console, config.reports_dir, config.console_prompt) == (True, None, None)
    path.write_text("{policies: {a: org/a}, console: false, reports_dir: fits/last}")
    config = load_config(path, {})
    assert (config.console, config.reports_dir) == (False, str(tmp_path / "fits" / "last"))


def test_a_request_changes_nothing() -> None:
    with client() as http:
        for method in ("POST", "PUT", "DELETE"):
            assert http.request(method, "/console").status_code == 405


def test_the_page_follows_no_redirect_with_a_key() -> None:
    """A browser would carry it along, and some even to another host."""
    calls = [
        call
        for path in FOLDER.rglob("*.js")
        for call in re.findall(r"\bfetch\((.*?)\}\)", path.read_text(encoding="utf-8"), re.DOTALL)
    ]
    assert calls
    assert [call for call in calls if 'redirect: "error"' not in call] == []

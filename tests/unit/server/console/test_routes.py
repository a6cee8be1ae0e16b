"""The console's routes: its own files and one report, nothing else, under a strict policy."""

from __future__ import annotations

import argparse
import re
import tomllib
from html.parser import HTMLParser
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from prefmix.server.cli.serve import add_arguments, overrides_from_flags
from prefmix.server.config.serve_config import load_config
from prefmix.server.console import routes
from prefmix.server.console.routes import FOLDER, ConsoleSettings, page_files

ROOT = Path(__file__).resolve().parents[4]
MAX_PAGE_BYTES = 100_000


def client(
    *, is_on: bool = True, report: Path | None = None, has_admin: bool = False
) -> TestClient:
    app = FastAPI()
    settings = ConsoleSettings(is_on=is_on, fit_report=report, has_admin=has_admin)
    routes.attach(app, settings)
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
    page = Addresses(texts["index.html"])
    assert page.inline == []
    assert {address.removeprefix("console/") for address in page.loaded} <= set(texts)


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
        for path in ("/console", "/console/main.js", "/console/settings", "/console/report/"):
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
        "/console/report/other.html",
        "/console/report/..%2fsecret.html",
        "/console/report/%2e%2e%2fsecret.html",
    ],
)
def test_no_other_file_is_served(tmp_path: Path, path: str) -> None:
    folder = tmp_path / "report"
    folder.mkdir()
    for place in (folder / "report.html", folder / "other.html", tmp_path / "secret.html"):
        place.write_text("secret")
    with client(report=folder) as http:
        answer = http.get(path)
        assert answer.status_code == 404
        assert "secret" not in answer.text


@pytest.mark.parametrize("name", ["", "report.html", "mine.html"])
def test_a_report_is_linked_from_when_it_is_written(tmp_path: Path, name: str) -> None:
    """The setting is a fit's folder or its page; the page is read anew each time."""
    page = tmp_path / (name or "report.html")
    with client(report=tmp_path / name) as http:
        assert http.get("/console/settings").json()["fit_report"] is None
        assert http.get("/console/report/").status_code == 404
        for text in ("the first fit", "the second fit"):
            page.write_text(text)
            linked = http.get("/console/settings").json()["fit_report"]
            answer = http.get(f"/console/{linked}")
            assert answer.text == text
            assert answer.headers["content-type"].startswith("text/html")
    rules = policy(answer.headers["content-security-policy"])
    assert (rules["default-src"], rules["img-src"]) == ("'none'", "data:")
    assert "script-src" not in rules
    assert "sandbox" in rules


def test_a_report_does_not_lead_out_of_its_folder(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    folder = tmp_path / "fit"
    (folder / "..data").mkdir(parents=True)
    page = folder / "report.html"
    page.symlink_to(tmp_path / "secret")
    with client(report=folder) as http:
        assert http.get("/console/report/").status_code == 404
        assert http.get("/console/settings").json()["fit_report"] is None
        page.unlink()
        # As Kubernetes mounts a ConfigMap.
        (folder / "..data" / "report.html").write_text("a fit")
        page.symlink_to("..data/report.html")
        assert http.get("/console/report/").text == "a fit"


@pytest.mark.parametrize("has_admin", [True, False])
def test_the_page_learns_whether_it_can_publish(has_admin: bool) -> None:
    with client(has_admin=has_admin) as http:
        assert http.get("/console/settings").json() == {"admin": has_admin, "fit_report": None}


def test_flags_and_file_say_whether_and_with_which_report(tmp_path: Path) -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    assert overrides_from_flags(parser.parse_args([])) == {}
    given = overrides_from_flags(parser.parse_args(["--no-console", "--fit-report", "fit"]))
    assert given == {"console": False, "fit_report": "fit"}

    path = tmp_path / "mixture.yaml"
    path.write_text("policies: {a: org/a}")
    config = load_config(path, {})
    assert (config.console, config.fit_report) == (True, None)
    path.write_text("{policies: {a: org/a}, console: false, fit_report: fits/last}")
    config = load_config(path, {})
    assert (config.console, config.fit_report) == (False, str(tmp_path / "fits" / "last"))


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

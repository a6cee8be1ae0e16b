"""The reports' list: reports of the folder and nothing else, under a policy that runs nothing."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from prefmix.server.auth.access_levels import Level, level_of
from prefmix.server.console import reports, routes
from prefmix.server.console.settings import ConsoleSettings


def client(folder: Path | None) -> TestClient:
    app = FastAPI()
    routes.attach(app, ConsoleSettings(is_on=True, reports=folder))
    return TestClient(app)


def write(folder: Path, *, text: str = "a report", at_s: float | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    page = folder / "report.html"
    page.write_text(text)
    if at_s is not None:
        os.utime(page, (at_s, at_s))
    return page


def listing(http: TestClient) -> Any:
    answer = http.get("/console/report/index.json")
    assert answer.headers["cache-control"] == "no-store"
    return answer.json()


def test_reports_are_listed_from_when_they_are_written(tmp_path: Path) -> None:
    """The newest is first; a folder that is a report itself is one, and a page is read anew."""
    folder = tmp_path / "reports"
    with client(folder) as http:
        assert http.get("/console/settings").json()["reports"] is True
        assert listing(http) == {"reports": [], "not_listed": 0}
        write(folder / "older fit", at_s=1000)
        write(folder, at_s=2000, text="its own")
        (folder / "no report").mkdir()
        assert listing(http)["reports"] == [
            {"path": "report.html", "modified": 2000},
            {"path": "older fit/report.html", "modified": 1000},
        ]
        assert http.get("/console/report/report.html").text == "its own"
        for text in ("first", "second"):
            write(folder / "older fit", text=text)
            answer = http.get("/console/report/older%20fit/report.html")
            assert answer.text == text
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["x-content-type-options"] == "nosniff"
    rules = answer.headers["content-security-policy"]
    assert "default-src 'none'" in rules
    assert "script-src" not in rules
    assert rules.endswith("; sandbox")


def test_without_a_folder_there_are_no_reports() -> None:
    with client(None) as http:
        assert http.get("/console/settings").json()["reports"] is False
        for path in ("reports", "report/index.json", "report/report.html"):
            assert http.get(f"/console/{path}").status_code == 404


@pytest.mark.parametrize(
    "path",
    [
        *("other.html", "fit/kl.png", "fit/weights.json", "fit", "fit/", "fit/deep/report.html"),
        *("../report.html", "..%2freport.html", "%2e%2e/report.html", "fit/../../report.html"),
        *("fit%2f..%2f..%2freport.html", "%2fetc%2fpasswd", "./other.html", "fit//report.html"),
        *("fit/report.html%00", "FIT/report.html", "fit/report.html/", ""),
    ],
)
def test_nothing_but_reports_of_the_folder_is_served(tmp_path: Path, path: str) -> None:
    folder = tmp_path / "reports"
    for place in (tmp_path, folder / "fit", folder / "fit" / "deep"):
        write(place, text="secret")
    for name in ("other.html", "fit/kl.png", "fit/weights.json"):
        (folder / name).write_text("secret")
    with client(folder) as http:
        answer = http.get(f"/console/report/{path}")
        assert answer.status_code == 404
        assert "secret" not in answer.text


def test_no_link_leads_out_of_the_folder(tmp_path: Path) -> None:
    write(tmp_path / "secret", text="secret")
    folder = tmp_path / "reports"
    for name in ("linked-page", "pipe", "circle", "mounted/..data"):
        (folder / name).mkdir(parents=True)
    (folder / "linked-folder").symlink_to(tmp_path / "secret")
    (folder / "linked-page" / "report.html").symlink_to(tmp_path / "secret" / "report.html")
    (folder / "circle" / "report.html").symlink_to("report.html")
    os.mkfifo(folder / "pipe" / "report.html")
    # As Kubernetes mounts a ConfigMap.
    (folder / "mounted" / "report.html").symlink_to("..data/report.html")
    write(folder / "mounted" / "..data", text="a fit")
    with client(folder) as http:
        paths = [report["path"] for report in listing(http)["reports"]]
        assert paths == ["mounted/report.html"]
        assert http.get("/console/report/mounted/report.html").text == "a fit"
        for name in ("linked-folder", "linked-page", "circle", "pipe"):
            assert http.get(f"/console/report/{name}/report.html").status_code == 404


def test_a_folder_that_is_a_link_itself_is_followed(tmp_path: Path) -> None:
    write(tmp_path / "real" / "fit")
    (tmp_path / "link").symlink_to("real")
    with client(tmp_path / "link") as http:
        assert len(listing(http)["reports"]) == 1


def test_the_list_has_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reports, "MAX_LISTED", 3)
    monkeypatch.setattr(reports, "MAX_ENTRIES", 8)
    for place in range(5):
        write(tmp_path / str(place), at_s=place)
    with client(tmp_path) as http:
        found = listing(http)
        paths = [report["path"] for report in found["reports"]]
        assert (paths, found["not_listed"]) == ([f"{n}/report.html" for n in (4, 3, 2)], 2)
        for place in range(5, 20):
            write(tmp_path / str(place), at_s=place)
        found = listing(http)
        assert len(found["reports"]) + found["not_listed"] == 8


def test_the_key_opens_the_reports_and_what_is_told_of_them() -> None:
    data = ("/console/settings", "/console/report/index.json", "/console/report/fit/report.html")
    for path in (*data, "/console/report/", "/console/report/index.json/"):
        assert level_of(path) is Level.KEY, path
    assert level_of("/console/reports") is level_of("/console/reports/") is Level.OPEN


def test_the_page_of_the_reports_allows_their_style_and_no_script_but_its_own(
    tmp_path: Path,
) -> None:
    with client(tmp_path) as http:
        page = http.get("/console/reports")
        assert page.content == routes.page_files()["reports.html"]
        for path in ("/console/reports", "/console/reports.html"):
            rules = http.get(path).headers["content-security-policy"]
            assert "default-src 'self'" in rules
            assert "script-src" not in rules
            assert "style-src 'self' 'unsafe-inline'" in rules
            assert "frame-src blob:" in rules

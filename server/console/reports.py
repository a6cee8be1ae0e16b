"""The reports in a folder: what `prefmix fit` and `prefmix eval` have written, one folder each.

A report's page holds its style and pictures, so the page is all that is ever read. Reports quote
prompts and name policies, so they need the API key, which a browser sends with no link: a page of
the console asks for the key, fetches a report and shows it in a frame.
"""

from __future__ import annotations

import heapq
import itertools
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

from fastapi import Response
from fastapi.responses import FileResponse, JSONResponse
from starlette.exceptions import HTTPException

PAGE = "report.html"
"""File name of a report, as the commands write it."""

MAX_LISTED = 200
"""Most reports in a list; the newest are listed."""

MAX_ENTRIES = 10_000
"""Most entries of the folder that are looked at."""

HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    # Its own style and pictures, and nothing that runs.
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'; sandbox"
    ),
}


@dataclass(frozen=True, slots=True)
class Report:
    """A report that is there now."""

    path: str
    """The page's path below the folder: report.html or NAME/report.html."""
    file: Path
    modified_s: float
    """Time of the last change, in seconds since 1970."""


def list_reports(folder: Path) -> JSONResponse:
    """The newest reports, newest first, and the number of further ones."""
    found = list(_found(folder))
    newest = heapq.nlargest(MAX_LISTED, found, key=lambda report: report.modified_s)
    listed = [{"path": report.path, "modified": report.modified_s} for report in newest]
    answer = {"reports": listed, "not_listed": len(found) - len(newest)}
    return JSONResponse(answer, headers=HEADERS)


def send_report(folder: Path, path: str) -> Response:
    """One report's page. Raises: HTTPException with 404 unless `path` is that of a report."""
    # A path is compared with those that are there, and never put together.
    file = next((report.file for report in _found(folder) if report.path == path), None)
    if file is None:
        raise HTTPException(HTTPStatus.NOT_FOUND)
    return FileResponse(file, media_type="text/html; charset=utf-8", headers=HEADERS)


def _found(folder: Path) -> Iterator[Report]:
    """The reports in the folder and one level below; none that a link leads out of it."""
    root = folder.resolve()
    try:
        with os.scandir(root) as entries:
            names = [entry.name for entry in itertools.islice(entries, MAX_ENTRIES)]
    except OSError:  # not made yet, or not readable
        return
    for path in (PAGE, *(f"{name}/{PAGE}" for name in names)):
        try:
            file = (root / path).resolve(strict=True)
            status = file.stat()
        except (OSError, RuntimeError):  # none there, or a circle of links
            continue
        if stat.S_ISREG(status.st_mode) and file.is_relative_to(root):
            yield Report(path, file, status.st_mtime)

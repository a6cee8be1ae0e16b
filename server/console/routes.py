"""The routes of the mixing console at /console, a page of static files that uses this server's API.

The page holds no secrets and loads nothing from other hosts, so it is open even where the API needs
a key. Users type the key and the admin token into the page, which keeps them in memory only.
"""

from __future__ import annotations

import mimetypes
from dataclasses import dataclass
from functools import cache
from http import HTTPStatus
from pathlib import Path

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import FileResponse, JSONResponse
from starlette.exceptions import HTTPException

CONSOLE_ATTRIBUTE = "prefmix_console"
"""The attribute of vLLM's parsed arguments in which `prefmix serve` passes the ConsoleSettings."""

CONSOLE_KEY = "prefmix_console"
"""The attribute of `app.state` that holds the ConsoleSettings."""

FOLDER = Path(__file__).with_name("page")
PAGE = "index.html"
REPORT = "report.html"
"""File name of the report that `prefmix fit` writes."""

_TYPES = {".js": "text/javascript; charset=utf-8"}
"""Media types that a machine's own table may get wrong."""

_SHARED_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
_PAGE_HEADERS = _SHARED_HEADERS | {
    # Trusted types: not even this page's own scripts can turn text into HTML.
    "Content-Security-Policy": (
        "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'; require-trusted-types-for 'script'"
    ),
}
_REPORT_HEADERS = _SHARED_HEADERS | {
    # A fit's report embeds its style and pictures and needs no script.
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'; sandbox"
    ),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class ConsoleSettings:
    """The launcher's settings of the console."""

    is_on: bool
    fit_report: Path | None = None
    """Path of a fit's report.html or its folder; the file may be written later."""
    has_admin: bool = False
    """True if the admin routes are on the console's own port."""


router = APIRouter(prefix="/console", include_in_schema=False)


def attach(app: FastAPI, settings: ConsoleSettings | None) -> None:
    """Adds the console to the server, if it is on."""
    if settings is not None and settings.is_on:
        setattr(app.state, CONSOLE_KEY, settings)
        app.include_router(router)


@router.get("")
def show_page() -> Response:
    """Serves the page."""
    return _static(PAGE)


@router.get("/settings")
def show_settings(request: Request) -> JSONResponse:
    """Tells the page whether there are admin routes and a fit's report."""
    settings = _settings(request)
    report = _report(settings)
    answer = {"admin": settings.has_admin, "fit_report": None if report is None else "report/"}
    return JSONResponse(answer, headers=_SHARED_HEADERS)


@router.get("/report/")
def show_report(request: Request) -> FileResponse:
    """Serves the report of a fit, read from disk each time."""
    report = _report(_settings(request))
    if report is None:
        raise HTTPException(HTTPStatus.NOT_FOUND)
    return FileResponse(report, media_type="text/html; charset=utf-8", headers=_REPORT_HEADERS)


@router.get("/{name}")
def show_file(name: str) -> Response:
    """Serves one of the page's files."""
    return _static(name)


@cache
def page_files() -> dict[str, bytes]:
    """All files of the page by name; nothing else is served."""
    return {path.name: path.read_bytes() for path in sorted(FOLDER.iterdir()) if path.is_file()}


def _static(name: str) -> Response:
    content = page_files().get(name)
    if content is None:
        raise HTTPException(HTTPStatus.NOT_FOUND)
    media_type = _TYPES.get(Path(name).suffix) or mimetypes.guess_type(name)[0]
    return Response(content, media_type=media_type, headers=_PAGE_HEADERS)


def _settings(request: Request) -> ConsoleSettings:
    settings: ConsoleSettings = getattr(request.app.state, CONSOLE_KEY)
    return settings


def _report(settings: ConsoleSettings) -> Path | None:
    """The report's file, or None if there is none now or a link leads out of its folder."""
    if settings.fit_report is None:
        return None
    path = settings.fit_report.resolve()
    if path.is_dir():
        folder, path = path, (path / REPORT).resolve()
        if not path.is_relative_to(folder):
            return None
    return path if path.is_file() else None

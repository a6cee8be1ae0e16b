"""The mixing console at /console: a page of static files that uses this server's own API.

The page holds no secrets and asks nothing of any other host, so it is open where the API has a
key; the key and the admin token are typed into it and kept in its memory.
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
"""Where `prefmix serve` leaves the ConsoleSettings on vLLM's parsed arguments."""

CONSOLE_KEY = "prefmix_console"
"""The attribute of `app.state` that holds them, with the admin routes' place."""

FOLDER = Path(__file__).with_name("page")
PAGE = "index.html"
REPORT = "report.html"
"""What `prefmix fit` calls the page of its report."""

_TYPES = {".js": "text/javascript; charset=utf-8"}
"""Where a machine's own table may say something else."""

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
    # A fit's report has its style and pictures in itself and needs no script.
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'; sandbox"
    ),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class ConsoleSettings:
    """What the launcher decides about the console."""

    is_on: bool
    fit_report: Path | None = None
    """A fit's report.html, or the folder it is in; it may be written later."""
    has_admin: bool = False
    """Whether the admin routes are on the console's own port."""


router = APIRouter(prefix="/console", include_in_schema=False)


def attach(app: FastAPI, settings: ConsoleSettings | None) -> None:
    """Adds the console to the server, if it is on."""
    if settings is not None and settings.is_on:
        setattr(app.state, CONSOLE_KEY, settings)
        app.include_router(router)


@router.get("")
def show_page() -> Response:
    """The page."""
    return _static(PAGE)


@router.get("/settings")
def show_settings(request: Request) -> JSONResponse:
    """What the page cannot find out by itself."""
    settings = _settings(request)
    report = _report(settings)
    answer = {"admin": settings.has_admin, "fit_report": None if report is None else "report/"}
    return JSONResponse(answer, headers=_SHARED_HEADERS)


@router.get("/report/")
def show_report(request: Request) -> FileResponse:
    """The last fit's report: this one file, read anew each time."""
    report = _report(_settings(request))
    if report is None:
        raise HTTPException(HTTPStatus.NOT_FOUND)
    return FileResponse(report, media_type="text/html; charset=utf-8", headers=_REPORT_HEADERS)


@router.get("/{name}")
def show_file(name: str) -> Response:
    """One of the page's own files."""
    return _static(name)


@cache
def page_files() -> dict[str, bytes]:
    """Every file of the page by its name: what is not in here is not served."""
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
    """The report's file, if there is one now; in a folder, no link that leads out of it."""
    if settings.fit_report is None:
        return None
    path = settings.fit_report.resolve()
    if path.is_dir():
        folder, path = path, (path / REPORT).resolve()
        if not path.is_relative_to(folder):
            return None
    return path if path.is_file() else None

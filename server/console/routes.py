"""The routes of the mixing console at /console, a page of static files that uses this server's API.

The page holds no secrets and loads nothing from other hosts, so it is open even where the API needs
a key. Users type the key and the admin token into the page, which keeps them in memory only.
"""

from __future__ import annotations

import mimetypes
from functools import cache
from http import HTTPStatus
from pathlib import Path

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from prefmix.server.console import entrance, reports
from prefmix.server.console.settings import CONSOLE_ATTRIBUTE, ConsoleSettings

FOLDER = Path(__file__).with_name("page")
PAGE = "index.html"
REPORTS_PAGE = "reports.html"

_TYPES = {".js": "text/javascript; charset=utf-8"}
"""Media types that a machine's own table may get wrong."""

_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
# Trusted types: not even the pages' own scripts can turn text into HTML.
_POLICY = (
    "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; require-trusted-types-for 'script'"
)
_POLICIES = {
    # A report in its frame inherits this policy, and brings its style and pictures along.
    REPORTS_PAGE: f"{_POLICY}; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "frame-src blob:"
}
"""Content-Security-Policy of the files that have one of their own."""

router = APIRouter(prefix=entrance.CONSOLE_PATH, include_in_schema=False)


def attach(app: FastAPI, settings: ConsoleSettings | None) -> None:
    """Adds the server's first page and, if it is on, the console."""
    app.include_router(entrance.router)
    if settings is not None and settings.is_on:
        setattr(app.state, CONSOLE_ATTRIBUTE, settings)
        app.include_router(router)


@router.get("")
def show_page() -> Response:
    """Serves the page."""
    return _static(PAGE)


@router.get("/settings")
def show_settings(request: Request) -> JSONResponse:
    """Tells the page what it begins with and what it can offer."""
    settings = _settings(request)
    answer = {
        "prompt": settings.prompt,
        "chat": settings.has_chat_template,
        "admin": settings.has_admin,
        "reports": settings.reports is not None,
    }
    return JSONResponse(answer, headers=_HEADERS)


@router.get("/reports")
def show_reports_page(request: Request) -> Response:
    """Serves the page that lists the reports."""
    _reports(request)
    return _static(REPORTS_PAGE)


@router.get("/report/index.json")
def list_reports(request: Request) -> Response:
    """Lists the reports that are there now."""
    return reports.list_reports(_reports(request))


@router.get("/report/{path:path}")
def show_report(path: str, request: Request) -> Response:
    """Serves one report, read from disk each time."""
    return reports.send_report(_reports(request), path)


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
    headers = _HEADERS | {"Content-Security-Policy": _POLICIES.get(name, _POLICY)}
    return Response(content, media_type=media_type, headers=headers)


def _settings(request: Request) -> ConsoleSettings:
    settings: ConsoleSettings = getattr(request.app.state, CONSOLE_ATTRIBUTE)
    return settings


def _reports(request: Request) -> Path:
    folder = _settings(request).reports
    if folder is None:
        raise HTTPException(HTTPStatus.NOT_FOUND)
    return folder

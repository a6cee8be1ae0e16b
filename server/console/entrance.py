"""The route /, which sends a browser to the console and tells a program where things are."""

from __future__ import annotations

from http import HTTPStatus

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import JSONResponse, RedirectResponse
from starlette.routing import BaseRoute

CONSOLE_PATH = "/console"
_API = "/v1"
"""The base URL that OpenAI's clients take; itself no route."""

_PLACES = {
    "mixture": "/v1/mixture",
    "models": "/v1/models",
    "chat_completions": "/v1/chat/completions",
    "completions": "/v1/completions",
    "responses": "/v1/responses",
    "console": CONSOLE_PATH,
    "docs": "/docs",
    "openapi": "/openapi.json",
    "ready": "/ready",
    "health": "/health",
    "metrics": "/metrics",
}

router = APIRouter(include_in_schema=False)


@router.api_route("/", methods=["GET", "HEAD"])
def show_places(request: Request) -> Response:
    """Redirects whoever would rather have HTML to the console; names the routes to everyone else.

    Every address is a path, with the root path but without the host that the request named.
    """
    app: FastAPI = request.app
    root = str(request.scope.get("root_path", "")).rstrip("/")
    served = {_path(route) for route in app.router.routes}
    headers = {"Vary": "Accept", "Cache-Control": "no-cache"}
    if CONSOLE_PATH in served and _wants_html(request.headers.get("accept", "")):
        return RedirectResponse(f"{root}{CONSOLE_PATH}", HTTPStatus.FOUND, headers=headers)
    links = {name: f"{root}{path}" for name, path in _PLACES.items() if path in served}
    answer = {"server": app.title, "links": {"api": f"{root}{_API}", **links}}
    return JSONResponse(answer, headers=headers)


def _path(route: BaseRoute) -> str:
    return str(getattr(route, "path", ""))


def _wants_html(accept: str) -> bool:
    """True for an Accept field that names HTML and gives it more weight than JSON."""
    weights = dict[str, float]()
    for part in accept.lower().split(","):
        name, *parameters = (word.strip() for word in part.split(";"))
        weights[name] = next((_number(p[2:]) for p in parameters if p.startswith("q=")), 1.0)
    json = weights.get("application/json", weights.get("*/*", 0.0))
    return weights.get("text/html", 0.0) > json


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0

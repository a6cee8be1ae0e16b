"""The OpenAPI description of the routes, and /docs, the page that shows it.

FastAPI's own /docs loads its scripts from a public host, and people type keys into the page.
vLLM's page (`--enable-offline-docs`, on by default here) ignores the root path and loads its icon
from another host. So this server has a page of its own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse, JSONResponse

DOCS_PATH = "/docs"
_SCRIPTS = "/static"
"""Path under which vLLM serves its copy of Swagger UI."""

_ERROR = {
    "message": {"type": "string"},
    "type": {"type": "string"},
    "param": {"anyOf": [{"type": "string"}, {"type": "null"}]},
    "code": {"type": "integer"},
}
REFUSAL: dict[str, Any] = {
    "description": "Refused; the message says what was wrong, what came and what is allowed.",
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["error"],
                "properties": {
                    "error": {"type": "object", "required": list(_ERROR), "properties": _ERROR}
                },
            }
        }
    },
}
"""The OpenAPI description of the error responses that prefmix.server.http.errors makes."""


def describe_refusals(app: FastAPI) -> None:
    """Describes the error responses of all routes, instead of a 422 in FastAPI's shape."""
    generate = app.openapi
    one_at_a_time = threading.Lock()

    def openapi() -> dict[str, Any]:
        with one_at_a_time:
            if app.openapi_schema is None:
                for operations in generate()["paths"].values():
                    for operation in operations.values():
                        operation["responses"].pop("422", None)
                        operation["responses"].setdefault("4XX", REFUSAL)
            assert app.openapi_schema is not None, "FastAPI keeps what it has generated"
            return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def attach_description(app: FastAPI) -> None:
    """Replaces FastAPI's /openapi.json by `show_description`, if it is on."""
    if app.openapi_url is not None:
        _replace(app, app.openapi_url, show_description)


def show_description(request: Request) -> JSONResponse:
    """The description. FastAPI calls this in a thread: making it takes a second the first time."""
    app: FastAPI = request.app
    description = app.openapi()
    root = request.scope.get("root_path", "").rstrip("/")
    if root and app.root_path_in_servers:
        description = {**description, "servers": [{"url": root}]}
    return JSONResponse(description)


def attach_docs_page(app: FastAPI) -> None:
    """Replaces vLLM's /docs by `show_docs`, if it is on."""
    paths = {getattr(route, "path", "") for route in app.router.routes}
    if not {DOCS_PATH, _SCRIPTS} <= paths or app.openapi_url is None:
        return
    _replace(app, DOCS_PATH, show_docs)


def _replace(app: FastAPI, path: str, endpoint: Callable[[Request], Response]) -> None:
    others = [route for route in app.router.routes if getattr(route, "path", "") != path]
    app.router.routes[:] = others
    app.add_api_route(path, endpoint, include_in_schema=False, response_model=None)


def show_docs(request: Request) -> HTMLResponse:
    """Swagger UI, with scripts from this server."""
    app: FastAPI = request.app
    root = request.scope.get("root_path", "").rstrip("/")
    return get_swagger_ui_html(
        openapi_url=f"{root}{app.openapi_url}",
        title=f"{app.title}: API",
        swagger_js_url=f"{root}{_SCRIPTS}/swagger-ui-bundle.js",
        swagger_css_url=f"{root}{_SCRIPTS}/swagger-ui.css",
        swagger_favicon_url="data:,",
    )

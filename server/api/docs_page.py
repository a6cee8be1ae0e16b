"""/docs: the description of the API as a page, whose scripts come from this server.

FastAPI's own page loads its scripts from a public host, and people type keys into it. vLLM's page
(`--enable-offline-docs`, on by default here) forgets the root path and has an icon from elsewhere.
"""

from __future__ import annotations

from fastapi import FastAPI, Request
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse

from prefmix.server.auth.access_levels import path_of

PATH = "/docs"
_SCRIPTS = "/static"
"""Where vLLM serves its copy of Swagger UI."""


def attach(app: FastAPI) -> None:
    """Puts our page in place of vLLM's, if that is on."""
    paths = {path_of(route) for route in app.router.routes}
    if not {PATH, _SCRIPTS} <= paths or app.openapi_url is None:
        return
    app.router.routes[:] = [route for route in app.router.routes if path_of(route) != PATH]
    app.add_api_route(PATH, show_docs, include_in_schema=False)


def show_docs(request: Request) -> HTMLResponse:
    """The page."""
    app: FastAPI = request.app
    root = request.scope.get("root_path", "").rstrip("/")
    return get_swagger_ui_html(
        openapi_url=f"{root}{app.openapi_url}",
        title=f"{app.title}: API",
        swagger_js_url=f"{root}{_SCRIPTS}/swagger-ui-bundle.js",
        swagger_css_url=f"{root}{_SCRIPTS}/swagger-ui.css",
        swagger_favicon_url="data:,",
    )

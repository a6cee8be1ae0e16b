"""The choice of the routes that are served, among vLLM's and ours.

Some of vLLM's routes, such as /invocations, /v1/messages and batch chat, cannot carry weights, or
would answer without the API key. So only the routes of an allowlist are kept.
"""

from __future__ import annotations

from fastapi import FastAPI
from starlette.routing import BaseRoute, Match

from prefmix.server.api import generate, models
from prefmix.server.auth.access_levels import LEVELS, path_of
from prefmix.server.traffic.middleware import TEXT_PATHS

OWN_ROUTES = (
    ("POST", "/v1/completions"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/responses"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/{model}"),
    ("GET", "/v1/mixture"),
    ("POST", "/tokenize"),
    ("POST", "/detokenize"),
)
"""Routes that this package must answer, not vLLM: they resolve weights or model names."""


def keep_allowed_routes(app: FastAPI) -> None:
    """Removes the routes that server/auth/access_levels.py does not list; puts TEXT_PATHS first."""
    routes = [route for route in app.router.routes if path_of(route) in LEVELS]
    # The router and vLLM's metrics compare each request with one route after another.
    app.router.routes[:] = sorted(routes, key=lambda route: path_of(route) not in TEXT_PATHS)
    app.openapi_schema = None


def check_own_routes(app: FastAPI) -> None:
    """Raises RuntimeError unless each of OWN_ROUTES is answered by this package."""
    for method, path in OWN_ROUTES:
        route = _matching_route(app, method, path)
        module = getattr(getattr(route, "endpoint", None), "__module__", "")
        if module not in (generate.__name__, models.__name__):
            raise RuntimeError(
                f"{method} {path} is answered by {module or 'nothing'}, not by prefmix; "
                "another plugin has taken it, remove that one from VLLM_PLUGINS"
            )


def _matching_route(app: FastAPI, method: str, path: str) -> BaseRoute | None:
    scope = {"type": "http", "method": method, "path": path, "root_path": "", "headers": []}
    return next((r for r in app.router.routes if r.matches(scope)[0] is Match.FULL), None)

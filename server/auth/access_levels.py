"""Access levels: the list of all routes and who may call them.

A path that is not listed is not served; on a server with an API key it is answered 401 without the
key. Tests compare the list with a running server.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Mapping
from functools import cache

from starlette.routing import BaseRoute, compile_path


class Level(enum.Enum):
    """Groups of clients that may call a route."""

    OPEN = "open"
    """Anyone who can reach the port: probes, metrics, descriptions, the console's page."""
    KEY = "key"
    """Clients with an API key, if the server has one: routes that run or describe a policy."""
    ADMIN = "admin"
    """Clients with an admin token; on a server without one the route does not exist."""


LEVELS: Mapping[str, Level] = {
    "/v1/completions": Level.KEY,
    "/v1/chat/completions": Level.KEY,
    "/v1/responses": Level.KEY,
    "/v1/responses/{response_id}": Level.KEY,
    "/v1/responses/{response_id}/cancel": Level.KEY,
    "/v1/models": Level.KEY,
    "/v1/models/{model:path}": Level.KEY,
    "/v1/mixture": Level.KEY,
    "/tokenize": Level.KEY,
    "/detokenize": Level.KEY,
    "/health": Level.OPEN,
    "/ready": Level.OPEN,
    "/ping": Level.OPEN,
    "/load": Level.OPEN,
    "/version": Level.OPEN,
    "/metrics": Level.OPEN,
    "/openapi.json": Level.OPEN,
    "/docs": Level.OPEN,
    "/docs/oauth2-redirect": Level.OPEN,
    "/redoc": Level.OPEN,
    "/static": Level.OPEN,
    "/": Level.OPEN,
    "/console": Level.OPEN,
    "/console/settings": Level.KEY,
    "/console/reports": Level.OPEN,
    "/console/report/index.json": Level.KEY,
    "/console/report/{path:path}": Level.KEY,
    "/console/{name}": Level.OPEN,
    "/admin/weights": Level.ADMIN,
    "/admin/weights/history": Level.ADMIN,
    "/admin/weights/apply": Level.ADMIN,
    "/admin/weights/rollback": Level.ADMIN,
    "/admin/weights/reload": Level.ADMIN,
    "/admin/profiles/{name:path}": Level.ADMIN,
    "/admin/default": Level.ADMIN,
    "/admin/policies": Level.ADMIN,
    "/admin/policies/{name:path}": Level.ADMIN,
}
"""The level of each route, by its path as the router spells it."""

FOLDERS = ("/metrics", "/static")
"""Paths of mounted applications; their level holds for all paths below as well."""


class AccessError(RuntimeError):
    """A route without a level, or with one that its class does not enforce."""


def level_of(path: str) -> Level:
    """The level of a request's path; KEY for a path that is not listed.

    Args:
      path: the path as the router sees it, decoded and without the root path.
    """
    listed = _listed(path)
    if listed is not None:
        return listed
    # The router only redirects a path with a missing or surplus slash to the listed one.
    other = path.removesuffix("/") if path.endswith("/") else path + "/"
    return _listed(other) or Level.KEY


def path_of(route: BaseRoute) -> str:
    """A route's path as it was declared."""
    return str(getattr(route, "path", ""))


def check_levels(routes: Iterable[BaseRoute], *, admin_route: type[BaseRoute]) -> None:
    """Checks that each route is listed, and that exactly the admin routes check the admin token.

    Args:
      routes: all routes of an application.
      admin_route: the route class that checks the admin token.
    Raises: AccessError naming the first route that breaks the rule.
    """
    for route in routes:
        level = LEVELS.get(path_of(route))
        if level is None:
            raise AccessError(
                f"the route {path_of(route) or route!r} has no level: say in LEVELS of "
                "server/auth/access_levels.py who may call it"
            )
        if (level is Level.ADMIN) != isinstance(route, admin_route):
            raise AccessError(
                f"the route {path_of(route)!r} has the level {level.value!r}, but its class is "
                f"{type(route).__name__}; admin routes, and they alone, are of class "
                f"{admin_route.__name__}"
            )


@cache
def _patterns() -> tuple[tuple[re.Pattern[str], Level], ...]:
    pairs = [(path, level) for path, level in LEVELS.items() if "{" in path]
    pairs += [(f"{folder}/{{rest:path}}", LEVELS[folder]) for folder in FOLDERS]
    return tuple((compile_path(path)[0], level) for path, level in pairs)


def _listed(path: str) -> Level | None:
    exact = LEVELS.get(path) if "{" not in path else None
    if exact is not None:
        return exact
    return next((level for pattern, level in _patterns() if pattern.match(path)), None)

"""Every route and who may call it: the one list that opens routes, that guards them, and that is
tested against the running server.

A path that is not listed is not served; where the server has an API key, it is not even said that
it does not exist.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Mapping
from functools import cache

from starlette.routing import BaseRoute, compile_path


class Level(enum.Enum):
    """Who may call a route."""

    OPEN = "open"
    """Anyone who reaches the port: probes, metrics, descriptions, the console's page."""
    KEY = "key"
    """Who has an API key, if the server has one: what runs or describes a policy."""
    ADMIN = "admin"
    """Who has an admin token; without one on the server the route does not exist."""


LEVELS: Mapping[str, Level] = {
    "/v1/completions": Level.KEY,
    "/v1/chat/completions": Level.KEY,
    "/v1/responses": Level.KEY,
    "/v1/responses/{response_id}": Level.KEY,
    "/v1/responses/{response_id}/cancel": Level.KEY,
    "/v1/models": Level.KEY,
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
    "/console": Level.OPEN,
    "/console/settings": Level.OPEN,
    "/console/report/": Level.OPEN,
    "/console/{name}": Level.OPEN,
    "/admin/weights": Level.ADMIN,
    "/admin/weights/history": Level.ADMIN,
    "/admin/weights/apply": Level.ADMIN,
    "/admin/weights/rollback": Level.ADMIN,
    "/admin/weights/reload": Level.ADMIN,
    "/admin/profiles/{name}": Level.ADMIN,
    "/admin/default": Level.ADMIN,
}
"""Path of a route, as its router writes it, to its level."""

FOLDERS = ("/metrics", "/static")
"""Applications mounted at a path, which answer below it as well; the level holds there too."""


class AccessError(RuntimeError):
    """A route without a level."""


def level_of(path: str) -> Level:
    """The level of a request's path; KEY for whatever is not listed.

    Args:
      path: decoded and without the root path, as the router sees it.
    """
    listed = _listed(path)
    if listed is not None:
        return listed
    # The router redirects such a path to the listed one and runs nothing.
    other = path.removesuffix("/") if path.endswith("/") else path + "/"
    return _listed(other) or Level.KEY


def path_of(route: BaseRoute) -> str:
    """The path that a route was made with."""
    return str(getattr(route, "path", ""))


def check_levels(routes: Iterable[BaseRoute], *, admin_route: type[BaseRoute]) -> None:
    """Checks that each route is listed, and that the listed admin routes ask for the token.

    Args:
      routes: of an application, all that it will ever have.
      admin_route: the class of route that does so.
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

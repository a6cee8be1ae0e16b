"""The list of routes and levels."""

from __future__ import annotations

import re

import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

from prefmix.server.admin.routes import AdminRoute
from prefmix.server.admin.routes import router as admin_router
from prefmix.server.auth.access_levels import LEVELS, AccessError, Level, check_levels, level_of
from prefmix.server.console import routes


async def answer(request: Request) -> PlainTextResponse:
    return PlainTextResponse("served")


def test_every_path_of_the_list_has_the_level_it_is_listed_with() -> None:
    for path, level in LEVELS.items():
        assert level_of(re.sub(r"\{[^}]*\}", "x", path)) is level
    # The router sends the empty path on to "/".
    assert level_of("") is level_of("/") is Level.OPEN
    assert level_of("/metrics/") is level_of("/static/a/b.css") is Level.OPEN


@pytest.mark.parametrize("path", ["/nowhere", "/v1", "/console/a/b", "/admin", "health"])
def test_what_is_not_listed_needs_the_key(path: str) -> None:
    assert level_of(path) is Level.KEY


def test_our_own_routers_are_listed() -> None:
    check_levels(admin_router.routes, admin_route=AdminRoute)
    check_levels(routes.router.routes, admin_route=AdminRoute)


def test_a_route_without_a_level_is_named() -> None:
    for route in (Route("/new", answer), Mount("/new", app=answer)):
        with pytest.raises(AccessError, match=r"/new' has no level.*server/auth/access_levels\.py"):
            check_levels([route], admin_route=AdminRoute)


def test_an_admin_route_that_asks_for_no_token_is_named() -> None:
    with pytest.raises(AccessError, match="/admin/weights' has the level 'admin'"):
        check_levels([Route("/admin/weights", answer)], admin_route=AdminRoute)


def test_a_token_asked_for_elsewhere_is_named() -> None:
    route = AdminRoute("/v1/models", answer)
    with pytest.raises(AccessError, match="/v1/models' has the level 'key'"):
        check_levels([route], admin_route=AdminRoute)

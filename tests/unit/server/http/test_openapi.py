"""The OpenAPI page describes refusals."""

from __future__ import annotations

import threading
from http import HTTPStatus

from fastapi import FastAPI, Response
from fastapi.testclient import TestClient
from jsonschema import Draft202012Validator

from prefmix.server.http.errors import error_body
from prefmix.server.http.openapi import REFUSAL, attach_description, describe_refusals


def test_every_route_refuses_in_one_shape_and_never_with_422() -> None:
    app = FastAPI()
    own = {412: {"description": "stale"}}

    @app.put("/things/{number}", responses=own)  # type: ignore[arg-type]
    async def put(number: int) -> Response:
        return Response()

    @app.get("/things")
    async def get() -> None: ...

    describe_refusals(app)
    paths = app.openapi()["paths"]
    assert set(paths["/things/{number}"]["put"]["responses"]) == {"200", "412", "4XX"}
    assert set(paths["/things"]["get"]["responses"]) == {"200", "4XX"}
    assert app.openapi() is app.openapi_schema, "made once"


def test_the_shape_is_that_of_a_refusal() -> None:
    schema = REFUSAL["content"]["application/json"]["schema"]
    body = error_body("no", status=HTTPStatus.BAD_REQUEST, param=None)
    Draft202012Validator(schema).validate(body)
    assert not Draft202012Validator(schema).is_valid({"detail": "no"})


def test_the_description_is_made_beside_the_event_loop() -> None:
    """It takes a second for vLLM's bodies, and anyone may ask for it."""
    app = FastAPI(root_path="/api")
    of_the_loop: list[int] = []
    makers: list[int] = []

    @app.get("/loop")
    async def loop() -> None:
        of_the_loop.append(threading.get_ident())

    make = app.openapi

    def made() -> dict[str, object]:
        makers.append(threading.get_ident())
        return make()

    app.openapi = made  # type: ignore[method-assign]
    describe_refusals(app)
    attach_description(app)
    with TestClient(app) as client:
        client.get("/loop")
        for _ in range(2):
            page = client.get("/openapi.json").json()
    assert page["servers"] == [{"url": "/api"}]
    assert list(page["paths"]) == ["/loop"]
    assert len(makers) == 1
    assert makers != of_the_loop

"""Refusals: one shape, one line, the field named. A small app stands in for vLLM's."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from http import HTTPStatus
from typing import Annotated, Any

import httpx
import pytest
from fastapi import APIRouter, FastAPI
from fastapi.testclient import TestClient
from pydantic import BaseModel, Field, model_validator

from prefmix.mixing.shown_value import shown
from prefmix.server.http.errors import (
    MAX_MESSAGE_CHARS,
    RequestError,
    UnknownModelError,
    error_body,
    sendable,
)
from prefmix.server.http.openai_route import OpenAIRoute
from prefmix.server.http.validation_errors import describe_validation


class Named(BaseModel):
    name: str
    parts: list[int] = []


class Body(BaseModel):
    prompt: list[Annotated[int, Field(ge=0)]] | str
    max_tokens: int | None = None
    tools: list[Named | dict[str, int]] = []
    forbidden: bool = False

    @model_validator(mode="after")
    def refuse(self) -> Body:
        if self.forbidden:
            raise RequestError("forbidden is true\n  and that over two lines", param="forbidden")
        return self


router = APIRouter(route_class=OpenAIRoute)


@router.post("/echo")
async def echo(body: Body) -> dict[str, Any]:
    if body.prompt == "model":
        raise UnknownModelError("no such model", param="model")
    if body.prompt == "request":
        raise RequestError("no such thing", param="thing")
    return body.model_dump()


@pytest.fixture
def client() -> Iterator[TestClient]:
    app = FastAPI()
    app.include_router(router)
    with TestClient(app) as client:
        yield client


def refused(response: httpx.Response) -> dict[str, Any]:
    error: dict[str, Any] = response.json()["error"]
    assert response.json() == {"error": error}
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == response.status_code
    assert "\n" not in error["message"]
    assert "pydantic" not in error["message"]
    return error


def test_good_bodies_pass(client: TestClient) -> None:
    assert client.post("/echo", json={"prompt": "hi"}).status_code == 200


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (b'{"prompt": "hi",}', ["not valid JSON", "at character 1"]),
        (b"", ["not a JSON object"]),
        (b"[1]", ["not a JSON object"]),
        (b'"hi"', ["not a JSON object"]),
        (b'{"prompt": "\xff"}', ["cannot be read as JSON", "utf-8"]),
        (b'{"max_tokens": ' + b"9" * 5000 + b"}", ["cannot be read as JSON", "digits"]),
    ],
)
def test_broken_bodies_are_400(client: TestClient, content: bytes, parts: list[str]) -> None:
    headers = {"Content-Type": "application/json"}
    error = refused(client.post("/echo", content=content, headers=headers))
    assert (error["code"], error["type"], error["param"]) == (400, "BadRequestError", None)
    assert [part for part in parts if part not in error["message"]] == []


@pytest.mark.parametrize(
    ("body", "param", "parts"),
    [
        ({}, "prompt", ["missing"]),
        ({"prompt": {"a": 1}}, "prompt", ['{"a": 1}; expected a valid list, or a valid string']),
        ({"prompt": [1, -2]}, "prompt", ["greater than or equal to 0"]),
        ({"prompt": "hi", "max_tokens": "abc"}, "max_tokens", ["'abc'", "integer"]),
        ({"prompt": "hi", "max_tokens": "x" * 1000}, "max_tokens", ["xxx...", "integer"]),
        ({"prompt": "hi", "forbidden": True}, "forbidden", ["forbidden is true and that"]),
        ({"prompt": ["a"]}, "prompt", ["prompt[0] is 'a'", "integer"]),
        ({"prompt": "a", "tools": [{"name": "x"}, {}, 5]}, "tools", ["tools[2] is 5", "an object"]),
        ({"prompt": "a", "tools": [{"parts": [1]}]}, "tools", ["tools[0]", "name is missing"]),
        ({"prompt": "a", "tools": [{"name": 5}, 5]}, "tools", ["tools[1] is 5"]),
        ({"prompt": "a", "tools": [{"name": "x", "parts": ["y"]}]}, "tools", ["tools[0]", "'y'"]),
    ],
)
def test_invalid_fields_are_named(
    client: TestClient, body: dict[str, Any], param: str, parts: list[str]
) -> None:
    error = refused(client.post("/echo", json=body))
    assert (error["code"], error["param"]) == (400, param)
    assert [part for part in parts if part not in error["message"]] == []
    assert len(error["message"]) < 400


def test_request_errors_carry_their_status(client: TestClient) -> None:
    missing = refused(client.post("/echo", json={"prompt": "model"}))
    assert missing == {
        "message": "no such model",
        "type": "NotFoundError",
        "param": "model",
        "code": 404,
    }
    bad = refused(client.post("/echo", json={"prompt": "request"}))
    assert (bad["type"], bad["param"], bad["code"]) == ("BadRequestError", "thing", 400)


def test_errors_without_a_location_are_described() -> None:
    assert describe_validation([]) == ("the request body is not valid", None)
    assert describe_validation(["plain\ntext"]) == ("plain text", None)


@pytest.mark.parametrize(
    "value",
    ["x" * 10_000, list(range(10_000)), 10**5000, {"k": "v" * 999}],
    ids=["text", "list", "number", "object"],
)
def test_values_are_cut_to_a_readable_length(value: object) -> None:
    assert len(shown(value)) < 100


def test_a_message_is_cut_and_says_how_much_is_left_out() -> None:
    text = "".join(map(chr, range(65, 91))) * 100_000
    sent = error_body(text, status=HTTPStatus.BAD_REQUEST, param=text)["error"]
    begin, _, rest = sent["message"].partition("... (")
    assert text.startswith(begin)
    assert rest == f"{len(text) - len(begin)} characters left out)"
    assert MAX_MESSAGE_CHARS - 100 < len(sent["message"]) <= MAX_MESSAGE_CHARS
    assert sent["param"] == sent["message"]
    assert sendable(sent["message"]) == sent["message"], "cut once, however often it is passed on"
    for length in range(MAX_MESSAGE_CHARS - 100, MAX_MESSAGE_CHARS + 100):
        assert len(sendable("x" * length)) <= MAX_MESSAGE_CHARS
    assert sendable("x" * 1900) == "x" * 1900
    assert sendable("a\ud800b") == "a\\ud800b"


@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate, gzip", "x" * 5000])
def test_a_compressed_body_is_refused_by_its_header(client: TestClient, encoding: str) -> None:
    headers = {"Content-Type": "application/json", "Content-Encoding": encoding}
    answer = client.post("/echo", content=gzip.compress(b'{"prompt": "hi"}'), headers=headers)
    error = refused(answer)
    assert (error["code"], error["type"]) == (415, "UnsupportedMediaTypeError")
    assert "identity" in error["message"]
    assert encoding[:60] in error["message"]
    assert len(error["message"]) < 400
    assert answer.headers["accept-encoding"] == "identity"


@pytest.mark.parametrize("encoding", ["identity", "Identity", ""])
def test_a_body_as_it_is_may_say_so(client: TestClient, encoding: str) -> None:
    headers = {"Content-Encoding": encoding}
    assert client.post("/echo", json={"prompt": "hi"}, headers=headers).status_code == 200

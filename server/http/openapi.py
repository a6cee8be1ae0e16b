"""What the OpenAPI page says of every route alike: how it refuses."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

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
"""A response of an OpenAPI page, as prefmix.server.http.errors makes it."""


def describe_refusals(app: FastAPI) -> None:
    """Has the page of `app` say so, instead of a 422 in FastAPI's shape."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            for operations in generate()["paths"].values():
                for operation in operations.values():
                    operation["responses"].pop("422", None)
                    operation["responses"].setdefault("4XX", REFUSAL)
        assert app.openapi_schema is not None, "FastAPI keeps what it has generated"
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]

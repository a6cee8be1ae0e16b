"""Request models whose validation is bounded, made from vLLM's.

vLLM's models take integers of any size, although the engine's messages hold 64 bits: a number that
does not fit raises after vLLM has registered the request. And they look at every item of a list
that is wrong, hundreds of errors an item. Both are changed in the models' core schemas, so that no
field is forgotten.
"""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel
from pydantic_core import SchemaValidator

MAX_INTEGER = 2**63 - 1
"""Largest integer of any field; the smallest is one below its negative."""

_FAIL_FAST = ("list", "set", "frozenset", "tuple", "dict")
_NOT_SCHEMAS = ("cls", "config", "metadata", "serialization", "default", "expected")

Model = TypeVar("Model", bound=type[BaseModel])


def bounded(model: Model) -> Model:
    """A class decorator: integers have 64 bits, and a list's validation ends at a wrong item.

    The bounds of a field that has some already stay as they are.
    """
    schema = _bounded(model.__pydantic_core_schema__)
    model.__pydantic_core_schema__ = schema
    model.__pydantic_validator__ = SchemaValidator(schema)
    return model


def _bounded(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_bounded(each) for each in schema]
    if isinstance(schema, tuple):
        return tuple(_bounded(each) for each in schema)
    if not isinstance(schema, dict):
        return schema
    copy = {key: each if key in _NOT_SCHEMAS else _bounded(each) for key, each in schema.items()}
    kind = copy.get("type")
    if kind in _FAIL_FAST:
        copy["fail_fast"] = True
    elif kind == "int":
        if "lt" not in copy:
            copy["le"] = min(copy.get("le", MAX_INTEGER), MAX_INTEGER)
        if "gt" not in copy:
            copy["ge"] = max(copy.get("ge", -MAX_INTEGER - 1), -MAX_INTEGER - 1)
    return copy

"""Pydantic's list of errors, told as one sentence about the first wrong field."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from http import HTTPStatus
from typing import Any

from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse

from prefmix.mixing.shown_value import shown
from prefmix.server.http.body_places import place_of, written
from prefmix.server.http.errors import error_response, one_line

_MAX_REASONS = 4

_PYTHONS_OBJECT = re.compile(r"a valid dictionary(?: or instance of \w+)?")
"""Pydantic's name for what JSON calls an object."""

_TYPES = ("str", "int", "float", "bool", "dict", "none")
"""Branches of a union, which pydantic puts into an error's location beside the fields."""

_MAX_ERRORS = 1000
"""Errors that are looked at; a list of hundreds of kinds of items reports one for each kind."""


def validation_response(error: RequestValidationError) -> JSONResponse:
    """A 400 for a body that did not validate, with one sentence instead of pydantic's list."""
    message, param = describe_validation(error.errors(), error.body)
    return error_response(message, status=HTTPStatus.BAD_REQUEST, param=param)


def describe_validation(errors: Sequence[Any], body: object = None) -> tuple[str, str | None]:
    """Turns pydantic's list of errors into one sentence and the field that it is about.

    Args:
      errors: pydantic's list.
      body: what was validated, by which the sentence names the wrong part of a field; None if it
        is not known.

    The sentence describes the first wrong field only, and of a list its first wrong item. A union
    type reports an error for each of its branches; they become one "expected ..., or ...".
    """
    errors = errors[:_MAX_ERRORS]
    if not errors:
        return "the request body is not valid", None
    first = errors[0]
    if not isinstance(first, dict):
        return one_line(str(first)), None
    if first.get("type") == "missing":  # perhaps of another kind of body than the one meant
        others = (each for each in errors if _index(each) >= 0 or each.get("type") != "missing")
        first = next(others, first)
    cause = first.get("ctx", {}).get("error") if isinstance(first.get("ctx"), dict) else None
    if isinstance(cause, Exception):
        # Own checks name their field.
        param = getattr(cause, "param", None) or _field(first)
        return one_line(_plain_message(cause)), param

    param = _field(first)
    if param is None:
        return "the request body is not a JSON object", None
    about_it = [error for error in errors if isinstance(error, dict) and _field(error) == param]
    place = max(_index(error) for error in about_it)
    if place >= 0:
        return one_line(_describe_item(about_it, f"{param}[{place}]", place, body)), param
    if first.get("type") == "missing":
        name = str(first["loc"][-1])
        return (f"{param} is missing" if name == param else f"{param}: {name} is missing"), param
    return one_line(_describe_value(about_it, param, body)), param


def _describe_value(errors: Sequence[dict[str, Any]], param: str, body: object) -> str:
    """Describes the wrong value of a field, or the innermost value that makes it wrong."""
    wrong = [error for error in errors if error.get("type") != "missing"] or errors
    placed = [(*place_of(error, body), error) for error in wrong]
    place, value, first = max(placed, key=lambda each: len(each[0]))  # the first of the innermost
    expected = _alternatives(
        dict.fromkeys(_expectation(error) for other, _, error in placed if other == place)
    )
    if not place:
        return f"{param} is {shown(_input(errors, param, first))}; {expected}"
    return f"{written(place)} is {shown(value)}; {expected}"


def _describe_item(errors: Sequence[dict[str, Any]], item: str, place: int, body: object) -> str:
    """Describes the wrong item of a list, by the kind of item that it resembles most.

    Args:
      errors: all errors of the list.
      item: the item's name for people.
      body: what was validated; None if it is not known.
      place: its index. The furthest one that an error names: a list that may be of several types
        has an error for each type, and the type that was meant gets furthest.
    """
    by_kind: dict[object, list[dict[str, Any]]] = {}
    for error in errors:
        if _index(error) == place:
            by_kind.setdefault(_below(error)[:1], []).append(error)
    likeliest = min(by_kind.values(), key=len)
    missing = [_below(each)[-1] for each in likeliest if each.get("type") == "missing"]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        return f"{item}: {' and '.join(map(str, missing[:_MAX_REASONS]))} {verb} missing"
    wrong = likeliest[0]
    names = [part for part in _below(wrong) if _is_name(part)]
    within, _ = place_of(wrong, body)
    where = f"{item}.{names[-1]}" if names and len(_below(wrong)) > 1 else item
    where = written(within) if len(within) > 1 else where
    reasons = dict.fromkeys(
        _expectation(error)
        for kind in by_kind.values()
        for error in kind
        if _below(error)[1:] == _below(wrong)[1:]
    )
    expected = _alternatives(reasons)
    return f"{where} is {shown(wrong.get('input'))}; {expected}"


def _path(error: dict[str, Any]) -> list[Any]:
    """The location of an error without the parts that FastAPI and wrapping types add."""
    names = [part for part in error.get("loc", ()) if part not in ("body", "query", "path")]
    # Wrapping validators and branches appear in the location as function-wrap[...].
    return [name for name in names if not (isinstance(name, str) and "[" in name)]


def _field(error: dict[str, Any]) -> str | None:
    """The top-level field that an error is about; None for the body itself."""
    names = _path(error)
    return str(names[0]) if names else None


def _index(error: dict[str, Any]) -> int:
    """The index in the field's list that an error is about; -1 if it is about the field."""
    path = _path(error)
    return path[1] if len(path) > 1 and isinstance(path[1], int) else -1


def _below(error: dict[str, Any]) -> tuple[Any, ...]:
    """The location of an error inside an item of a list."""
    return tuple(_path(error)[2:])


def _is_name(part: Any) -> bool:
    return isinstance(part, str) and part.isidentifier() and part not in _TYPES


def _input(errors: Sequence[Any], param: str, first: dict[str, Any]) -> object:
    """The value of the whole field if an error has it, else the wrong part of it."""
    for error in errors:
        loc = error.get("loc", ()) if isinstance(error, dict) else ()
        if loc and str(loc[-1]) == param:
            return error.get("input")
    return first.get("input")


def _alternatives(reasons: Collection[str]) -> str:
    """Reasons of a union's branches as one: `expected a valid string, or a valid list`."""
    first, *others = list(reasons)[:_MAX_REASONS]
    return ", or ".join([first, *(each.removeprefix("expected ") for each in others)])


def _expectation(error: dict[str, Any]) -> str:
    message = one_line(str(error.get("msg", "not valid")))
    message = _PYTHONS_OBJECT.sub("an object", message)
    return message.removeprefix("Input ").replace("should be", "expected", 1)


def _plain_message(error: Exception) -> str:
    return str(error.args[0]) if error.args else str(error)

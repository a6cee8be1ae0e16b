"""Reading a request's JSON within limits on depth and number of values.

A body of a few megabytes may hold millions of values, and Python's parser keeps the event loop
waiting, and takes a hundred bytes of memory for each, before anyone has looked at them. So the
values are counted in the text before it is parsed, and the count stops at the limit.
"""

from __future__ import annotations

import json
import re
from typing import Any

from prefmix.mixing.shown_value import shown
from prefmix.server.http.errors import RequestError, one_line

MAX_DEPTH = 128
"""Most levels of lists and objects; vLLM takes JSON schemas of 64."""

MAX_VALUES = 2**16
"""Most strings, names of fields, lists and objects together."""

MAX_NUMBERS = 2**19
"""Most values in all, with numbers such as token ids, which cost far less."""

# An unterminated string is one match to the end. Else each of its quotes would be searched from.
_TOKEN = re.compile(r'"(?:[^"\\]++|\\.)*+(?:"|\Z)|[\[\]{},]', re.DOTALL)
_ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


class RepeatedNames(dict[str, Any]):
    """A JSON object that names fields more than once; the last value counts, as in Python."""

    names: tuple[str, ...] = ()
    """The repeated names."""


def read_json(body: bytes) -> Any:
    """The value of a JSON document. An object that repeats a name is a RepeatedNames.

    Raises: RequestError if the body is not JSON, is too large in one of the limits above, or names
      half a surrogate pair, which UTF-8 cannot encode.
    """
    try:
        text = body.decode(json.detect_encoding(body), "surrogatepass")
        _refuse_too_much(text)
        value = json.loads(text, object_pairs_hook=_object)
        if _ESCAPED_SURROGATE.search(text):
            _refuse_half_pairs(value)
    except json.JSONDecodeError as error:
        what = one_line(error.msg).removesuffix(" at")
        raise RequestError(
            f"the request body is not valid JSON: {what} at character {error.pos}"
        ) from None
    except RequestError:
        raise
    except ValueError as error:  # bytes that are no text, or a number of thousands of digits
        raise RequestError(
            f"the request body cannot be read as JSON: {one_line(str(error))}"
        ) from None
    return value


def refuse_repeated_names(value: Any) -> None:
    """Refuses a document in which any object names a field twice. Raises: RequestError."""
    pending = [value]
    while pending:
        value = pending.pop()
        if isinstance(value, RepeatedNames):
            raise RequestError(
                f"the request body names {shown(value.names[0])} more than once in one "
                "object; name it once"
            )
        if isinstance(value, dict):
            pending.extend(value.values())
        elif isinstance(value, list):
            pending.extend(value)


def _refuse_too_much(text: str) -> None:
    num_brackets = text.count("[") + text.count("{")
    num_values = num_brackets + text.count('"') // 2
    num_commas = text.count(",")
    if num_brackets <= MAX_DEPTH and num_values <= MAX_VALUES and num_commas < MAX_NUMBERS:
        return
    num_values = num_commas = depth = 0  # now without those inside strings
    for match in _TOKEN.finditer(text):
        first = text[match.start()]
        if first == ",":
            num_commas += 1
            if num_commas >= MAX_NUMBERS:
                raise _too_much(f"more than {MAX_NUMBERS} values")
            continue
        if first in "]}":
            depth -= 1
            continue
        num_values += 1
        if num_values > MAX_VALUES:
            raise _too_much(f"more than {MAX_VALUES} strings, lists and objects")
        if first != '"':
            depth += 1
            if depth > MAX_DEPTH:
                raise _too_much(f"lists and objects nested more than {MAX_DEPTH} levels deep")


def _too_much(what: str) -> RequestError:
    return RequestError(f"the request body has {what}, the most that this server takes")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) == len(pairs):
        return value
    seen: set[str] = set()
    repeated: dict[str, None] = {}
    for name, _ in pairs:
        if name in seen:
            repeated[name] = None
        seen.add(name)
    marked = RepeatedNames(value)
    marked.names = tuple(repeated)
    return marked


def _refuse_half_pairs(value: Any) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        raise RequestError(
            f"the request body names half a surrogate pair, {half!r}, which is no character; "
            "write both halves, or the character itself"
        ) from None

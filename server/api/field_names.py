"""The fields that this server adds to vLLM's, and requests that misspell one of them.

vLLM takes any field and ignores those that it does not know. A misspelt `preference_weights` would
thus be answered with the default weights, and nothing would say so. Names that resemble ours are
refused; other unknown names pass, as with vLLM, and the answer's headers name them.
"""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Container, Mapping, Sequence
from typing import Any

from prefmix.mixing.shown_value import shown
from prefmix.mixing.wire import MIXING_KEY, WEIGHTS_KEY
from prefmix.server.http.errors import RequestError
from prefmix.server.http.request_json import RepeatedNames

OWN_FIELDS = (
    "preference_weights",
    "preference_profile",
    "preference_mixing",
    "preference_attribution",
    "preference_candidates",
    "preference_prompts",
)
"""Fields of a body. A field that is added here is also known by its misspellings."""

ALIASES = ("negative_prompt", "guidance_scale")
"""Fields of a body that say in other words what ours do."""

OWN_XARGS = (WEIGHTS_KEY, MIXING_KEY)
"""Entries of `vllm_xargs`."""

_PREFIXES = ("preference", "prefmix")
_SHORT = {field.removeprefix("preference_"): field for field in OWN_FIELDS}
"""The Python interface's names of the same things."""

_TAGS = "metadata"
"""OpenAI's field for a client's own tags, in which any name may stand."""

_XARGS = "vllm_xargs"
_ONCE = (*OWN_FIELDS, *ALIASES, _XARGS, "model")
"""Fields that decide the weights; a body may name each of them once."""

_CUTOFF = 0.85
"""Likeness of names, between 0 and 1; one edit of our shortest field is 0.93."""

_MAX_INSIDE = 256
_MAX_NAMES = 8
_MAX_CHARS = 40
_UNSAFE = re.compile(r"[^A-Za-z0-9_.@$-]")


def check_names(body: Mapping[str, Any], known: Container[str]) -> str | None:
    """Checks the names of a body's fields.

    Args:
      known: the fields that vLLM or this server reads.
    Returns: the other fields, as text for a header or a log; None if there are none.
    Raises: RequestError for a name that is meant to be ours, or for one of ours given twice.
    """
    # A field that is null asks for nothing: some clients send all that they know.
    unknown = [name for name in body if name not in known and body[name] is not None]
    for name in unknown:
        _refuse(name, resembled(name) or _SHORT.get(_snake_case(name)))
        inside = body[name]
        if isinstance(inside, dict) and name != _TAGS:
            # extra_body, for one, is an argument of OpenAI's client and no field.
            for inner in itertools.islice(inside, _MAX_INSIDE):
                _refuse(f"{name:.{_MAX_CHARS}}.{inner:.{_MAX_CHARS}}", misspelt(inner))
    xargs = body.get(_XARGS)
    if isinstance(xargs, dict):
        for name in xargs:
            if name not in OWN_XARGS:
                _refuse(
                    f"{_XARGS}.{name:.{_MAX_CHARS}}", resembled(name, (*OWN_XARGS, *OWN_FIELDS))
                )
    _refuse_repeated(body)
    return _listed(unknown) if unknown else None


def _refuse(name: str, meant: str | None) -> None:
    if meant is None:
        return
    where = f"{_XARGS}.{meant}" if meant in OWN_XARGS else meant
    place = "" if "." not in name or meant in OWN_XARGS else " at the top level of the body"
    raise RequestError(
        f"{name:.{2 * _MAX_CHARS}} is not a field of this server; did you mean {where}{place}? Its "
        f"own fields are {', '.join(OWN_FIELDS)}",
        param=f"{name:.{2 * _MAX_CHARS}}",
    )


def resembled(name: str, own: Sequence[str] = OWN_FIELDS) -> str | None:
    """The one of our fields that `name` is meant to be; None if it is another field's name."""
    meant = misspelt(name, own)
    spelt = _snake_case(name)
    if meant is not None or not spelt.startswith(_PREFIXES):
        return meant
    return max(own, key=lambda field: difflib.SequenceMatcher(None, spelt, field).ratio())


def misspelt(name: str, own: Sequence[str] = (*OWN_FIELDS, *OWN_XARGS)) -> str | None:
    """The one of our fields from which `name` differs by its case or by an edit or two; or None."""
    close = difflib.get_close_matches(_snake_case(name), own, n=1, cutoff=_CUTOFF)
    return close[0] if close else None


def _snake_case(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|[-. ]", "_", name[: 2 * _MAX_CHARS]).lower()


def _refuse_repeated(body: Mapping[str, Any]) -> None:
    places: list[tuple[str, Any, Sequence[str] | None]] = [
        ("", body, _ONCE),
        (_XARGS, body.get(_XARGS), OWN_XARGS),
        *((field, body.get(field), None) for field in OWN_FIELDS),
    ]
    for place, value, once in places:
        if not isinstance(value, RepeatedNames):
            continue
        repeated = [name for name in value.names if once is None or name in once]
        if repeated:
            path = f"{place}.{repeated[0]}" if place else repeated[0]
            raise RequestError(
                f"{shown(path)[1:-1]} came more than once in the body; send it once, as it "
                "decides the weights",
                param=place or repeated[0],
            )


def _listed(names: list[str]) -> str:
    shown = ", ".join(_UNSAFE.sub("?", name[:_MAX_CHARS]) for name in names[:_MAX_NAMES])
    more = len(names) - _MAX_NAMES
    return shown if more <= 0 else f"{shown}, and {more} more"

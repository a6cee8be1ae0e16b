"""A sweep: every field of every route's body with extreme values, one at a time.

Routes and fields are those of the server's own /openapi.json, two levels deep, so that a field that
vLLM adds is swept without further work.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from resilience.inputs.hostile_requests import Hostile, admin

_GOOD: Mapping[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "Hi.", "max_tokens": 1},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "Hi."}], "max_tokens": 1},
    "/v1/responses": {"input": "Hi.", "max_output_tokens": 1},
    "/tokenize": {"prompt": "Hi."},
    "/detokenize": {"tokens": [5, 6]},
    "/admin/default": {"profile": "balanced"},
    "/admin/profiles/swept": {"weights": {"polite": 1}},
}
"""Bodies that the swept value is put into."""

_WITH: Mapping[str, dict[str, Any]] = {
    "stream_options": {"stream": True, "stream_options": {"include_usage": True}},
    "min_tokens": {"max_tokens": 8},
    "stop_token_ids": {"min_tokens": 1},
    "top_logprobs": {"logprobs": True},
    "tool_choice": {"tools": [{"type": "function", "function": {"name": "a"}}]},
    "response_format": {
        "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {}}}
    },
}
"""Further fields that make a field count."""

_OWN = (("vllm_xargs", "a"), ("vllm_xargs", "prefmix_weights"), ("preference_weights", "polite"))
"""Fields that the description does not spell out."""

_DEEP = 2000

VALUES: Mapping[str, str] = {
    "2**31": str(2**31),
    "2**32": str(2**32),
    "2**63-1": str(2**63 - 1),
    "2**63": str(2**63),
    "2**64": str(2**64),
    "-1": "-1",
    "0": "0",
    "-2**31-1": str(-(2**31) - 1),
    "-2**63": str(-(2**63)),
    "-2**63-1": str(-(2**63) - 1),
    "a number of 400 digits": "9" * 400,
    "a number of 5000 digits": "-" + "9" * 5000,
    "0.5": "0.5",
    "1e308": "1e308",
    "-1e308": "-1e308",
    "1e-320": "1e-320",
    "1e999": "1e999",
    "NaN": "NaN",
    "Infinity": "Infinity",
    "-Infinity": "-Infinity",
    "null": "null",
    "true": "true",
    "no text": '""',
    "a word": '"none"',
    "half a surrogate pair": '"\\ud800"',
    "a NUL": '"\\u0000"',
    "a text of 300,000": json.dumps("a b " * 75_000),
    "lines": json.dumps("x\r\nY: z\u2028\x1b[2J"),
    "no items": "[]",
    "100,000 numbers": json.dumps([0] * 100_000),
    "20,000 texts": json.dumps(["ab"] * 20_000),
    "50,000 times null": json.dumps([None] * 50_000),
    "1,400 objects": json.dumps([{}] * 1400),
    "2,000 lists deep": "[" * _DEEP + "]" * _DEEP,
    "2,000 objects deep": '{"a":' * _DEEP + "1" + "}" * _DEEP,
    "no names": "{}",
    "20,000 names": json.dumps({f"k{at}": at for at in range(20_000)}),
    "a surrogate as a name": '{"\\ud800": 1}',
    "an object": '{"type": "function", "name": 7, "content": [1, null], "schema": {"$ref": "#"}}',
    "a value twice": "",
}
"""Values as JSON writes them, by name; the last is the field's good value, named twice."""

Path = tuple[str | int, ...]


def drawn(requests: Iterable[Hostile], share: float, seed: int) -> Iterator[Hostile]:
    """Yields a share of some requests, in their order; the seed draws which."""
    rng = random.Random(seed)
    return (each for each in requests if rng.random() < share)


def sweep(page: Mapping[str, Any]) -> Iterator[Hostile]:
    """Yields requests in a fixed order, route by route. Args: page: what /openapi.json answers."""
    for (method, path), fields in routes(page).items():
        for field in fields:
            for name in VALUES:
                yield _with_value(method, path, field, name)


def routes(page: Mapping[str, Any]) -> dict[tuple[str, str], list[Path]]:
    """The fields of each route that takes JSON, by method and path."""
    found = {}
    for template, operations in page["paths"].items():
        path = template.replace("{name}", "swept")
        for method, operation in operations.items():
            content = operation.get("requestBody", {}).get("content", {})
            schema = content.get("application/json", {}).get("schema")
            if schema is None:
                continue
            fields = dict.fromkeys(_fields(page, schema, levels=2))
            if path.startswith("/v1/"):
                fields |= dict.fromkeys(_OWN)
            found[method.upper(), path] = [*fields]
    return found


def _fields(page: Mapping[str, Any], schema: Mapping[str, Any], *, levels: int) -> Iterator[Path]:
    if "$ref" in schema:
        schema = page["components"]["schemas"][schema["$ref"].rsplit("/")[-1]]
    for key in ("anyOf", "oneOf", "allOf"):
        for part in schema.get(key, ()):
            yield from _fields(page, part, levels=levels)
    if levels and "items" in schema:
        for inner in _fields(page, schema["items"], levels=levels):
            yield (0, *inner)
    for name, inner_schema in schema.get("properties", {}).items() if levels else ():
        yield (name,)
        for inner in _fields(page, inner_schema, levels=levels - 1):
            yield (name, *inner)


def _with_value(method: str, path: str, field: Path, name: str) -> Hostile:
    body = json.loads(json.dumps(_GOOD.get(path, {})))
    for part in field:
        body.update(json.loads(json.dumps(_WITH.get(str(part), {}))))
    mark = "the swept value"
    at: Any = body
    for part, following in zip(field, (*field[1:], None), strict=True):
        if isinstance(part, int):
            at[:] = at[:1] or [{}]
        if following is None:
            at[part] = mark
            break
        empty: Any = [] if isinstance(following, int) else {}
        inner = at[part] if isinstance(part, int) else at.get(part)
        if type(inner) is not type(empty):
            at[part] = empty
        at = at[part]
    content = json.dumps(body)
    if VALUES[name]:
        content = content.replace(json.dumps(mark), VALUES[name])
    else:
        content = content.replace(json.dumps(mark), f"1, {json.dumps(str(field[-1]))}: 1")
    where = ".".join(map(str, field))
    return admin(method, f"{where} = {name}", path, content.encode())

"""Bodies of valid JSON in which some fields hold unexpected values.

The routes and their fields come from the server's own /openapi.json.
"""

from __future__ import annotations

import json
import random
from typing import Any

from resilience.harness.asked_server import KEY, TOKEN
from resilience.inputs.attacks import Attack

_GOOD: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "Hi.", "max_tokens": 2},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "Hi."}], "max_tokens": 2},
    "/v1/responses": {"input": "Hi.", "max_output_tokens": 2},
    "/tokenize": {"prompt": "Hi."},
    "/detokenize": {"tokens": [5, 6]},
}
_TEXTS = (
    *("", "a", "\ud800", "\0", "é" * 50, "a" * 5000, "none", "auto", "../../x", "-1", "1e999"),
    *("{{ 1/0 }}", "{% for a in range(10**9) %}x{% endfor %}", "(a+)+$", "demo@balanced"),
)
_NUMBERS = (
    *(0, -1, 1, 2, 0.5, -0.5, 1e308, 2**31, 2**63, -(2**63), 2**64, 10**30),
    *(float("nan"), float("inf"), 1e-320),
)
_KEYS = (
    *("role", "content", "type", "text", "json", "regex", "grammar", "choice", "json_schema"),
    *("function", "name", "parameters", "5", "polite", "schema", "image_url", "url", "weights"),
    *("include_usage", "id", "effort", "format", "prefmix_weights", "provenance"),
)
_WORDS = (
    *("text", "json_object", "json_schema", "function", "image_url", "input_text", "user"),
    *("structural_tag", "system", "assistant", "tool", "message", "function_call", "reasoning"),
)


class Fields:
    """The routes that take a JSON body, and attacks on their fields."""

    def __init__(self, page: dict[str, Any]) -> None:
        """Args: page: what /openapi.json answers."""
        self._fields: dict[tuple[str, str], list[str]] = {}
        for path, operations in page["paths"].items():
            for method, operation in operations.items():
                names = _names(page, operation)
                if names:
                    self._fields[method.upper(), path.replace("{name}", "fuzzed")] = names

    def draw(self, rng: random.Random) -> Attack:
        """One request with one to three fields replaced by values of any kind."""
        method, path = rng.choice(list(self._fields))
        names = self._fields[method, path]
        body: dict[str, Any] = dict(_GOOD.get(path, {}))
        for name in rng.sample(names, rng.randint(1, min(3, len(names)))):
            body[name] = _value(rng, depth=0)
        content = json.dumps(body).encode()
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n"
            f"Authorization: Bearer {TOKEN if path.startswith('/admin') else KEY}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n"
            "Connection: close\r\n\r\n"
        )
        return Attack(kind=f"fields of {path}", pieces=[head.encode() + content], wants_answer=True)


def _names(page: dict[str, Any], operation: dict[str, Any]) -> list[str]:
    content = operation.get("requestBody", {}).get("content", {})
    schema = content.get("application/json", {}).get("schema", {})
    names: set[str] = set()
    for part in (schema, *schema.get("anyOf", [])):
        found = part
        if "$ref" in part:
            found = page["components"]["schemas"][part["$ref"].rsplit("/")[-1]]
        names |= set(found.get("properties", ()))
    if not names and schema.get("type") == "object":  # a document of the store
        return ["format", "version", "policies", "default_profile", "profiles", "weight_space"]
    return sorted(names)


def _value(rng: random.Random, *, depth: int) -> Any:
    kind = rng.randrange(7 if depth < 3 else 4)
    if kind == 0:
        return rng.choice(_NUMBERS)
    if kind == 1:
        return rng.choice(_TEXTS)
    if kind == 2:
        return rng.choice([None, True, False])
    if kind == 3:
        return rng.choice(_WORDS)
    if kind == 4:
        return [_value(rng, depth=depth + 1) for _ in range(rng.randint(0, 3))]
    return {
        rng.choice(_KEYS): rng.choice(_WORDS)
        if rng.random() < 0.3
        else _value(rng, depth=depth + 1)
        for _ in range(rng.randint(0, 3))
    }

"""Values of single fields that cost much: texts, addresses, constraints, documents of the store."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from resilience.harness.demo_server import MEMBERS
from resilience.inputs.hostile_requests import Hostile, admin, with_key

COMPLETIONS, CHAT, RESPONSES = "/v1/completions", "/v1/chat/completions", "/v1/responses"
REFUSED = (400, 413, 422)
_MIB = 2**20
_USER = {"role": "user", "content": "Hi."}


def fields() -> Iterator[Hostile]:
    """Yields all of them."""
    for part in (_texts, _media, _grammars, _admin):
        yield from part()


def completion(**fields: Any) -> dict[str, Any]:
    """A good body of /v1/completions, with further fields."""
    return {"prompt": "Hi.", "max_tokens": 1, **fields}


def chat(**fields: Any) -> dict[str, Any]:
    """A good body of /v1/chat/completions, with further fields."""
    return {"messages": [_USER], "max_tokens": 1, **fields}


def refused(name: str, path: str, body: Any, says: str = "") -> Hostile:
    """A request that has to be refused. Args: says: a text that the refusal has."""
    return with_key(name, path, body, statuses=REFUSED, says=says)


def _texts() -> Iterator[Hostile]:
    huge = "x" * 3_000_000
    for field in ("user", "cache_salt", "request_id", "model", "preference_profile"):
        yield with_key(f"{field} of 3 MB", COMPLETIONS, completion(**{field: huge}))
        yield with_key(f"{field} of 3 MB", CHAT, chat(**{field: huge}))
    names = {f"nobody-{at}": 1 for at in range(60_000)}
    yield refused("60,000 unknown policies", COMPLETIONS, completion(preference_weights=names))
    loop = "{% for a in range(10**9) %}{% for b in range(10**9) %}x{% endfor %}{% endfor %}"
    yield refused("a chat template", CHAT, chat(chat_template=loop))
    for name, value in (
        ("chat_template", loop),
        ("messages", [{"role": "user", "content": "x"}] * 50_000),
        ("tokenize", True),
        ("tools", [{}] * 10_000),
        ("a" * 100_000, 1),
    ):
        given = chat(chat_template_kwargs={name: value})
        yield with_key(f"chat_template_kwargs {name[:20]}", CHAT, given)
        yield with_key(f"chat_template_kwargs {name[:20]}", "/tokenize", given)
    for name, text in (("letters", "x" * 300_000), ("a path", "/a" * 150_000)):
        said = [{"role": text, "content": "a"}]  # vLLM and the chat template repeat it
        yield with_key(f"a role of {name}", CHAT, chat(messages=said))
        yield with_key(f"a role of {name}", "/tokenize", {"messages": said})
        body = {"input": "Hi.", "previous_response_id": text}
        yield with_key(f"an id of {name}", RESPONSES, body, statuses=(400,))
    for line in (
        "x-request-id: " + "a" * 8000,
        "x-request-id: a\tb",
        "x-prefmix-timeout: 1e-300",
        "x-prefmix-timeout: nan",
        "X-Data-Parallel-Rank: -1",
        "X-Data-Parallel-Rank: " + "9" * 4000,
        "traceparent: 00-" + "f" * 5000,
    ):
        yield with_key(f"the header {line[:40]}", COMPLETIONS, completion(), line)


def _media() -> Iterator[Hostile]:
    """Addresses that the server must not open."""
    for url in (
        "file:///etc/passwd",
        "http://127.0.0.1:1/x.png",
        "http://169.254.169.254/latest",
        "data:image/png;base64," + "A" * 2_000_000,
        "ftp://127.0.0.1/x",
    ):
        for kind in ("image_url", "audio_url", "video_url"):
            part = {"type": kind, kind: {"url": url}}
            yield refused(
                f"{kind} {url[:30]}", CHAT, chat(messages=[{"role": "user", "content": [part]}])
            )
        part = {"type": "input_image", "image_url": url}
        yield refused(
            f"input_image {url[:30]}", RESPONSES, {"input": [{"role": "user", "content": [part]}]}
        )


def _grammars() -> Iterator[Hostile]:
    """Constraints that are far larger once they are compiled."""
    words = [f"w{at}" for at in range(60_000)]
    wide = {"type": "object", "properties": {word: {"type": "string"} for word in words[:15_000]}}
    beside: dict[str, Any] = {"type": "string", "maxLength": 10**6}
    for _ in range(30):
        beside = {"type": "array", "items": beside, "maxItems": 50}
    names = {"^a": beside}
    beside = {"type": "object", "properties": {"a": {}}, "patternProperties": names}
    for name, constraint in (
        ("a regex of 1 MiB", {"regex": "a" * _MIB}),
        ("50,000 optional letters", {"regex": "a?" * 50_000}),
        ("2,000 optional letters", {"regex": "a?" * 2000}),
        ("an alternative of 60,000", {"regex": "|".join(words)}),
        ("repeated repetitions", {"regex": "((((a{30}){30}){30}){30}){30}"}),
        ("ambiguous repetitions", {"regex": "(a|aa)+" * 2000}),
        ("20,000 parentheses", {"regex": "(" * 20_000 + "a" + ")" * 20_000}),
        ("60,000 choices", {"choice": words}),
        ("a choice of 1 MiB", {"choice": ["a" * _MIB]}),
        ("an enum of 60,000", {"json": {"enum": words}}),
        ("15,000 properties", {"json": wide}),
        ("a schema for another compiler", {"json": beside}),
        ("a pattern of 100 KB", {"json": {"type": "string", "pattern": "a?" * 50_000}}),
        ("minLength 10**9", {"json": {"type": "string", "minLength": 10**9}}),
        ("minItems 10**9", {"json": {"type": "array", "minItems": 10**9}}),
        ("a grammar of 1 MiB", {"grammar": "root ::= " + '"a"? ' * 200_000}),
        ("a grammar of circles", {"grammar": 'root ::= root root | "a"'}),
        ("a structural tag of 1 MiB", {"structural_tag": json.dumps({"structures": words * 2})}),
    ):
        yield with_key(name, COMPLETIONS, completion(structured_outputs=constraint, max_tokens=4))
    yield from _impossible()
    tag = json.dumps(
        {"type": "structural_tag", "format": {"type": "regex", "pattern": "a?" * _MIB}}
    )
    yield refused(
        "a structural tag with a regex of 2 MiB",
        COMPLETIONS,
        completion(structured_outputs={"structural_tag": tag}),
        "characters",
    )
    for name, schema in (("an enum of 60,000", {"enum": words}), ("15,000 properties", wide)):
        described = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
        yield with_key(f"response_format with {name}", CHAT, chat(response_format=described))
        text = {"format": {"type": "json_schema", "name": "a", "schema": schema}}
        yield with_key(f"text.format with {name}", RESPONSES, {"input": "Hi.", "text": text})
        function = {"type": "function", "function": {"name": "a", "parameters": schema}}
        yield with_key(f"a tool with {name}", CHAT, chat(tools=[function], tool_choice="required"))


def _impossible() -> Iterator[Hostile]:
    """Constraints that no text satisfies, which show only in the engine."""
    circle: dict[str, Any] = {"$ref": "#"}
    inner = {"type": "grammar", "grammar": "root ::= root root"}
    for name, constraint in (
        ("a left recursion", {"grammar": "root ::= root root"}),
        ("a circle of rules", {"grammar": "root ::= a\na ::= root"}),
        ("a schema that refers to itself", {"json": circle}),
        ("an empty set of characters", {"regex": r"[^\s\S]"}),
        ("a dead end", {"regex": r"a[^\s\S]"}),
        (
            "a left recursion in a tag",
            {"structural_tag": json.dumps({"type": "structural_tag", "format": inner})},
        ),
    ):
        fields = {"structured_outputs": constraint, "max_tokens": 4}
        yield refused(name, COMPLETIONS, completion(**fields), "structured output")
        yield refused(name, CHAT, chat(**fields), "structured output")
        yield refused(name, RESPONSES, {"input": "Hi.", **fields}, "structured output")
        for path, body in (
            (COMPLETIONS, completion()),
            (CHAT, chat()),
            (RESPONSES, {"input": "a"}),
        ):
            streamed = {**body, **fields, "stream": True}
            yield with_key(f"{name}, streamed", path, streamed, says="structured output")


def _admin() -> Iterator[Hostile]:
    profiles = {f"p{at}": {"weights": {"polite": 1}} for at in range(10_000)}
    document = {"format": 1, "version": 1, "policies": list(MEMBERS), "default_profile": "p0"}
    content = json.dumps({**document, "profiles": profiles}).encode()
    yield admin("POST", "10,000 profiles", "/admin/weights/apply", content, statuses=REFUSED)
    for name, body in (
        ("weights of 60,000 policies", {"weights": {f"n{at}": 1 for at in range(60_000)}}),
        ("a provenance of 3 MB", {"weights": {"polite": 1}, "provenance": {"a": "x" * 3_000_000}}),
        (
            "a deep provenance",
            b'{"weights":{"polite":1},"provenance":' + b'{"a":' * 9000 + b"1" + b"}" * 9001,
        ),
    ):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        yield admin("PUT", name, "/admin/profiles/costly", data)
    long = "/admin/profiles/" + "x" * 7000
    yield admin(
        "PUT", "a name of 7,000", long, b'{"weights": {"polite": 1}}', statuses=(400, 404, 414)
    )
    stale = 'If-Match: "' + "9" * 7000 + '"'
    yield admin(
        "PUT",
        "a version of 7,000 digits",
        "/admin/profiles/costly",
        b'{"weights": {"polite": 1}}',
        stale,
    )

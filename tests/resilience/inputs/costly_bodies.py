"""Bodies that were found to stop, stall, grow or fool a server, and their kin; all with the key."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from typing import Any

from prefmix.mixing import wire
from resilience.harness.demo_server import MEMBERS
from resilience.inputs import costly_fields
from resilience.inputs.costly_fields import CHAT, COMPLETIONS, RESPONSES, chat, completion, refused
from resilience.inputs.hostile_requests import Hostile, with_key

_MIB = 2**20
_USER = {"role": "user", "content": "Hi."}


def bodies() -> Iterator[Hostile]:
    """Yields all of them, large ones one at a time."""
    for part in (_numbers, _fields, _structure, _sizes, _lists):
        yield from part()
    yield from costly_fields.fields()


def _numbers() -> Iterator[Hostile]:
    """Numbers that the engine's messages do not hold, or that its tables have no room for."""
    many = {"prompt": ["a"] * 96, "max_tokens": 1}
    for field in ("top_k", "stream_interval", "priority", "seed"):
        body = {**many, field: 2**64}
        yield refused(f"96 prompts, {field} of 65 bits", COMPLETIONS, body, field)
    xargs = {**many, "vllm_xargs": {"a": 2**64}}
    yield refused("a number of 65 bits in vllm_xargs", COMPLETIONS, xargs, "vllm_xargs")
    for field, value in (
        ("logit_bias", {str(at): 1 for at in range(1025)}),
        ("allowed_token_ids", list(range(1025))),
        ("stop_token_ids", list(range(129))),
        ("bad_words", [f"fox {at} jumps over the lazy dogs of {at}" for at in range(128)]),
    ):
        body = completion(**{field: value, "min_tokens": 1})
        yield refused(f"more {field} than fit", COMPLETIONS, body, field)
        yield refused(f"more {field} than fit", CHAT, chat(**{field: value, "min_tokens": 1}))
    bias = {str(at): 1 for at in range(60_000)}
    yield refused("60,000 logit_bias", COMPLETIONS, completion(logit_bias=bias), "logit_bias")
    for fields in (
        {"n": 10**6},
        {"n": 10**6, "best_of": 10**6},
        {"prompt_logprobs": 10**6},
        {"prompt_logprobs": -1, "echo": True},
        {"logprobs": -1},
        {"logprobs": 10**6},
        {"echo": True, "suffix": "x" * 10**6},
        {"min_tokens": 400, "max_tokens": 2},
        {"truncate_prompt_tokens": -5},
        {"truncate_prompt_tokens": 10**9},
        {"priority": -(2**63)},
        {"max_tokens": 10**9},
        {"temperature": 1e308},
        {"repetition_penalty": 1e-320},
        {"prompt": [[2**31]]},
        {"prompt": [-1]},
        {"prompt": [[1], "a", [2]]},
        {"prompt_embeds": "AAAA"},
    ):
        name = ", ".join(f"{key} {str(value)[:20]}" for key, value in fields.items())
        yield with_key(name, COMPLETIONS, completion(**fields))


def _fields() -> Iterator[Hostile]:
    """Misspelt and repeated fields, which must not be served under other weights."""
    weights = {"polite": 1}
    for fields in (
        {"preference_weight": weights},
        {"preference_weigths": weights},
        {"preferenceWeights": weights},
        {"profile": "balanced"},
        {"extra_body": {"preference_weights": weights}},
        {"vllm_xargs": {"prefmix_weight": [1, 0, 0, 0]}},
    ):
        for path, body in ((COMPLETIONS, completion()), (CHAT, chat())):
            yield refused(f"the field {next(iter(fields))}", path, {**body, **fields})
    twice = b'{"prompt": "Hi.", "preference_weights": {"polite": 1}, "preference_weights": {}}'
    yield refused("preference_weights twice", COMPLETIONS, twice)
    twice = b'{"prompt": "Hi.", "preference_weights": {"polite": 1, "polite": 3}}'
    yield refused("a policy twice", COMPLETIONS, twice)
    # The engine's word for a policy that fails, as a client's stop string.
    marker = str(wire.to_stop_reason([MEMBERS[2]]))
    for text in (marker, "prefmix_failed:a-new-series"):
        yield with_key(
            f"a failure forged by the stop string {text!r}",
            COMPLETIONS,
            completion(max_tokens=64, stop=[text], structured_outputs={"choice": [text]}),
            statuses=(200,),
            lacks="computed NaN",
        )


def _structure() -> Iterator[Hostile]:
    """Items that cost far more to validate than to send."""
    yield refused("1,400 empty items", RESPONSES, {"input": [{}] * 1400}, "input")
    for item in ({}, [], None, {"type": "message"}, {"type": "reasoning"}, {"role": "user"}):
        for count in (100, 2000, 200_000):
            body = {"input": [item] * count}
            yield refused(f"{count} items {json.dumps(item)}", RESPONSES, body)
    for count in (100, 4000, 14_000, 1_000_000):
        yield refused(f"{count} empty messages", CHAT, {"messages": [{}] * count})
    parts = [{"type": "text", "text": "a"}] * 1000
    for path, field in ((CHAT, "messages"), (RESPONSES, "input")):
        items = [{"role": "user", "content": parts}] * 60
        yield with_key("60,000 parts", path, {field: items, "max_tokens": 1})
        items = [{"role": "user", "content": [{}] * 1000}] * 60
        yield refused("60,000 empty parts", path, {field: items})
    calls = [{"id": "a", "type": "function", "function": {"name": "a", "arguments": "{}"}}]
    said = {"role": "assistant", "content": None, "tool_calls": calls * 1000}
    yield with_key("20,000 calls of tools", CHAT, chat(messages=[said] * 20))
    deep: dict[str, Any] = {"type": "object"}
    for _ in range(60):
        deep = {"type": "object", "properties": {"a": deep}}
    tool = {"type": "function", "function": {"name": "a", "parameters": deep}}
    yield with_key("500 deep tools", CHAT, chat(tools=[tool] * 500))
    yield with_key("500 deep tools", RESPONSES, {"input": "Hi.", "tools": [tool] * 500})


def _sizes() -> Iterator[Hostile]:
    """Bodies as large as the limit, of what JSON can repeat."""
    size = 4 * _MIB - 100
    for name, unit in (
        ("brackets", b"["),
        ("empty objects", b"{},"),
        ("empty lists", b"[],"),
        ("numbers", b"1,"),
        ("floats", b"1.5,"),
        ("texts", b'"a",'),
        ("nulls", b"null,"),
        ("quotes", b'"'),
        ("backslashes", b"\\"),
        ("escapes", b'"\\u0041",'),
        ("commas", b","),
        ("spaces", b" "),
        ("digits", b"9"),
        ("objects in objects", b'{"a":'),
        ("minus signs", b"-"),
    ):
        for path, field in ((COMPLETIONS, "prompt"), (RESPONSES, "input"), (CHAT, "messages")):
            body = b'{"%s": [' % field.encode() + unit * ((size - 20) // len(unit)) + b"1]}"
            yield with_key(f"4 MiB of {name}", path, body)
    for name, text in (
        ("letters", b"a"),
        ("words", b"a b "),
        ("lines", b"\\n"),
        ("\u20ac", b"\xe2\x82\xac"),
    ):
        content = text * (size // len(text) - 40)
        yield refused(f"a text of 4 MiB of {name}", COMPLETIONS, b'{"prompt": "%s"}' % content)
        yield refused(f"a text of 4 MiB of {name}", "/tokenize", b'{"prompt": "%s"}' % content)
        message = b'{"messages": [{"role": "user", "content": "%s"}]}' % content
        yield with_key(f"a message of 4 MiB of {name}", CHAT, message)
        yield with_key(f"a message of 4 MiB of {name}", "/tokenize", message)
    yield with_key("300,000 ids", "/detokenize", {"tokens": [5] * 250_000})
    names = b"{" + b",".join(b'"k%d":1' % at for at in range(400_000)) + b"}"
    yield refused("400,000 names", COMPLETIONS, names)
    yield with_key("more than 4 MiB", COMPLETIONS, b" " * (size + 200), statuses=(413,))
    bomb = gzip.compress(bytes(256 * _MIB), 9)
    for kind, data in (("gzip", bomb), ("deflate", zlib.compress(bytes(64 * _MIB))), ("br", b"\0")):
        yield with_key(
            f"a body of {kind} that unpacks to much more",
            COMPLETIONS,
            data,
            f"Content-Encoding: {kind}",
            statuses=(400, 415),
        )


def _lists() -> Iterator[Hostile]:
    yield with_key("100,000 stop strings", COMPLETIONS, completion(stop=["ab"] * 60_000))
    yield with_key("a stop string of 1 MiB", COMPLETIONS, completion(stop=["ab" * 2**19]))
    yield with_key("60,000 prompts", COMPLETIONS, completion(prompt=[""] * 60_000))
    yield with_key("250,000 prompts of numbers", COMPLETIONS, {"prompt": [[1]] * 30_000})
    transfer = {f"k{at}": "v" * 90 for at in range(27_000)}
    yield with_key(
        "2.7 MB of kv_transfer_params", COMPLETIONS, completion(kv_transfer_params=transfer)
    )
    yield with_key("2.7 MB of kv_transfer_params", CHAT, chat(kv_transfer_params=transfer))
    metadata = {f"k{at}": "v" * 90 for at in range(27_000)}
    yield with_key("2.7 MB of metadata", RESPONSES, {"input": "Hi.", "metadata": metadata})

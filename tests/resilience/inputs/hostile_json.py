"""Bodies of broken JSON, or of JSON that is too deep, too large or otherwise hostile."""

from __future__ import annotations

import gzip
import json
import random

GOOD_BODY = json.dumps({"model": "demo", "prompt": "Hi.", "max_tokens": 1}).encode()


def noise(rng: random.Random, longest: int = 60) -> bytes:
    """Random bytes, at most `longest`."""
    return bytes(rng.randrange(256) for _ in range(rng.randint(0, longest)))


def draw(rng: random.Random) -> bytes:
    """One body."""
    depth = rng.choice([50, 500, 5_000, 100_000])
    texts = [
        b"[" * depth + b"]" * depth,
        b'{"prompt":' * depth + b"1" + b"}" * depth,
        b'{"prompt": "Hi.", "preference_weights": ' + b'{"a":' * depth + b"1" + b"}" * depth + b"}",
        b'{"prompt": "Hi.", "temperature": '
        + rng.choice([b"NaN", b"Infinity", b"-Infinity"])
        + b"}",
        b'{"prompt": "Hi.", "max_tokens": ' + b"9" * rng.choice([20, 400, 5000]) + b"}",
        b'{"prompt": "Hi.", "seed": -' + b"9" * rng.choice([18, 19, 20, 400]) + b"}",
        b'{"prompt": "\\ud800", "max_tokens": 1}',
        b'{"prompt": "a", "stop": ["\\udfff"], "max_tokens": 1}',
        b'{"prompt": "Hi.", "preference_profile": "\\ud800"}',
        b'{"prompt": "Hi.", "preference_weights": {"\\ud800": 1}}',
        b'{"prompt": "Hi.", "model": "demo@\\ud83d"}',
        b'{"\\ud800": 1, "prompt": "Hi.", "max_tokens": 1}',
        b'{"prompt": "\xff\xfe", "max_tokens": 1}',
        '{"prompt": "Hi.", "max_tokens": 1}'.encode("utf-16"),
        b"\xef\xbb\xbf" + GOOD_BODY,
        gzip.compress(GOOD_BODY),
        b'{"prompt": "a", "prompt": "b", "max_tokens": 1}',
        json.dumps({f"k{number}": number for number in range(20_000)}).encode(),
        b'{"prompt": "' + b"a" * rng.choice([10_000, 1_000_000]) + b'"}',
        b'{"prompt": ' + json.dumps(["a"] * 3000).encode() + b', "max_tokens": 1}',
        b'{"prompt": [[]], "max_tokens": 1}',
        b'{"prompt": [-1, 99999999], "max_tokens": 1}',
        b'{"prompt": "Hi.", "max_tokens": 1}\0',
        b"null",
        b"0",
        b'""',
        b"[]",
        b"{",
        b"",
        b"\0",
        b"//",
        b"{'a': 1}",
        noise(rng),
    ]
    return rng.choice(texts)

"""JSON with half a surrogate pair is refused, since UTF-8 cannot carry it."""

from __future__ import annotations

import pytest

from prefmix.server.http.errors import RequestError
from prefmix.server.http.openai_route import refuse_half_pairs


@pytest.mark.parametrize(
    "body", [rb'{"stop": ["\udfff"]}', rb'{"a": {"\uD800": 1}}', rb'["\ud83d x \ude00"]']
)
def test_half_a_surrogate_pair_is_refused(body: bytes) -> None:
    with pytest.raises(RequestError, match="half a surrogate pair"):
        refuse_half_pairs(body)


@pytest.mark.parametrize(
    "body",
    [
        rb'{"a": "\ud83d\ude00"}',
        rb'{"a": "\\ud800"}',
        rb'{"a": "\ud800',
        b"",
        b"\xff",
        b"[" * 10**5,
    ],
)
def test_everything_else_goes_on_to_its_readers(body: bytes) -> None:
    refuse_half_pairs(body)
    refuse_half_pairs(rb'"\ud800\udc00"' + body)

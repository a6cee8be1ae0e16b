"""Measured figures become the field of an answer."""

from __future__ import annotations

import json
import math

import pytest

from prefmix.server.api.attribution import Attribution, describe
from prefmix.server.http.errors import RequestError
from prefmix.server.telemetry.engine_statistics import sample_of

NAN, INF = math.nan, math.inf
BOTH = {"a": 0.3, "b": 0.7}
# log Z, entropy, mixture's log-prob; KL, log-prob, agreement of a and b
ROWS = [
    [-0.1, 1.0, -0.5, 0.2, 0.4, -0.3, -0.9, 1.0, 0.0],
    [-0.3, 2.0, -1.5, 0.6, 0.0, -2.3, -0.1, 1.0, 1.0],
]


def test_means_are_over_tokens_and_log_partitions_add_up() -> None:
    assert describe(ROWS, BOTH, by_token=False) == {
        "num_tokens": 2,
        "mean_logprob": -1.0,
        "mean_entropy": 1.5,
        "log_partition": -0.4,
        "policies": {
            "a": {"mean_logprob": -1.3, "mean_kl": 0.4, "agreement": 1.0},
            "b": {"mean_logprob": -0.5, "mean_kl": 0.2, "agreement": 0.5},
        },
    }


def test_each_token_names_who_wanted_it_most() -> None:
    tokens = describe(ROWS, BOTH, by_token=True)["tokens"]
    assert [token["wanted_by"] for token in tokens] == ["a", "b"]
    assert tokens[0]["logprobs"] == {"a": -0.3, "b": -0.9}


def test_who_did_not_run_says_nothing_and_json_has_no_infinity() -> None:
    rows = [
        [0.0, 1.0, -0.5, NAN, 0.4, NAN, -0.9, 0.0, 1.0],
        [0.0, 1.0, -0.5, INF, 0.4, -INF, -0.9, 0.0, 1.0],
    ]
    described = describe(rows, BOTH, by_token=True)
    json.dumps(described, allow_nan=False)
    only_first = describe(rows[:1], BOTH, by_token=True)
    assert only_first["policies"]["a"] == {
        "mean_logprob": None,
        "mean_kl": None,
        "agreement": None,
    }
    assert only_first["tokens"][0] == {"wanted_by": "b", "logprobs": {"a": None, "b": -0.9}}
    assert described["policies"]["a"]["mean_kl"] is None


def test_a_policy_without_weight_says_nothing_even_if_it_ran() -> None:
    described = describe(ROWS, {"a": 0.0, "b": 1.0}, by_token=True)
    assert set(described["policies"]["a"].values()) == {None}
    assert [token["wanted_by"] for token in described["tokens"]] == ["b", "b"]
    assert [token["logprobs"]["a"] for token in described["tokens"]] == [None, None]
    assert described["policies"]["b"]["mean_kl"] == 0.2


def test_no_token_has_no_mean() -> None:
    described = describe([], BOTH, by_token=True)
    assert (described["num_tokens"], described["mean_logprob"]) == (0, None)
    assert described["tokens"] == []


def test_choices_find_their_prompt_and_sample() -> None:
    attribution = Attribution(True)
    keys = [attribution.next_key(), attribution.next_key()]
    assert attribution.keys == keys
    assert [attribution.key_and_sample(choice, num_samples=2) for choice in range(4)] == [
        (keys[0], 0),
        (keys[0], 1),
        (keys[1], 0),
        (keys[1], 1),
    ]
    assert Attribution(True).next_key() not in keys


@pytest.mark.parametrize(
    ("req_id", "sample"),
    [("cmpl-abc-0-12345678", 0), ("2_chatcmpl-abc-123", 2), ("11_cmpl-a", 11), ("cmpl-3_cmpl-", 0)],
)
def test_samples_are_read_from_the_engines_ids(req_id: str, sample: int) -> None:
    assert sample_of(req_id) == sample


@pytest.mark.parametrize("wish", [1, 0, 1.0, "yes", "", {}, [], "token"])
def test_other_wishes_are_refused(wish: object) -> None:
    with pytest.raises(RequestError, match='expected true, false or "tokens"'):
        Attribution(wish)


@pytest.mark.parametrize("wish", [None, False])
def test_no_wish_is_none(wish: object) -> None:
    assert not Attribution(wish).is_wanted

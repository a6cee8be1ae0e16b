"""Picks follow the softmax of log Z, and bring the mixture's law to that of whole sequences."""

from __future__ import annotations

import itertools
import math
import random

import numpy as np
import pytest
from scipy.special import log_softmax, logsumexp, softmax
from scipy.stats import chisquare

from prefmix.mixing.candidates import LOW_SHARE, floor, pick, shares

NAN, INF = math.nan, math.inf


def test_shares_are_the_softmax_of_any_size() -> None:
    rng = np.random.default_rng(0)
    for count, scale, shift in itertools.product((1, 2, 16), (0.1, 3, 400), (0, -5e3, 700)):
        given = scale * rng.normal(size=count) + shift
        assert shares(given.tolist()) == pytest.approx(softmax(given), abs=1e-12)
    assert shares([-INF, 0.0]) == [0, 1]
    for broken in ([NAN, 0.0], [-INF, -INF], [INF, 0.0], [0.0, NAN]):
        with pytest.raises(ValueError, match="log partitions of the candidates"):
            shares(broken)


@pytest.mark.parametrize("seeded", [True, False])
@pytest.mark.parametrize("place", [0, 3])
def test_picks_follow_the_softmax(seeded: bool, place: int) -> None:
    """Chi-square over 20,000 picks; a generator with a seed of ours stands in for the system's."""
    given = [-1.0, 0.5, -3.0, 0.0, 0.4]
    random.seed(7)
    drawn = [
        pick(given, seed=seed if seeded else None, place=place).index for seed in range(20_000)
    ]
    counts = np.bincount(drawn, minlength=len(given))
    assert chisquare(counts, 20_000 * softmax(given)).pvalue > 0.01


def test_a_seed_picks_alike_and_places_differ() -> None:
    given = [0.0] * 16
    once = [pick(given, seed=5, place=place).index for place in range(32)]
    assert once == [pick(given, seed=5, place=place).index for place in range(32)]
    assert len(set(once)) > 8
    assert {pick(given, seed=seed).index for seed in (-1, 2**63 - 1, -(2**63))} <= set(range(16))


def test_the_effective_number_is_between_one_and_all() -> None:
    assert pick([-2.5] * 8).ess == pytest.approx(8)
    assert pick([-900.0, 0.0, -900.0]).ess == 1
    assert pick([-1.0]).ess == 1
    found = pick([0.0, math.log(3)], seed=1)
    assert found.ess == pytest.approx(1 / (0.25**2 + 0.75**2))
    assert (found.num_candidates, found.log_partition) == (2, [0.0, math.log(3)][found.index])


def test_a_low_number_is_below_a_quarter_of_the_way_to_all() -> None:
    assert [floor(count) for count in (1, 2, 5, 16)] == [1, 1.25, 2, 4.75]
    assert floor(9) == 1 + LOW_SHARE * 8
    assert not pick([3.0]).is_low
    assert not pick([0.0] * 16).is_low
    assert pick([0.0] + [-9.0] * 15).is_low


def test_more_candidates_come_nearer_to_the_product_of_whole_sequences() -> None:
    """The law of the picked answer, exactly, in a world of sixteen answers of two tokens."""
    rng = np.random.default_rng(3)
    weights_K = np.array([0.5, 0.3, 0.2])
    first_KV = log_softmax(2 * rng.normal(size=(3, 4)), axis=-1)
    second_KVV = log_softmax(2 * rng.normal(size=(3, 4, 4)), axis=-1)
    mixed_V, mixed_VV = (np.tensordot(weights_K, each, axes=1) for each in (first_KV, second_KVV))
    z, z_V = logsumexp(mixed_V), logsumexp(mixed_VV, axis=-1)
    product_Y = softmax((mixed_V[:, None] + mixed_VV).reshape(-1))
    token_Y = np.exp((mixed_V - z)[:, None] + mixed_VV - z_V[:, None]).reshape(-1)
    log_partition_Y = np.repeat(z + z_V, 4)
    assert token_Y * np.exp(log_partition_Y) == pytest.approx(
        product_Y * np.exp(mixed_V[:, None] + mixed_VV).sum()
    )

    def law(count: int) -> np.ndarray:
        found_Y = np.zeros(16)
        # The answers matter by their first token only: four kinds, and all ways to draw them.
        share_V = token_Y.reshape(4, 4).sum(1)
        for kinds in itertools.product(range(4), repeat=count):
            chance = share_V[list(kinds)].prod()
            for kind, share in zip(
                kinds, shares([float((z + z_V)[v]) for v in kinds]), strict=True
            ):
                own = slice(4 * kind, 4 * kind + 4)
                found_Y[own] += chance * share * token_Y[own] / share_V[kind]
        return found_Y

    far = [np.abs(law(count) - product_Y).sum() / 2 for count in (1, 2, 4, 6)]
    assert law(1) == pytest.approx(token_Y)
    assert all(more < less for less, more in itertools.pairwise(far))
    assert far[-1] < far[0] / 3

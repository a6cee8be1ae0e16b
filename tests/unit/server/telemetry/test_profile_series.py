"""Profiles are series in the metrics, but never more than a bounded number of them."""

from __future__ import annotations

import prometheus_client
import pytest

from prefmix.server.telemetry import bounded_labels
from prefmix.server.telemetry.bounded_labels import OTHER, BoundedLabels
from prefmix.server.telemetry.metrics import OUTCOMES, WeightsMetrics, count_request
from prefmix.weights.store.format import spec_of_members
from prefmix.weights.store.profiles import ProfileSet, build_profile_set

SPEC = spec_of_members(["a", "b"])
MOST = 5


@pytest.fixture(autouse=True)
def labels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Room for a few profiles, none of which another test has used up."""
    monkeypatch.setattr(bounded_labels, "PROFILES", BoundedLabels(MOST))


def profiles(names: list[str], *, default: str) -> ProfileSet:
    return build_profile_set({name: {"a": 1} for name in names}, SPEC, default=default)


def labels_of(metric: str, prefix: str) -> set[str]:
    """The profile labels of a metric that belong to this test."""
    return {
        sample.labels["profile"]
        for family in prometheus_client.REGISTRY.collect()
        for sample in family.samples
        if sample.name == metric and sample.labels["profile"].startswith(prefix)
    }


def requests(profile: str, outcome: str = "ok") -> float:
    labels = {"profile": profile, "outcome": outcome}
    return prometheus_client.REGISTRY.get_sample_value("prefmix_requests_total", labels) or 0.0


def test_ten_thousand_profiles_are_a_few_series() -> None:
    names = [f"many-{number}" for number in range(10_000)]
    shown = WeightsMetrics(profiles(names, default=names[-1]))
    text = prometheus_client.generate_latest()
    assert text.count(b'"many-') == MOST * (len(OUTCOMES) * 2 + 1 + 2), "with the times of creation"
    assert names[-1] in labels_of("prefmix_profile_weight", "many"), "the default is always there"
    shown.in_force(profiles(["many-last"], default="many-last"))
    assert labels_of("prefmix_profile_weight", "many") == set()


def test_profiles_that_come_and_go_begin_no_series_without_bound() -> None:
    """A counter's series stays when its profile goes, so its name stays among the labels."""
    shown = WeightsMetrics(profiles(["turn-0"], default="turn-0"))
    for number in range(1, 300):
        shown.in_force(profiles([f"turn-{number}"], default=f"turn-{number}"))
    assert len(labels_of("prefmix_requests_total", "turn")) == MOST
    assert labels_of("prefmix_default_profile", "turn") == set()


def test_requests_of_further_profiles_are_counted_together() -> None:
    names = [f"busy-{number}" for number in range(MOST + 2)]
    WeightsMetrics(profiles(names, default=names[0]))
    assert requests(OTHER, "ok") is not None
    before = requests(OTHER)
    for name in names:
        count_request(name, "ok")
    assert [requests(name) for name in names] == [1] * MOST + [0, 0]
    assert requests(OTHER) == before + 2
    for word in ("custom", "none"):
        before = requests(word)
        count_request(word, "ok")
        assert requests(word) == before + 1

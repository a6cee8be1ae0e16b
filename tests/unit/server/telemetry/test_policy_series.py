"""Policies are series in the metrics: they end with it, or never become more than a bound."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import prometheus_client
import pytest

from prefmix.mixing.spec import MixtureSpec, Policy
from prefmix.server.telemetry import bounded_labels
from prefmix.server.telemetry.bounded_labels import OTHER, BoundedLabels
from prefmix.server.telemetry.metrics import POLICY_FAILURES, WeightsMetrics, policy_label
from prefmix.weights.store.added import AddedPolicy
from prefmix.weights.store.edits import with_policy, without_policy
from prefmix.weights.store.profiles import ProfileSet, build_profile_set

SPEC = MixtureSpec(policies=(Policy(name="series-own", model="org/a"),), base="org/base")
MOST = 5


def labels() -> set[str]:
    """The policy labels of this test's series."""
    return {
        sample.labels["policy"]
        for family in prometheus_client.REGISTRY.collect()
        for sample in family.samples
        if sample.labels.get("policy", "").startswith("series-")
    }


def come_and_go(number: int) -> ProfileSet:
    """Many policies, one after the other; returns the profiles of the last."""
    profiles = build_profile_set({"even": {"series-own": 1}}, SPEC)
    shown = WeightsMetrics(profiles)
    for index in range(number):
        policy = AddedPolicy.of(adapter="x", sha256="0" * 64)
        profiles = with_policy(profiles, f"series-{index}", policy, spec=SPEC)
        shown.in_force(replace(profiles, version=2 * index + 2))
        last = profiles
        profiles = without_policy(profiles, f"series-{index}", spec=SPEC)
        shown.in_force(replace(profiles, version=2 * index + 3))
    shown.in_force(replace(profiles, version=2 * number + 2))
    return last


def test_the_series_of_a_policy_end_with_it() -> None:
    come_and_go(20)
    assert labels() == {"series-own"}
    # The last requests of a policy that has gone, such as one that is drained.
    POLICY_FAILURES.labels(policy_label("series-3")).inc()
    assert labels() == {"series-own"}
    assert policy_label("series-3") == OTHER
    back = build_profile_set({"even": {"series-own": 1}}, SPEC)
    policy = AddedPolicy.of(adapter="x", sha256="0" * 64)
    WeightsMetrics(with_policy(back, "series-3", policy, spec=SPEC)).in_force(back)
    assert policy_label("series-own") == "series-own"


def test_policies_of_several_processes_begin_no_series_without_bound(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """There no series can end, so the names of ten thousand policies would stay for ever."""
    POLICY_FAILURES.remove(OTHER)  # that of other tests
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    monkeypatch.setattr(bounded_labels, "POLICIES", BoundedLabels(MOST))
    come_and_go(300)
    assert labels() == {"series-own", *(f"series-{index}" for index in range(MOST - 1))}
    assert (policy_label("series-own"), policy_label("series-299")) == ("series-own", OTHER)
    assert (OTHER,) in POLICY_FAILURES._metrics, "what they share is there from the start"

"""Each test has the labels of a server that has just started."""

from __future__ import annotations

import pytest

from prefmix.server.telemetry import bounded_labels
from prefmix.server.telemetry.bounded_labels import BoundedLabels


@pytest.fixture(autouse=True)
def _new_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded_labels, "PROFILES", BoundedLabels(most=100))
    monkeypatch.setattr(bounded_labels, "HASHES", BoundedLabels(most=1000))

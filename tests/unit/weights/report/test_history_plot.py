"""The picture of a store's history: one line a member, a gap where the profile was not."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from prefmix.weights.report.history_plot import weights_over_versions
from prefmix.weights.report.plots import png
from prefmix.weights.store.edits import with_default, with_profile
from prefmix.weights.store.format import spec_of_members
from prefmix.weights.store.profiles import ProfileSet, build_profile_set


def history(num: int = 4) -> list[ProfileSet]:
    """Version 1 has `even` alone; `x` follows, and is the default from version 3 on."""
    first = build_profile_set({"even": {"a": 1, "b": 1}}, spec_of_members(["a", "b"]))
    found = [first]
    for version in range(2, num + 1):
        later = with_profile(found[-1], "x", {"a": version, "b": 1})
        later = with_default(later, "x") if version >= 3 else later
        found.append(replace(later, version=version))
    return found


def drawn(figure: object) -> list[list[float]]:
    """Each member's line."""
    (axes,) = figure.axes  # type: ignore[attr-defined]
    return [list(map(float, line.get_ydata())) for line in axes.lines if len(line.get_xdata()) > 2]


def test_the_defaults_weights_are_drawn_and_its_changes_named() -> None:
    figure = weights_over_versions(history())
    a, b = drawn(figure)
    assert a == pytest.approx([0.5, 0.5, 3 / 4, 4 / 5])
    assert b == pytest.approx([0.5, 0.5, 1 / 4, 1 / 5])
    words = {text.get_text() for text in figure.axes[0].texts}
    assert words == {"a", "b", "even", "x"}
    assert png(figure).startswith(b"\x89PNG")


def test_a_profile_has_a_gap_where_it_did_not_exist() -> None:
    a, _ = drawn(weights_over_versions(history(), profile="x"))
    assert math.isnan(a[0])
    assert a[1:] == pytest.approx([2 / 3, 3 / 4, 4 / 5])
    with pytest.raises(ValueError, match="has a profile 'nobody'"):
        weights_over_versions(history(), profile="nobody")


@pytest.mark.parametrize("num", [1, 60])
def test_any_number_of_versions_can_be_drawn(num: int) -> None:
    figure = weights_over_versions(history(num))
    labels = figure.axes[0].xaxis.get_major_formatter()
    assert [labels(place, 0) for place in (0.0, 0.5, float(num))] == ["1", "", ""]
    assert len(png(figure)) > 1000
    assert np.isfinite(figure.axes[0].get_ylim()).all()

"""Hypothesis strategies of the property tests: names, mixtures, weights, any JSON at all."""

from __future__ import annotations

import math
from typing import Any

from hypothesis import strategies as st

from prefmix.mixing.spec import NAME_PATTERN, WEIGHT_SPACES, MixtureSpec, Policy
from prefmix.weights.store.format import MAX_VERSION
from prefmix.weights.store.profiles import (
    CUSTOM_PROFILE,
    NO_PROFILE,
    ProfileSet,
    build_profile_set,
)

MEMBERS = ("positive", "concise", "polite", "reference")
PROFILES = ("even", "solo", "short-and-kind")

names = st.from_regex(NAME_PATTERN, fullmatch=True)
profile_names = names.filter(lambda name: name not in (CUSTOM_PROFILE, NO_PROFILE))

_AWKWARD = '\ud800\udfff\0\r\n\u2028\x7f{}"\\@,=ab'
any_text = st.one_of(st.text(max_size=20), st.text(st.sampled_from(_AWKWARD), max_size=20))
"""Any text, lone surrogates and control characters included."""

numbers = st.one_of(
    st.floats(),
    st.integers(),
    st.sampled_from([0, -0.0, 1, 10**400, -(10**400), 5e-324, 1.7976931348623157e308, math.nan]),
)
scalars = st.one_of(st.none(), st.booleans(), numbers, any_text)
any_json = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(any_text, inner, max_size=4)
    ),
    max_leaves=12,
)
json_objects = st.dictionaries(any_text, any_json, max_size=4)

ratios = st.one_of(st.just(0.0), st.floats(1e-300, 1e300), st.integers(0, 10**6))


@st.composite
def specs(draw: st.DrawFn, weight_space: str | None = None) -> MixtureSpec:
    """Any mixture of one to five policies, with or without a reference."""
    chosen = draw(st.lists(names, min_size=2, max_size=6, unique=True))
    members = [Policy(name=name, model="org/model") for name in chosen]
    has_reference = draw(st.booleans())
    return MixtureSpec(
        policies=tuple(members[:-1]) if has_reference else tuple(members),
        reference=members[-1] if has_reference else None,
        weight_space=weight_space or draw(st.sampled_from(WEIGHT_SPACES)),  # type: ignore[arg-type]
    )


@st.composite
def valid_ratios(draw: st.DrawFn, member_names: tuple[str, ...]) -> dict[str, float]:
    """Preferences that the simplex accepts: some members named, at least one above 0."""
    named = draw(st.lists(st.sampled_from(member_names), min_size=1, unique=True))
    values = draw(
        st.lists(ratios, min_size=len(named), max_size=len(named)).filter(lambda row: max(row) > 0)
    )
    return dict(zip(named, values, strict=True))


def nearly(member_names: tuple[str, ...]) -> st.SearchStrategy[Any]:
    """Preferences that are wrong in one place only, or anything."""
    keys = st.one_of(st.sampled_from(member_names), any_text)
    return st.one_of(
        any_json, st.dictionaries(keys, st.one_of(ratios, scalars), max_size=len(member_names) + 1)
    )


@st.composite
def profile_sets(draw: st.DrawFn, space: str = "simplex") -> ProfileSet:
    """Any valid set of profiles, with provenance."""
    spec = draw(specs(space))
    chosen = draw(st.lists(profile_names, min_size=1, max_size=4, unique=True))
    return build_profile_set(
        {name: draw(valid_ratios(spec.member_names)) for name in chosen},
        spec,
        default=draw(st.sampled_from(chosen)),
        version=draw(st.integers(1, MAX_VERSION)),
        provenance={name: draw(plain_objects) for name in chosen},
    )


plain_text = st.text(st.characters(codec="utf-8"), max_size=20)
plain_objects = st.dictionaries(
    plain_text,
    st.recursive(
        st.one_of(
            st.none(),
            st.booleans(),
            st.integers(),
            st.floats(allow_nan=False, allow_infinity=False),
            plain_text,
        ),
        lambda inner: st.one_of(
            st.lists(inner, max_size=3), st.dictionaries(plain_text, inner, max_size=3)
        ),
        max_leaves=6,
    ),
    max_size=3,
)
"""JSON objects that a file in UTF-8 can hold."""

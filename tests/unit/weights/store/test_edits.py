"""Edits of a set of profiles keep what the whole set is for."""

from __future__ import annotations

import pytest

from prefmix.weights.store.edits import merged, replaced, with_profile
from prefmix.weights.store.errors import StoreFormatError
from prefmix.weights.store.format import spec_of_members
from prefmix.weights.store.profiles import build_profile_set


def test_edits_of_prompted_policies_keep_their_hash_and_refuse_others() -> None:
    prompted = spec_of_members(["a", "b"], prompts_sha256="0f" * 32)
    own = build_profile_set({"even": {"a": 1, "b": 1}}, prompted)
    other = build_profile_set({"more": {"a": 2, "b": 1}}, prompted)
    for edited in (
        with_profile(own, "x", {"a": 1}),
        merged(own, other, source="s"),
        replaced(own, other, source="s"),
    ):
        assert edited.prompts_sha256 == prompted.prompts_sha256
    plain = build_profile_set({"more": {"a": 2, "b": 1}}, spec_of_members(["a", "b"]))
    with pytest.raises(StoreFormatError, match="other prompts"):
        merged(own, plain, source="s")

"""A store's file is read back as written; any other content is refused by the file's name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hypothesis import assume, given
from hypothesis import strategies as st

from prefmix.weights.store.edits import with_profile
from prefmix.weights.store.errors import StoreError, StoreFormatError
from prefmix.weights.store.format import document, dump, from_document, parse, spec_of_members
from prefmix.weights.store.profiles import ProfileError, ProfileSet, build_profile_set
from prefmix.weights.store.store import WeightsStore
from resilience.harness import tally
from resilience.harness.attempt import attempt
from resilience.inputs.strategies import (
    any_json,
    any_text,
    plain_objects,
    profile_names,
    profile_sets,
)

GOOD = build_profile_set(
    {"even": {"a": 1, "b": 1}, "solo": {"b": 1}},
    spec_of_members(["a", "b"]),
    default="even",
    version=7,
    provenance={"even": {"seed": 3, "kl": [0.5, None, "ü"]}},
)
TEXT = dump(GOOD).encode()


def read_or_refused(content: bytes) -> ProfileSet | None:
    """The profiles that the content holds; None if one line that names the file refuses it."""
    profiles, refusal = attempt(lambda: parse(content, source="w.json"), StoreFormatError)
    if refusal is not None:
        assert str(refusal).startswith("w.json")
        assert "\n" not in str(refusal)
        assert len(str(refusal)) < 1500
    return profiles


@given(profiles=profile_sets())
def test_reading_undoes_writing_to_the_last_bit(profiles: ProfileSet) -> None:
    again = parse(dump(profiles).encode(), source="w.json")
    assert again == profiles
    assert again.sha256 == profiles.sha256
    assert dump(again) == dump(profiles)


def wrecks(place: int) -> list[bytes]:
    """The good file with the byte at a place flipped, dropped or doubled, or cut at the place."""
    before, byte, after = TEXT[:place], TEXT[place : place + 1], TEXT[place + 1 :]
    return [
        *(before + bytes([byte[0] ^ 1 << bit]) + after for bit in range(8)),
        before + after,
        before + byte + byte + after,
        before,
        before + b"\0" * (len(TEXT) - place),
    ]


def test_a_file_with_damage_at_any_byte_is_read_strictly_or_refused() -> None:
    """No other exception and no half set: every accepted content reads back the same."""
    for place in range(len(TEXT)):
        for wreck in wrecks(place):
            tally.hostile("store files")
            profiles = read_or_refused(wreck)
            if profiles is not None:
                assert parse(dump(profiles), source="again") == profiles, wreck


@given(content=st.one_of(st.binary(), any_json.map(lambda value: json.dumps(value).encode())))
def test_any_file_is_read_or_refused(content: bytes) -> None:
    tally.hostile("store files")
    read_or_refused(content)


@given(
    key=st.sampled_from([*document(GOOD), "weight_space", "weights", "provenance"]), value=any_json
)
def test_any_value_under_a_known_key_is_read_or_refused(key: str, value: Any) -> None:
    tally.hostile("store files")
    data = document(GOOD)
    if key in ("weights", "provenance"):
        data["profiles"]["even"][key] = value
    else:
        data[key] = value
    profiles, refusal = attempt(lambda: from_document(data, source="w.json"), StoreFormatError)
    if profiles is None:
        assert "\n" not in str(refusal)
    else:
        assert parse(dump(profiles).encode(), source="again") == profiles


@given(depth=st.integers(500, 200_000), opening=st.sampled_from(["[", '{"a":', '{"profiles":']))
def test_any_depth_is_refused(depth: int, opening: str) -> None:
    tally.hostile("store files")
    assert read_or_refused(opening.encode() * depth) is None


@given(provenance=st.dictionaries(any_text, any_json, max_size=3), name=any_text)
def test_a_change_is_written_whole_or_refused_and_nothing_written(
    tmp_path: Path, provenance: dict[str, Any], name: str
) -> None:
    """Names and provenances of any kind survive the store's own file."""
    tally.hostile("store changes")
    store = WeightsStore(tmp_path / "w.json")
    before = store.create(GOOD)
    content = store.path.read_bytes()
    change, _ = attempt(
        lambda: store.change(lambda p: with_profile(p, name, {"a": 1}, provenance=provenance)),
        StoreError,
        ProfileError,
    )
    if change is None:
        assert store.path.read_bytes() == content
    else:
        assert store.read() == change.after
        assert change.after.version in (before.version, before.version + 1)
        assert store.read().weights(name) == {"a": 1.0, "b": 0.0}


@given(one=plain_objects, other=plain_objects, name=profile_names)
def test_equal_content_has_equal_hashes_and_no_other(
    one: dict[str, Any], other: dict[str, Any], name: str
) -> None:
    assume(json.dumps(one, sort_keys=True) != json.dumps(other, sort_keys=True))
    sets = [with_profile(GOOD, name, {"a": 1}, provenance=origin) for origin in (one, other, one)]
    assert sets[0].sha256 == sets[2].sha256
    assert sets[0].sha256 != sets[1].sha256

"""The fitted profile in a store: what was there before stays."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from prefmix.weights.fit.output import check_output, write_profile
from prefmix.weights.fit.result import FitResult
from prefmix.weights.store.edits import with_profile
from prefmix.weights.store.errors import StoreError
from prefmix.weights.store.format import spec_of_members
from prefmix.weights.store.profiles import build_profile_set
from prefmix.weights.store.store import WeightsStore

MEMBERS = ("one", "two", "reference")
RESULT = FitResult(
    names=("one", "two"),
    weights_K=np.array([0.25, 0.75]),
    fitted="mixture (token level)",
    path_TK=np.array([[0.25, 0.75]]),
    rounds_kl_TK=None,
    certificate=None,
    deployed=None,
    verdict="trustworthy",
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "weights.json"


@pytest.fixture
def live(path: Path) -> WeightsStore:
    """A store of two profiles at version 2, with its members in another order."""
    spec = spec_of_members(("reference", "two", "one"))
    store = WeightsStore(path)
    store.create(build_profile_set({"mine": {"one": 1, "two": 1, "reference": 0}}, spec))
    store.change(lambda now: with_profile(now, "other", {"two": 1}))
    return store


def write(
    path: Path, *, profile: str = "fitted", default: bool = False, force: bool = False
) -> None:
    change, provenance = write_profile(
        path,
        RESULT,
        MEMBERS,
        profile=profile,
        about={"prompts": "hash"},
        make_default=default,
        force=force,
    )
    assert change.after.provenance[profile] == provenance


def test_a_missing_store_is_made_with_the_profile_as_its_default(path: Path) -> None:
    check_output(path, MEMBERS)
    write(path)
    made = WeightsStore(path).read()
    assert (made.version, made.default, made.member_names) == (1, "fitted", MEMBERS)
    assert made.weights("fitted") == {"one": 0.25, "two": 0.75, "reference": 0.0}
    assert made.provenance["fitted"]["prompts"] == "hash"


def test_a_store_keeps_its_profiles_default_and_history(live: WeightsStore) -> None:
    check_output(live.path, MEMBERS)
    write(live.path)
    after = live.read()
    assert (after.version, after.default) == (3, "mine")
    assert set(after.profiles) == {"mine", "other", "fitted"}
    assert after.weights("fitted") == {"one": 0.25, "two": 0.75, "reference": 0.0}
    assert live.versions() == [1, 2]


def test_the_profile_becomes_the_default_if_asked(live: WeightsStore) -> None:
    write(live.path, profile="other", default=True)
    after = live.read()
    assert (after.version, after.default, set(after.profiles)) == (3, "other", {"mine", "other"})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,b\n1,2\n", "line 1 column 1: not JSON"),
        ('{"results": []}', "weights.json: "),
        ("", "not JSON"),
    ],
)
def test_another_kind_of_file_is_refused_before_the_fit(
    path: Path, content: str, message: str
) -> None:
    path.write_text(content)
    for names in (None, MEMBERS):
        with pytest.raises(StoreError, match=message) as raised:
            check_output(path, names)
        assert "--force" in str(raised.value)
    with pytest.raises(StoreError):
        write(path)
    assert path.read_text() == content
    write(path, force=True)
    assert WeightsStore(path).read().default == "fitted"


def test_a_store_of_other_policies_is_refused_before_the_fit(live: WeightsStore) -> None:
    before = live.path.read_bytes()
    check_output(live.path, None)
    with pytest.raises(StoreError, match=r"made for other policies.*--force"):
        check_output(live.path, ("one", "three"))
    assert live.path.read_bytes() == before


def test_a_folder_that_is_missing_or_in_the_way_is_refused_before_the_fit(path: Path) -> None:
    with pytest.raises(StoreError, match=r"the folder .* does not exist"):
        check_output(path / "store.json", None)
    path.mkdir()
    with pytest.raises(StoreError):
        check_output(path, None)


def test_two_that_replace_one_file_wait_for_each_other(tmp_path: Path) -> None:
    """Both would write to one file aside, and the later one would find it gone."""
    path = tmp_path / "w.json"
    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(write, path, force=True) for _ in range(40)]:
            done.result()
    assert set(WeightsStore(path).read().profiles) == {"fitted"}

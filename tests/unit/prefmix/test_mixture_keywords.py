"""Keywords of `Mixture` override its configuration file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from prefmix.mixture_keywords import KEYWORDS, Described, describe
from prefmix.server.config.config_file import load_config
from prefmix.server.config.errors import ConfigError
from prefmix.weights.store.errors import StoreFormatError, StoreMissingError
from prefmix.weights.store.format import dump
from prefmix.weights.store.profiles import ProfileSet, build_profile_set


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with two model folders and a file in `files`."""
    for name in ("one", "two", "files/one"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "files" / "serve.yaml").write_text(
        "policies: {one: ./one, two: org/two}\n"
        "profiles: {kind: {one: 1, two: 3}}\n"
        "port: 9000\n"
        "engine: {max-model-len: 512}\n"
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def models(described: Described) -> dict[str, str]:
    return {member.name: member.model for member in described.spec.members}


def stored(described: Described) -> ProfileSet:
    return build_profile_set({"other": {"two": 1}}, described.spec, version=5)


def test_policies_are_strings_paths_or_mappings(folder: Path) -> None:
    described = describe(
        {
            "policies": {
                "a": "./one",
                "b": Path("two"),
                "c": {"model": "org/c", "revision": "v2"},
                "d": "org/d",
            },
            "reference": {"e": folder / "one"},
            "profiles": {"kind": {"a": 1}},
        }
    )
    assert models(described) == {
        "a": str(folder / "one"),
        "b": str(folder / "two"),
        "c": "org/c",
        "d": "org/d",
        "e": str(folder / "one"),
    }
    assert described.spec.members[2].revision == "v2"
    assert described.spec.reference is not None
    assert described.profiles.default == "kind"


def test_adapters_share_a_base_that_may_be_the_reference(folder: Path) -> None:
    described = describe(
        {"base": "./one", "adapters": {"a": Path("two")}, "reference": {"base": "one"}}
    )
    assert described.spec.base == str(folder / "one")
    assert models(described) == {"a": str(folder / "two"), "base": str(folder / "one")}


def test_keywords_override_the_file(folder: Path) -> None:
    plain = describe({"config": "files/serve.yaml", "policies": None})
    assert models(plain) == {"one": str(folder / "files" / "one"), "two": "org/two"}
    assert plain.config.engine == {"max-model-len": 512}
    changed = describe(
        {
            "config": folder / "files" / "serve.yaml",
            "policies": {"one": "./one", "two": "./two"},
            "weight_space": "affine",
            "profiles": {"own": {"one": 1.5, "two": -0.5}},
        }
    )
    assert models(changed) == {"one": str(folder / "one"), "two": str(folder / "two")}
    assert dict(changed.profiles.profiles) == {"own": (1.5, -0.5)}


def test_a_store_wins_over_profiles_and_is_not_written(folder: Path) -> None:
    given: dict[str, Any] = {"config": "files/serve.yaml"}
    store = folder / "weights.json"
    with pytest.raises(StoreMissingError):
        describe({**given, "weights_store": store})
    store.write_text(dump(stored(describe(given))))
    content = store.read_bytes()
    described = describe({**given, "weights_store": "weights.json"})
    assert (described.profiles.default, described.profiles.version) == ("other", 5)
    assert sorted(path.name for path in folder.iterdir() if "weights" in path.name) == [store.name]
    assert store.read_bytes() == content
    store.write_text("{}")
    with pytest.raises(StoreFormatError, match=r"weights\.json"):
        describe({**given, "weights_store": store})


def test_a_store_that_only_the_file_names_may_be_missing(folder: Path) -> None:
    file = folder / "files" / "serve.yaml"
    file.write_text(file.read_text() + "weights_store: ./weights.json\n")
    described = describe({"config": file})
    assert described.profiles.default == "kind"
    (file.parent / "weights.json").write_text(dump(stored(described)))
    assert describe({"config": file}).profiles.default == "other"


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"policies": {"a": "./missing"}},
        {"policies": {"a b": "org/a"}},
        {"policies": {"a": {"path": "org/a"}}},
        {"policies": {"a": 3}},
        {"policies": ["org/a"]},
        {"policies": {"a": "org/a"}, "base": "org/base"},
        {"adapters": {"a": "org/a"}},
        {"base": "org/base"},
        {"policies": {"a": "org/a"}, "weight_space": "sphere"},
        {"policies": {"a": "org/a"}, "reference": {"b": "org/b", "c": "org/c"}},
        {"policies": {"a": "org/a"}, "profiles": {"p": {"b": 1}}},
        {"policies": {"a": "org/a"}, "profiles": {"p": {"a": 1}}, "default_profile": "q"},
        {"config": "missing.yaml"},
    ],
)
def test_refusals_are_config_errors(folder: Path, given: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as refused:
        describe(given)
    assert "\n" not in str(refused.value)


def as_the_server(given: dict[str, Any]) -> None:
    config = load_config(None, given)
    config.profile_set(config.spec())


def test_refusals_are_the_servers(folder: Path) -> None:
    """Refusals that name no flag are worded as the server words them."""
    for given in (
        {"policies": {"a": "org/a"}, "profiles": {"p": {"b": 1}}},
        {"policies": {"a b": "org/a"}},
        {"adapters": {"a": "org/a"}},
        {"policies": {"a": {"path": "org/a"}}},
        {},
    ):
        with pytest.raises(ConfigError) as here:
            describe(given)
        with pytest.raises(ConfigError) as there:
            as_the_server(given)
        assert str(here.value) == str(there.value)


def test_every_keyword_is_a_key_of_the_file() -> None:
    from prefmix.server.config.serve_config import ServeConfig

    assert set(KEYWORDS) - {"config"} <= set(ServeConfig.model_fields)

"""`weights_store` and `admin_port` come from file or flag; a store's profiles win."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest

from prefmix.server.cli import serve
from prefmix.server.cli.main import main
from prefmix.server.config.config_file import load_config
from prefmix.server.config.errors import ConfigError
from prefmix.server.config.serve_config import ServeConfig
from prefmix.weights.store.profiles import ProfileSet
from prefmix.weights.store.store import WeightsStore

CONFIG = """
policies: {a: org/a, b: org/b}
profiles: {even: {a: 1, b: 1}}
weights_store: stores/w.json
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with mixture.yaml and an empty folder for its store."""
    (tmp_path / "mixture.yaml").write_text(CONFIG)
    (tmp_path / "stores").mkdir()
    return tmp_path


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[ProfileSet]:
    """The profiles that servers would have been started with; none is."""
    found: list[ProfileSet] = []

    def launch(config: ServeConfig, spec: Any, profiles: ProfileSet, passthrough: Any) -> int:
        found.append(profiles)
        return 0

    monkeypatch.setattr("prefmix.server.launch.launch.launch", launch)
    return found


def test_the_path_is_relative_to_the_file_and_a_flag_overrides_it(folder: Path) -> None:
    config = load_config(folder / "mixture.yaml", {})
    assert config.weights_store == str(folder / "stores" / "w.json")
    parser = argparse.ArgumentParser()
    serve.add_arguments(parser)
    args = parser.parse_args(["--weights-store", "here.json", "--admin-port", "9001"])
    assert serve.overrides_from_flags(args) == {"weights_store": "here.json", "admin_port": 9001}


def test_the_configuration_seeds_a_store_that_does_not_exist(
    folder: Path, launched: list[ProfileSet]
) -> None:
    assert main(["serve", str(folder / "mixture.yaml")]) == 0
    stored = WeightsStore(folder / "stores" / "w.json").read()
    assert launched == [stored]
    assert (stored.version, stored.weights("even")) == (1, {"a": 0.5, "b": 0.5})


def test_a_store_that_exists_wins(folder: Path, launched: list[ProfileSet]) -> None:
    main(["serve", str(folder / "mixture.yaml")])
    (folder / "mixture.yaml").write_text(CONFIG.replace("even", "other"))
    main(["serve", str(folder / "mixture.yaml")])
    assert list(launched[1].profiles) == ["even"]


def test_without_a_store_no_file_is_written(folder: Path, launched: list[ProfileSet]) -> None:
    (folder / "mixture.yaml").write_text(CONFIG.replace("weights_store: stores/w.json", ""))
    main(["serve", str(folder / "mixture.yaml")])
    assert list(launched[0].profiles) == ["even"]
    assert sorted(path.name for path in folder.rglob("*")) == ["mixture.yaml", "stores"]


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("{", "line 1 column 2: not JSON"),
        ('{"format": 3}', "format is 3"),
        (None, "cannot read"),
    ],
)
def test_a_bad_store_ends_the_start_with_one_sentence(
    folder: Path,
    launched: list[ProfileSet],
    capsys: pytest.CaptureFixture[str],
    text: str | None,
    part: str,
) -> None:
    store = folder / "stores" / "w.json"
    store.mkdir() if text is None else store.write_text(text)
    assert main(["serve", str(folder / "mixture.yaml")]) == 1
    message = capsys.readouterr().err
    assert str(store) in message
    assert part in message
    assert message.count("\n") == 1
    assert launched == []


@pytest.mark.parametrize("port", [0, 70000, "x", True])
def test_an_impossible_admin_port_is_refused(folder: Path, port: Any) -> None:
    with pytest.raises(ConfigError, match="admin_port is"):
        load_config(folder / "mixture.yaml", {"admin_port": port})


def test_a_start_takes_as_many_profiles_as_it_is_told(
    folder: Path, launched: list[ProfileSet], capsys: pytest.CaptureFixture[str]
) -> None:
    """From the file, from a flag, and from a store; the default is a few hundred."""
    profiles = ", ".join(f"p{number}: {{a: 1}}" for number in range(300))
    plain = CONFIG.replace("even: {a: 1, b: 1}", profiles)
    (folder / "mixture.yaml").write_text(plain)
    words = ["serve", str(folder / "mixture.yaml")]
    assert main(words) == 2
    said = "prefmix: error: there are 300 profiles, and this server takes 256 at most"
    assert capsys.readouterr().err.startswith(said)
    assert main([*words, "--max-profiles", "300"]) == 0
    assert len(launched[0].profiles) == 300

    (folder / "mixture.yaml").write_text(CONFIG)
    assert main(words) == 1
    error = capsys.readouterr().err
    assert "w.json: there are 300 profiles, and this server takes 256 at most" in error
    (folder / "mixture.yaml").write_text(CONFIG + "max_profiles: 301\n")
    assert main(words) == 0
    assert main([*words, "--max-profiles", "0"]) == 2

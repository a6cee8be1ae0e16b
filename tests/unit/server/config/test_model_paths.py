"""Models of flags: NAME=MODEL, local folders and hub ids."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from prefmix.server.config.errors import ConfigError
from prefmix.server.config.model_paths import policies_from_flags, resolve_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with two model folders in it."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    return tmp_path


@pytest.mark.parametrize("item", ["a", "=org/a", "a=", "", "="])
def test_policy_flags_need_name_and_model(item: str) -> None:
    with pytest.raises(ConfigError, match="NAME=MODEL"):
        policies_from_flags("--policy", [item])


def test_a_policy_flag_given_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match="'a' twice"):
        policies_from_flags("--policy", ["a=org/a", "a=org/b"])


def test_home_and_parent_folders_are_folders(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder))
    elsewhere = folder / "one"
    assert resolve_model("~/two", folder=elsewhere, where="x") == str(folder / "two")
    assert resolve_model("../two", folder=elsewhere, where="x") == str(folder / "two")
    assert resolve_model("two", folder=elsewhere, where="x") == "two", "no such folder: a hub id"
    with pytest.raises(ConfigError, match="does not exist"):
        resolve_model("~/three", folder=elsewhere, where="x")


@pytest.mark.parametrize(
    "model", ["policies/demo/chekpoints/positive", "two/", "my models/two", "C:\\models\\two"]
)
def test_what_can_be_no_hub_id_is_a_folder_that_is_missing(model: str, tmp_path: Path) -> None:
    """The hub is not asked, which takes long where it cannot be reached."""
    with pytest.raises(ConfigError, match=r"x: .* does not exist; give a folder"):
        resolve_model(model, folder=tmp_path, where="x")


@pytest.mark.parametrize("model", ["gpt2", "Qwen/Qwen2.5-0.5B-Instruct", "org_1/name.v2"])
def test_hub_ids_are_left_alone(model: str, tmp_path: Path) -> None:
    assert resolve_model(model, folder=tmp_path, where="x") == model


def test_a_home_that_nobody_has_is_named() -> None:
    with pytest.raises(ConfigError, match=r"--policy a: the home folder .*'~nobody-at-all/m'"):
        resolve_model("~nobody-at-all/m", folder=Path("/"), where="--policy a")


def test_a_folder_that_may_not_be_searched_is_no_hub_id(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As root, no folder is forbidden: the refusal is the operating system's in any case."""

    def refuse(path: Path, **options: object) -> os.stat_result:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "stat", refuse)
    for model in ("./one/m", "one/m"):
        with pytest.raises(ConfigError, match=r"a: .*one/m cannot be read \(Permission denied\)"):
            resolve_model(model, folder=folder, where="a")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("./loop/m", r"cannot be read \(Too many levels of symbolic links\)"),
        ("./" + "m" * 300, r"cannot be read \(File name too long\)"),
        ("./m\0", "does not exist"),
        ("./file", "is not a folder"),
        ("./file/m", "does not exist"),
    ],
)
def test_paths_that_are_no_folders_are_refused(model: str, message: str, folder: Path) -> None:
    (folder / "loop").symlink_to("loop")
    (folder / "file").touch()
    with pytest.raises(ConfigError, match=message):
        resolve_model(model, folder=folder, where="a")


def test_a_hub_id_may_begin_with_the_name_of_a_file(folder: Path) -> None:
    (folder / "org").touch()
    assert resolve_model("org/model", folder=folder, where="a") == "org/model"

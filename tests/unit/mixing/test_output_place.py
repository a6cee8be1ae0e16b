"""A place for output is tried before the work, and nothing is left there."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from prefmix.mixing.output_place import why_unwritable


def test_places_that_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "file").touch()
    for name in ("new", "there", "a/b/c"):
        assert why_unwritable(tmp_path / name, is_folder=True) is None
    for name in ("new", "there/new", "file"):
        assert why_unwritable(tmp_path / name, is_folder=False) is None
    assert sorted(each.name for each in tmp_path.rglob("*")) == ["file", "there"]


@pytest.mark.parametrize(
    ("name", "is_folder", "why"),
    [
        ("file", True, "it is a file, no folder"),
        ("there", False, "it is a folder"),
        ("gone/new", False, "there is no folder {here}/gone"),
        ("file/new", False, "there is no folder {here}/file"),
        ("file/new", True, "nothing can be made in {here}/file: Not a directory"),
        ("/proc/new", True, "nothing can be made in /proc: No such file or directory"),
        ("/proc/new", False, "nothing can be made in /proc: No such file or directory"),
    ],
)
def test_places_that_cannot(name: str, is_folder: bool, why: str, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "file").touch()
    assert why_unwritable(tmp_path / name, is_folder=is_folder) == why.format(here=tmp_path)


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    why = f"nothing can be made in {tmp_path}: No space left on device"
    assert why_unwritable(tmp_path / "new", is_folder=False) == why
    assert list(tmp_path.iterdir()) == []


def test_a_read_only_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)  # as for other users
    assert why_unwritable(tmp_path / "file", is_folder=False) == "it is read-only"

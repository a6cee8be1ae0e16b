"""The temporary folder of a server's processes."""

from __future__ import annotations

import tempfile

import pytest

from prefmix.server.config.errors import CommandError
from prefmix.server.config.live_settings import live_settings


def test_the_folder_lives_as_long_as_the_server() -> None:
    with live_settings(None, None) as live:
        assert live.folder.is_dir()
        (live.folder / "lock").touch()
    assert not live.folder.exists()


def test_no_place_for_temporary_files_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/proc")  # where nobody can make a folder
    with (
        pytest.raises(CommandError, match=r"cannot make a temporary folder: .*/proc.*TMPDIR"),
        live_settings(None, None),
    ):
        pass

"""Adapters are taken from below one folder only, and known by their content."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from prefmix.server.slots.policies_folder import PoliciesFolder, PoliciesFolderError


@pytest.fixture
def folder(tmp_path: Path) -> PoliciesFolder:
    write(tmp_path / "policies" / "runs" / "one")
    write(tmp_path / "outside")
    return PoliciesFolder(tmp_path / "policies")


def write(adapter: Path, parameters: bytes = b"1") -> None:
    adapter.mkdir(parents=True, exist_ok=True)
    (adapter / "adapter_config.json").write_text("{}")
    (adapter / "adapter_model.safetensors").write_bytes(parameters)


def test_other_files_have_another_hash(folder: PoliciesFolder) -> None:
    found = folder.adapter("runs/one")
    assert found.adapter == "runs/one"
    assert folder.adapter("runs/one") == found
    assert folder.unchanged(found) == folder.path / "runs" / "one"
    write(folder.path / "runs" / "one", b"2")
    assert folder.adapter("runs/one").sha256 != found.sha256
    with pytest.raises(PoliciesFolderError, match="has other files than when it was added"):
        folder.unchanged(found)


@pytest.mark.parametrize(
    "name",
    [
        *("", ".", "..", "../outside", "runs/../../outside", "/etc", "runs/one\0", "x" * 600),
        *("../policies/runs/one", "runs/../runs/one"),
        *("gone", "x" * 300, "a/" * 250, "\ud800", "runs/one/adapter_config.json"),
    ],
)
def test_nothing_outside_is_looked_at(folder: PoliciesFolder, name: str) -> None:
    with pytest.raises(PoliciesFolderError, match="adapter"):
        folder.adapter(name)


def test_no_link_leads_out(folder: PoliciesFolder, tmp_path: Path) -> None:
    (folder.path / "linked").symlink_to(tmp_path / "outside")
    with pytest.raises(PoliciesFolderError, match="no way out of it"):
        folder.adapter("linked")
    write(folder.path / "file")
    (folder.path / "file" / "adapter_model.safetensors").unlink()
    target = tmp_path / "outside" / "adapter_model.safetensors"
    (folder.path / "file" / "adapter_model.safetensors").symlink_to(target)
    with pytest.raises(PoliciesFolderError, match="is a link out of the server's"):
        folder.adapter("file")


def test_no_file_beside_an_adapter_is_a_link_out(folder: PoliciesFolder, tmp_path: Path) -> None:
    adapter = folder.path / "runs" / "one"
    assert folder.confined("runs/one") == adapter
    (adapter / "linked.json").symlink_to("adapter_config.json")
    assert folder.confined("runs/one") == adapter
    (adapter / "tokenizer.json").symlink_to(tmp_path / "outside" / "adapter_config.json")
    assert folder.adapter("runs/one").adapter == "runs/one"
    with pytest.raises(PoliciesFolderError, match=r"'runs/one': tokenizer\.json is a link out of"):
        folder.confined("runs/one")


def test_links_in_a_circle_and_what_is_no_file_are_refused(folder: PoliciesFolder) -> None:
    (folder.path / "circle").symlink_to("circle")
    with pytest.raises(PoliciesFolderError, match="'circle': its folder cannot be read"):
        folder.adapter("circle")
    for name, make in (
        ("loop", lambda path: path.symlink_to(path.name)),
        ("pipe", os.mkfifo),
        ("folder", Path.mkdir),
        ("dangling", lambda path: path.symlink_to("gone")),
    ):
        write(folder.path / name)
        config = folder.path / name / "adapter_config.json"
        config.unlink()
        make(config)
        with pytest.raises(PoliciesFolderError, match=rf"'{name}'.* adapter_config\.json"):
            folder.adapter(name)


def test_links_inside_are_followed_as_mounted_volumes_have_them(folder: PoliciesFolder) -> None:
    (folder.path / "current").symlink_to("runs")
    assert folder.adapter("current/one").sha256 == folder.adapter("runs/one").sha256


def test_an_adapter_without_safetensors_is_refused(folder: PoliciesFolder) -> None:
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        write(folder.path / "runs" / "one")
        (folder.path / "runs" / "one" / name).unlink()
        with pytest.raises(PoliciesFolderError, match=f"'runs/one' has no {re.escape(name)}"):
            folder.adapter("runs/one")

"""The wheel and the sdist hold the right files, built from a copy of the tracked files."""

from __future__ import annotations

import ast
import configparser
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from support.architecture import ROOMS, ROOT

SDIST_ROOT = {"LICENSE", "MANIFEST.in", "PKG-INFO", "README.md", "pyproject.toml", "setup.cfg"}
SDIST_ROOT |= {"setup.py", "requirements", "src"}


def tracked_files(*folders: str) -> list[str]:
    """Paths of the files and links that git knows and that are there, from the root."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--", *folders],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    names = listed.stdout.split("\0")[:-1]
    return [name for name in names if (ROOT / name).is_symlink() or (ROOT / name).is_file()]


def build(kind: str, source: Path, output: Path) -> Path:
    """The `wheel` or `sdist` of a folder, built by setuptools with no other package or network."""
    script = f"from setuptools import build_meta as b; b.build_{kind}({str(output)!r})"
    run = subprocess.run(
        [sys.executable, "-c", script], cwd=source, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
    (built,) = output.iterdir()
    return built


def copy_tracked(folder: Path) -> None:
    """Copies the tracked files and links into a folder."""
    for name in tracked_files():
        copy = folder / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, copy, follow_symlinks=False)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tracked files, and the leavings of an earlier build of another version."""
    folder = tmp_path_factory.mktemp("source")
    copy_tracked(folder)
    for name in ("server/gone.py", "prefmix/gone.py"):
        stale = folder / "build" / "lib" / name
        stale.parent.mkdir(parents=True)
        stale.touch()
    return folder


@pytest.fixture(scope="module")
def sdist(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("sdist", source, tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    return zipfile.ZipFile(build("wheel", source, tmp_path_factory.mktemp("wheel")))


def contents(wheel: zipfile.ZipFile) -> dict[str, int]:
    """File name to checksum, without the wheel's own list of both."""
    return {
        item.filename: item.CRC
        for item in wheel.infolist()
        if not item.is_dir() and not item.filename.endswith(".dist-info/RECORD")
    }


def test_the_wheel_holds_the_package_and_nothing_beside_it(wheel: zipfile.ZipFile) -> None:
    tops = {name.partition("/")[0] for name in wheel.namelist()}
    (info,) = tops - {"prefmix"}
    assert info.startswith("prefmix-")
    assert info.endswith(".dist-info")
    assert f"{info}/licenses/LICENSE" in wheel.namelist()


def test_the_wheel_holds_every_file_of_the_rooms_and_no_others(wheel: zipfile.ZipFile) -> None:
    """Code, the console's page, the demo's checkpoints and serve.yaml; no tests, nothing stale."""
    own = [name for name in tracked_files("src/prefmix") if Path(name).name not in ROOMS]
    wanted = {f"prefmix/{name}" for name in tracked_files(*ROOMS)}
    wanted |= {name.removeprefix("src/") for name in own}
    assert {"prefmix/py.typed", "prefmix/server/console/page/index.html"} < wanted
    assert {name for name in contents(wheel) if name.startswith("prefmix/")} == wanted


def test_entry_points_name_what_is_in_the_wheel(wheel: zipfile.ZipFile) -> None:
    (listed,) = (name for name in wheel.namelist() if name.endswith("/entry_points.txt"))
    points = configparser.ConfigParser()
    points.read_string(wheel.read(listed).decode())
    assert set(points.sections()) == {
        "console_scripts",
        "vllm.general_plugins",
        "vllm.endpoint_plugins",
    }
    for group in points.sections():
        module, _, name = points[group]["prefmix"].partition(":")
        tree = ast.parse(wheel.read(f"{module.replace('.', '/')}.py"))
        assert name in {getattr(node, "name", None) for node in tree.body}, f"{group}: {module}"


def test_the_sdist_holds_what_a_build_needs_as_plain_files(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        members = archive.getmembers()
    assert all(member.isfile() or member.isdir() for member in members)
    names = [member.name.split("/") for member in members]
    assert {name[1] for name in names if len(name) > 1} == SDIST_ROOT
    assert {name[3] for name in names if name[1:3] == ["src", "prefmix"] and len(name) > 3} >= {
        *ROOMS,
        "py.typed",
    }


def test_a_wheel_from_the_sdist_is_the_same(
    sdist: Path, wheel: zipfile.ZipFile, tmp_path: Path
) -> None:
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    (source,) = (tmp_path / "unpacked").iterdir()
    (tmp_path / "wheel").mkdir()
    with zipfile.ZipFile(build("wheel", source, tmp_path / "wheel")) as again:
        assert contents(again) == contents(wheel)


@pytest.fixture
def without_links(tmp_path: Path) -> Path:
    """The tracked files as pip unpacks a zip archive: links are files with the target as text."""
    folder = tmp_path / "unpacked"
    copy_tracked(folder)
    for room in ROOMS:
        link = folder / "src" / "prefmix" / room
        target = str(link.readlink())
        link.unlink()
        link.write_text(target)
    return folder


def test_a_wheel_from_a_zip_archive_is_the_same(
    without_links: Path, wheel: zipfile.ZipFile, tmp_path: Path
) -> None:
    (tmp_path / "wheel").mkdir()
    with zipfile.ZipFile(build("wheel", without_links, tmp_path / "wheel")) as again:
        assert contents(again) == contents(wheel)


@pytest.mark.parametrize("kind", ["wheel", "sdist", "editable"])
def test_an_incomplete_tree_is_refused_in_one_sentence(
    kind: str, without_links: Path, tmp_path: Path
) -> None:
    shutil.rmtree(without_links / "bench")
    script = f"from setuptools import build_meta as b; b.build_{kind}({str(tmp_path)!r})"
    run = subprocess.run(
        [sys.executable, "-c", script],
        cwd=without_links,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 1
    assert run.stderr == (
        "prefmix: src/prefmix/bench must lead to the folder bench of the repository; "
        "build from a whole clone, an archive of one, or an sdist\n"
    )

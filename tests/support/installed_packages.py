"""A folder with some of the packages that are installed here, as another machine might have."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from support.architecture import ROOT


def needed_by(names: Iterable[str]) -> set[str]:
    """The names of some packages and of all their dependencies, by the metadata installed here."""
    seen = set[str]()
    todo = [Requirement(name) for name in names]
    while todo:
        wanted = todo.pop()
        if str(wanted) in seen:
            continue
        seen.add(str(wanted))
        try:
            requires = importlib.metadata.requires(wanted.name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        for each in map(Requirement, requires):
            places = [
                {"extra": extra, "python_version": python}
                for extra in ("", *wanted.extras)
                for python in ("3.11", "3.14")
            ]
            if each.marker is None or any(map(each.marker.evaluate, places)):
                each.marker = None
                todo.append(each)
    return {canonicalize_name(Requirement(each).name) for each in seen}


def link_packages(names: Iterable[str], folder: Path) -> None:
    """Makes packages that are installed here importable from a folder, with their metadata."""
    for name in names:
        distribution = importlib.metadata.distribution(name)
        tops = {Path(file).parts[0] for file in distribution.files or ()}
        for top in tops - {"..", "__pycache__"}:
            if not (folder / top).exists():
                (folder / top).symlink_to(Path(str(distribution.locate_file(top))))


def light_installation(folder: Path, *extras: str) -> None:
    """Fills a folder with the packages of `pip install prefmix`, with extras or without."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    required = list(project["dependencies"])
    metadata = [f"Requires-Dist: {each}" for each in required]
    for extra, names in project["optional-dependencies"].items():
        metadata += [f'Requires-Dist: {each}; extra == "{extra}"' for each in names]
        required += names if extra in extras else ()
    link_packages(sorted(needed_by(required)), folder)
    version = project["version"]
    info = folder / f"prefmix-{version}.dist-info"
    info.mkdir()
    head = ["Metadata-Version: 2.4", "Name: prefmix", f"Version: {version}"]
    (info / "METADATA").write_text("\n".join([*head, *metadata, ""]))
    (folder / "prefmix").symlink_to(ROOT / "src" / "prefmix")


def run_installed(
    folder: Path, words: Sequence[str], *, cwd: Path
) -> subprocess.CompletedProcess[str]:
    """Runs Python with the packages of a folder and with no others."""
    return subprocess.run(
        [sys.executable, "-S", *words],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        timeout=60,
    )

"""Programs and packages that some tests need and that a developer's machine may lack.

.venv/bin/python tests/support/tools.py     # one line with what is missing and how to add it
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from pathlib import Path
from typing import NoReturn

_CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

_APT = {"chromium": "chromium", "promtool": "prometheus"}
"""Tool -> the package of Debian and Ubuntu that brings it."""

_PIP = ("hadolint", "kubernetes-validate")
"""Tools that deploy/requirements.txt brings."""


def find(tool: str) -> str:
    """The path of a program. If it is missing, the calling test is skipped, or fails in CI."""
    path = _path(tool)
    if path is None:
        miss(tool)
    return path


def miss(tool: str) -> NoReturn:
    """Skips the calling test, or fails it in CI, because a tool is missing."""
    import pytest

    (pytest.fail if os.environ.get("CI") else pytest.skip)(f"no {tool}: {_remedy([tool])}")


def missing() -> str:
    """One line that names the missing tools; empty if none is missing."""
    names = [tool for tool in (*_APT, *_PIP) if not _is_here(tool)]
    if not names:
        return ""
    return (
        f"Tests that need {', '.join(names)} were skipped; to add what is missing: {_remedy(names)}"
    )


def _remedy(names: list[str]) -> str:
    packages = [_APT[name] for name in names if name in _APT]
    ways = [f"apt-get install {' '.join(packages)}"] if packages else []
    if any(name in _PIP for name in names):
        ways.append(".venv/bin/pip install --no-deps -r deploy/requirements.txt")
    return " && ".join(ways)


def _is_here(tool: str) -> bool:
    if tool == "kubernetes-validate":
        return importlib.util.find_spec("kubernetes_validate") is not None
    return _path(tool) is not None


def _path(tool: str) -> str | None:
    if tool == "chromium" and (given := os.environ.get("PREFMIX_BROWSER")):
        return given
    folders = os.pathsep.join((os.environ.get("PATH", ""), str(Path(sys.executable).parent)))
    names = _CHROMIUM if tool == "chromium" else (tool,)
    return next((path for name in names if (path := shutil.which(name, path=folders))), None)


if __name__ == "__main__":
    if line := missing():
        print(line)

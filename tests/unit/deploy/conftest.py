"""Programs and packages that a developer's machine may lack, but CI's may not."""

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def miss() -> Callable[[str], None]:
    """What a test calls that cannot be made here: a failure in CI, else a skip, with the reason."""
    return pytest.fail if os.environ.get("CI") else pytest.skip


@pytest.fixture
def program(miss: Callable[[str], None]) -> Callable[[str, str], str]:
    """Where a program is: `program(name, remedy)`."""

    def find(name: str, remedy: str) -> str:
        folders = (os.environ.get("PATH", ""), str(Path(sys.executable).parent))
        path = shutil.which(name, path=os.pathsep.join(folders))
        if path is None:
            miss(f"{name} is not installed; {remedy}")
        assert path is not None
        return path

    return find

"""A user's files with the names of our rooms stay apart from the rooms."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.architecture import ROOMS, ROOT

WAYS = {
    "script": [str(Path(sys.executable).with_name("prefmix"))],
    "module": [sys.executable, "-m", "prefmix"],
}
"""The script's `sys.path` begins with its own folder, the module's with the working directory."""

REWARD = "def mine(prompts, completions):\n    return [0.0]\n"


@pytest.fixture(params=[None, "."], ids=["", "PYTHONPATH=."])
def pythonpath(request: pytest.FixtureRequest) -> str | None:
    """The PYTHONPATH of every process: none, or the working directory."""
    value: str | None = request.param
    return value


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A user's folder: server.py, weights.py, three packages, and a clone named prefmix."""
    (tmp_path / "server.py").write_text("raise RuntimeError('not to be imported')\n")
    (tmp_path / "weights.py").write_text(REWARD)
    for room in set(ROOMS) - {"server", "weights"}:
        (tmp_path / room).mkdir()
        (tmp_path / room / "__init__.py").write_text("raise RuntimeError('not to be imported')\n")
    for room in ROOMS:
        module = tmp_path / "prefmix" / room / "__init__.py"
        module.parent.mkdir(parents=True)
        module.write_text("raise RuntimeError('not to be imported')\n")
    return tmp_path


def run(words: list[str], folder: Path, pythonpath: str | None) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    if pythonpath is not None:
        environment["PYTHONPATH"] = pythonpath
    return subprocess.run(
        words, cwd=folder, env=environment, capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_the_command_is_ours(way: list[str], folder: Path, pythonpath: str | None) -> None:
    shown = run([*way, "--help"], folder, pythonpath)
    assert shown.returncode == 0, shown.stderr
    assert "serve" in shown.stdout
    refused = run([*way, "serve", "--polcy", "a=b"], folder, pythonpath)
    assert refused.returncode == 2
    assert "did you mean '--policy'" in refused.stderr


def test_every_room_is_ours(folder: Path, pythonpath: str | None) -> None:
    modules = ", ".join(f"prefmix.{room}" for room in ROOMS)
    script = f"import prefmix, {modules}; print(prefmix.__file__)"
    imported = run([sys.executable, "-c", script], folder, pythonpath)
    assert imported.returncode == 0, imported.stderr
    assert imported.stdout.strip() == str(ROOT / "src" / "prefmix" / "__init__.py")


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_rewards_are_theirs(way: list[str], folder: Path, pythonpath: str | None) -> None:
    """The rewards are loaded first; a prompts file that is missing is what fails next."""
    words = [*way, "eval", "--server", "http://127.0.0.1:9", "--prompts", "missing.jsonl"]
    found = run([*words, "--reward", "short=weights:mine"], folder, pythonpath)
    assert found.returncode == 1
    assert found.stderr.startswith("prefmix: error: missing.jsonl: cannot be read")
    absent = run([*words, "--reward", "short=weights:yours"], folder, pythonpath)
    assert "module 'weights' has no attribute 'yours'" in absent.stderr

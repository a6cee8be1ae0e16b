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
    assert "(weights has no 'yours')" in absent.stderr


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_packages_are_not_looked_for_in_the_working_directory(
    way: list[str], tmp_path: Path
) -> None:
    """Files with the names of packages that prefmix needs, beside a script of the user's."""
    for name in ("yaml", "pydantic", "numpy", "vllm", "torch"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('not to be imported')\n")
    (tmp_path / "serve.yaml").write_text("policies: {a: ./missing}\n")
    refused = run([*way, "serve", "serve.yaml"], tmp_path, None)
    assert refused.returncode == 2
    assert refused.stderr.startswith("prefmix: error: serve.yaml: a: ")


def test_a_users_file_that_hides_vllm_is_named(tmp_path: Path) -> None:
    """A script's own folder comes first, and nothing in it is left out."""
    (tmp_path / "vllm.py").touch()
    (tmp_path / "mine.py").write_text(
        "import prefmix\nprefmix.Mixture(policies={'a': 'org/a', 'b': 'org/b'})\n"
    )
    failed = run([sys.executable, "mine.py"], tmp_path, None)
    assert failed.returncode == 1
    assert failed.stderr.splitlines()[-1].endswith(
        f"InstallationError: {tmp_path}/vllm.py is imported in place of the package vllm: rename "
        "it, or keep its folder out of PYTHONPATH and of the script's folder"
    )

"""The completion scripts offer what the parsers take."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from prefmix.server.cli.main import main
from prefmix.server.cli.shell.commands import COMMANDS
from prefmix.server.cli.shell.completion import SHELLS, script

DRIVER = """
source "$1"
shift
COMP_WORDS=("$@")
COMP_CWORD=$(($# - 1))
_prefmix
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def bash_script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("completion") / "prefmix.bash"
    path.write_text(script("bash"))
    return path


def complete(path: Path, *words: str, folder: Path | None = None) -> list[str]:
    run = subprocess.run(
        ["bash", "--norc", "-c", DRIVER, "bash", str(path), "prefmix", *words],
        capture_output=True,
        text=True,
        timeout=30,
        cwd=folder or path.parent,
    )
    assert (run.returncode, run.stderr) == (0, "")
    return run.stdout.split()


def test_commands_and_their_actions_are_offered(bash_script: Path) -> None:
    names = [command.name for command in COMMANDS]
    assert set(names) < set(complete(bash_script, ""))
    assert complete(bash_script, "wei") == ["weights"]
    assert complete(bash_script, "weights", "ro") == ["rollback"]
    assert complete(bash_script, "help", "ser") == ["serve"]
    assert set(names) == set(complete(bash_script, "help", ""))
    assert complete(bash_script, "bench", "mixed") == ["mixed-batch"]


def test_flags_and_their_values_are_offered(bash_script: Path) -> None:
    assert complete(bash_script, "serve", "--admin") == ["--admin-port"]
    assert complete(bash_script, "serve", "--port", "8001", "--admin") == ["--admin-port"]
    assert complete(bash_script, "serve", "--weight-space", "") == ["simplex", "affine"]
    assert complete(bash_script, "serve", "--weight-space", "=") == ["simplex", "affine"]
    assert complete(bash_script, "serve", "--weight-space", "=", "af") == ["affine"]
    joined = "--weight-space=affine"  # one word to zsh
    assert complete(bash_script, "serve", "--weight-space=af") == [joined]
    assert complete(bash_script, "serve", "--weight-space=") == ["--weight-space=simplex", joined]
    assert "--if-match" in complete(bash_script, "weights", "set", "--")
    assert "--if-match" not in complete(bash_script, "weights", "show", "--")
    assert complete(bash_script, "completion", "z") == ["zsh"]


def test_flags_of_vllm_come_behind_two_dashes(bash_script: Path) -> None:
    assert complete(bash_script, "serve", "a.yaml", "--max-model") == []
    assert "--max-model-len" in complete(bash_script, "serve", "a.yaml", "--", "--max-model")
    assert complete(bash_script, "weights", "show", "--", "--max-model") == []
    refused = complete(bash_script, "serve", "--", "--grpc")
    assert refused == [], "a flag that is refused"


def test_files_are_offered_where_a_word_may_be_one(bash_script: Path, tmp_path: Path) -> None:
    (tmp_path / "mixture.yaml").touch()
    assert complete(bash_script, "serve", "mix", folder=tmp_path) == ["mixture.yaml"]
    words = ("serve", "--weights-store", "mix")
    assert complete(bash_script, *words, folder=tmp_path) == ["mixture.yaml"]
    joined = complete(bash_script, "serve", "--weights-store=mix", folder=tmp_path)
    assert joined == ["--weights-store=mixture.yaml"]
    assert complete(bash_script, "mix", folder=tmp_path) == []


@pytest.mark.parametrize("shell", SHELLS)
def test_each_script_is_printed_and_read_by_its_shell(
    shell: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["completion", shell]) == 0
    text = capsys.readouterr().out
    for command in COMMANDS:
        assert command.name in text
    assert "--weights-store" in text or "-l weights-store" in text
    if (program := shutil.which(shell)) is not None:
        (tmp_path / "script").write_text(text)
        run = subprocess.run([program, "-n", str(tmp_path / "script")], capture_output=True)
        assert run.returncode == 0, run.stderr


def test_another_shell_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "tcsh"]) == 2
    assert "'bash', 'zsh', 'fish'" in capsys.readouterr().err


def test_the_line_of_the_page_works_in_bash() -> None:
    line = 'eval "$(prefmix completion bash)"'
    page = Path(__file__).resolve().parents[5] / "docs" / "installing.md"
    assert f"    {line}" in page.read_text(encoding="utf-8")
    run = subprocess.run(
        ["bash", "--norc", "-c", f"{line}; complete -p prefmix"],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.endswith("-F _prefmix prefmix\n")


def test_files_are_offered_only_where_a_file_may_stand(bash_script: Path, tmp_path: Path) -> None:
    """A clone has folders whose names are those of commands or begin alike."""
    for name in ("weights", "server"):
        (tmp_path / name).mkdir()
    assert complete(bash_script, "weights", "se", folder=tmp_path) == ["set"]
    shells = complete(bash_script, "completion", "", folder=tmp_path)
    assert shells == ["bash", "zsh", "fish", "-h", "--help"]
    assert "server" in complete(bash_script, "serve", "", folder=tmp_path)
    assert "-o filenames" not in script("bash").splitlines()[-1], "commands would end in a slash"

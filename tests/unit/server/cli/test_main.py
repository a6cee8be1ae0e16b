"""The command line without an engine: help, versions, and errors that end it at once."""

from __future__ import annotations

import contextlib
import errno
import importlib.metadata
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from prefmix.server.cli.main import COMMANDS, main, split_passthrough

PREFMIX = Path(sys.executable).with_name("prefmix")


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "serve" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["help"], ["help", "serve"]])
def test_help_is_a_command_too(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with contextlib.suppress(SystemExit):
        main([*words[1:], "--help"])
    wanted = capsys.readouterr().out
    with contextlib.suppress(SystemExit):
        main(words)
    assert capsys.readouterr().out == wanted
    assert "usage: prefmix" in wanted


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["weights"], "required: ACTION; ACTION is one of: show, set, delete, "),
        (["train"], "required: METHOD; METHOD is one of: dpo, maximum-preference, "),
        (["fit"], "required: --output; 'prefmix fit --help' explains them"),
    ],
)
def test_words_that_are_missing_are_told_with_what_they_may_be(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    assert told in capsys.readouterr().err


def test_a_reader_that_stops_early_sees_no_traceback() -> None:
    """As in `prefmix --help | head -1`; a pipe whose reading end is closed from the start."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        run = subprocess.run(
            [str(PREFMIX), "--help"], stdout=writer, stderr=subprocess.PIPE, timeout=60
        )
    finally:
        os.close(writer)
    assert (run.returncode, run.stderr) == (141, b"")


@pytest.mark.parametrize("words", [["--help"], ["serve", "--help"], ["--version"]])
@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["", "unbuffered"])
def test_a_full_disk_under_the_output_is_one_sentence(words: list[str], unbuffered: str) -> None:
    with open("/dev/full", "w") as full:
        run = subprocess.run(
            [str(PREFMIX), *words],
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
        )
    assert run.returncode == 1
    assert run.stderr == (
        "prefmix: error: the output or a file cannot be written: No space left on device\n"
    )


@pytest.mark.parametrize("words", [["--version"], ["serve", "--help"]])
def test_closed_standard_streams_are_no_errors(words: list[str]) -> None:
    run = subprocess.run(
        ["sh", "-c", 'exec "$0" "$@" <&- >&-', str(PREFMIX), *words],
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
    )
    assert (run.returncode, run.stderr) == (0, "")


def test_files_and_children_never_get_a_closed_standard_stream() -> None:
    """Text for a closed descriptor would land in the file that gets its number."""
    script = """
import os, subprocess, sys
from prefmix.server.cli.shell.standard_streams import prepare_streams
prepare_streams()
print("lost")
subprocess.run(["echo", "lost"], check=True)
opened = os.open("/", os.O_RDONLY)
assert opened > 2, opened
assert sys.stdin.read() == ""
"""
    run = subprocess.run(
        ["sh", "-c", 'exec "$0" -c "$1" <&- >&-', sys.executable, script],
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
    )
    assert (run.returncode, run.stderr) == (0, "")


def test_names_that_the_outputs_encoding_lacks_are_printed_escaped(tmp_path: Path) -> None:
    store = tmp_path / "日.json"
    store.write_text(
        '{"format": 1, "version": 1, "policies": ["a"], "default_profile": "d", '
        '"profiles": {"d": {"weights": {"a": 1.0}}}}'
    )
    run = subprocess.run(
        [str(PREFMIX), "weights", "show", "--weights-store", str(store)],
        env={**os.environ, "PYTHONIOENCODING": "latin-1"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert r"\u65e5.json, version 1" in run.stdout


def test_a_folder_without_rights_and_a_folder_that_is_gone_are_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "some/file")

    monkeypatch.setattr("prefmix.server.cli.serve.run", refuse)
    assert main(["serve"]) == 1
    assert capsys.readouterr().err == "prefmix: error: some/file: Permission denied\n"
    monkeypatch.undo()
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert main(["serve", "--policy", "a=./a"]) == 1
    assert "the working directory no longer exists" in capsys.readouterr().err


def test_other_errors_of_the_operating_system_keep_their_traceback(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object) -> int:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "ours")

    monkeypatch.setattr("prefmix.server.cli.serve.run", fail)
    with pytest.raises(FileNotFoundError):
        main(["serve"])


def test_commands_are_listed_in_columns(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    rows = re.findall(r"^  ([a-z]+ +)(.*)$", capsys.readouterr().out, flags=re.M)
    assert [name.strip() for name, _ in rows] == [command.name for command in COMMANDS]
    assert len({len(name) for name, _ in rows}) == 1
    assert all(name.endswith("  ") for name, _ in rows)


def test_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == f"prefmix {importlib.metadata.version('prefmix')}"


def test_help_of_a_command_does_not_wait_for_the_engine() -> None:
    """-X importtime names on stderr every module that was imported."""
    run = subprocess.run(
        [sys.executable, "-X", "importtime", str(PREFMIX), "serve", "--help"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode == 0
    assert "--policy NAME=MODEL" in run.stdout
    imported = {line.rpartition("|")[2].strip() for line in run.stderr.splitlines()}
    assert "prefmix.server.cli.main" in imported
    assert not {"torch", "transformers", "vllm"} & imported


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["srve"], ["'srve'", "did you mean 'serve'"]),
        (
            ["serve", "x.yaml", "--max-model-len", "2048"],
            ["'--max-model-len' is a flag of vLLM", "prefmix serve ... -- --max-model-len 2048"],
        ),
        (
            ["serve", "--max-model-len", "2048", "x.yaml"],
            ["'--max-model-len' is a flag of vLLM", "prefmix serve ... -- --max-model-len 2048"],
        ),
        (
            ["serve", "--enforce-eager", "x.yaml"],
            ["'--enforce-eager' is a flag of vLLM", "prefmix serve ... -- --enforce-eager\n"],
        ),
        (
            ["fit", "--scores=x", "--output=y", "--no-enable-prefix-caching"],
            ["flag of vLLM", "prefmix fit ... -- --no-enable"],
        ),
        (["serve", "--polcy", "a=b"], ["'--polcy'", "did you mean '--policy'", "after '--'"]),
        (["serve", "--max-model-len", "5"], ["'--max-model-len'", "after '--'"]),
        (["serve", "a.yaml", "b.yaml"], ["'b.yaml'"]),
        (
            ["weights", "set", "p", "a=1", "--if-mach", "3"],
            ["'--if-mach'", "did you mean '--if-match'", "'prefmix weights set --help'"],
        ),
        (["train", "dpo", "--lora-rnk", "3"], ["'--lora-rank'", "'prefmix train dpo --help'"]),
        (["serve", "--polic=a=b"], ["'--polic'"]),
        (["serve", "--port", "http"], ["--port", "'http'", "1 to 65535"]),
        (["serve", "--port", "0"], ["--port", "'0'"]),
        (["serve", "--request-timeout", "long"], ["--request-timeout", "'long'", "or none"]),
        (["serve", "--policy", "a=x/y", "--allowed-host", "a:1"], ["allowed_hosts", "'a:1'"]),
        (["serve", "--policy", "a=x/y", "--trusted-proxy", "x"], ["trusted_proxies", "'x'"]),
        (["serve", "--weight-space", "cone"], ["--weight-space", "cone", "affine"]),
        (["serve", "--policy"], ["--policy"]),
        (["serve", "--policy", "a"], ["--policy", "'a'", "NAME=MODEL"]),
        (["serve", "--policy", "a=./missing"], ["--policy a", "missing", "does not exist"]),
        (["serve", "--policy", "a=x/y", "--policy", "a=x/z"], ["--policy", "'a'", "twice"]),
        (["serve", "--policy", "a=x/y", "--reference", "a=x/z"], ["'a'", "own name"]),
        (["serve", "missing.yaml"], ["missing.yaml", "does not exist"]),
        (["serve"], ["at least one policy"]),
    ],
)
def test_wrong_usage_is_one_sentence_and_exit_code_2(
    words: list[str], parts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("prefmix: error: ")
    assert captured.err.count("\n") == 1
    assert [part for part in parts if part not in captured.err] == [], captured.err


def test_a_port_in_use_is_reported_before_anything_is_loaded() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        run = subprocess.run(
            [str(PREFMIX), "serve", "--policy", "a=org/a", "--port", str(port)],
            capture_output=True,
            text=True,
            timeout=30,
        )
    assert run.returncode == 1
    assert run.stderr == (
        f"prefmix: error: port {port} on 127.0.0.1 is in use; stop what listens there or choose "
        "another with --port\n"
    )


def test_an_address_of_another_machine_is_reported() -> None:
    run = subprocess.run(
        [str(PREFMIX), "serve", "--policy", "a=org/a", "--host", "192.0.2.1"],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert run.returncode == 1
    assert "cannot listen on 192.0.2.1 port 8000" in run.stderr
    assert "Traceback" not in run.stderr


def test_an_unknown_log_level_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PREFMIX_LOG_LEVEL", "loud")
    assert main(["serve", "--policy", "a=org/a"]) == 2
    assert "PREFMIX_LOG_LEVEL is 'loud'; allowed: warning, info, debug" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "own", "passed"),
    [
        ([], [], []),
        (["a", "--b"], ["a", "--b"], []),
        (["a", "--", "--b", "--", "c"], ["a"], ["--b", "--", "c"]),
        (["--"], [], []),
    ],
)
def test_everything_after_the_first_dashes_is_passed_on(
    words: list[str], own: list[str], passed: list[str]
) -> None:
    assert split_passthrough(words) == (own, passed)

"""Each command's help has examples that its own parser takes."""

from __future__ import annotations

import contextlib
import re
import shlex
from pathlib import Path

import pytest

from prefmix.server.cli.main import main
from prefmix.server.cli.shell.commands import COMMANDS, parser_of, split_passthrough
from prefmix.server.cli.shell.manual import MANUALS
from prefmix.server.cli.shell.pager import paged
from prefmix.server.config.serve_config import ServeConfig

ROOT = Path(__file__).resolve().parents[5]


def test_every_command_has_its_sections() -> None:
    assert MANUALS.keys() == {command.name for command in COMMANDS}


@pytest.mark.parametrize("name", MANUALS)
def test_help_of_a_command_is_a_page(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with contextlib.suppress(SystemExit):
        main(["help", name])
    page = capsys.readouterr().out
    for title in ("usage: prefmix " + name, "examples:", "exit status:"):
        assert title in page
    for what, command in MANUALS[name].examples:
        assert f"  # {what}\n  {command}\n" in page


@pytest.mark.parametrize("name", MANUALS)
def test_examples_are_taken_by_the_parser(name: str) -> None:
    for _, command in MANUALS[name].examples:
        text = re.sub(r'^eval "\$\((.*)\)"$', r"\1", command).partition(" | ")[0]
        words = shlex.split(text)
        assert words[0] == "prefmix"
        (own_command,) = [each for each in COMMANDS if each.name == words[1]]
        own, passthrough = split_passthrough(words[2:])
        _, unknown = parser_of(own_command).parse_known_args(own)
        assert unknown == []
        assert own_command.takes_engine_flags or not passthrough


def test_the_manual_of_serve_lists_the_keys_of_its_file(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Errors about an unknown key send the reader here."""
    with contextlib.suppress(SystemExit):
        main(["help", "serve"])
    page = " ".join(capsys.readouterr().out.split())
    listed = page.partition(" CONFIG.yaml keys: ")[2].partition(" weights.json ")[0]
    keys = set(re.findall(r"[a-z_]+", listed))
    missing = [
        key
        for key in ServeConfig.model_fields
        if key not in keys and f" --{key.replace('_', '-')} " not in page
    ]
    assert missing == []


@pytest.mark.parametrize("name", MANUALS)
@pytest.mark.parametrize("columns", [50, 80, 120])
def test_help_fits_the_terminal(
    name: str, columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All but commands, which are copied."""
    monkeypatch.setenv("COLUMNS", str(columns))
    with contextlib.suppress(SystemExit):
        main(["help", name])
    page = capsys.readouterr().out
    (command,) = [each for each in COMMANDS if each.name == name]
    first_words = " ".join((parser_of(command).epilog or "").splitlines()[0].split()[:2])
    behind_flags = page[page.index(f"\n{first_words}") :]
    long = [line for line in behind_flags.splitlines() if len(line) > columns]
    is_copied = re.compile(r"(Example:)? *((prefmix|--\w+|eval|vllm) |# |$)")
    assert [line for line in long if not is_copied.match(line)] == []
    assert max(map(len, page.partition("\nexit status:\n")[2].splitlines())) <= 100
    words = " ".join(page.split())
    for row in (*MANUALS[name].environment, *MANUALS[name].files, *MANUALS[name].exit_codes):
        assert " ".join(row) in words
    for what, example in MANUALS[name].examples:
        assert f"  # {what}\n  {example}\n" in page


def test_see_also_names_what_exists() -> None:
    names = {f"prefmix {command.name}" for command in COMMANDS}
    for manual in MANUALS.values():
        for each in manual.see_also:
            assert each in names or (ROOT / each).is_file(), each


def test_an_action_has_help_too(capsys: pytest.CaptureFixture[str]) -> None:
    with contextlib.suppress(SystemExit):
        main(["help", "weights", "apply"])
    assert "usage: prefmix weights apply" in capsys.readouterr().out


def test_help_on_a_terminal_is_paged(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setattr("pydoc.pager", shown.append)
    with paged():
        print("a page")
    assert shown == ["a page\n"]

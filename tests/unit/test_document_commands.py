"""Each command in the documents is run, or parsed by the parser that would run it."""

from __future__ import annotations

import argparse
import importlib.util
import re
from pathlib import Path

import pytest

from prefmix.server.cli.shell.commands import (
    COMMANDS,
    Command,
    parser_of,
    split_passthrough,
)
from prefmix.server.launch.engine_flags import is_engine_flag
from support.pages.commands import PAGES, ROOT, Block, blocks, is_command, words_of
from support.pages.journey import PARSED, RUN, RUN_PROMPTS, command_blocks, named

BLOCKS = command_blocks()


def test_every_block_of_commands_is_run_or_is_parsed_for_a_reason() -> None:
    of_block = {
        id(block): [
            name
            for name in (*RUN, *RUN_PROMPTS, *PARSED)
            if block.page == name[0] and block.first.startswith(name[1])
        ]
        for block in BLOCKS
    }
    homeless = [(block.page, block.first) for block in BLOCKS if not of_block[id(block)]]
    assert homeless == [], "add them to RUN or PARSED of tests/support/pages/journey.py"
    stale = [name for name in (*RUN, *RUN_PROMPTS, *PARSED) if not named(name)]
    assert stale == []
    assert [name for name in RUN if len(named(name)) != 1] == []
    assert len(BLOCKS) > 30
    assert {block.page for block in BLOCKS} >= {"README.md", "docs/profiles.md", "docs/fitting.md"}


def test_blocks_are_read_as_a_shell_reads_them(tmp_path: Path) -> None:
    page = ROOT / "docs" / "operations.md"
    found = [block for block in blocks(page) if is_command(block)]
    assert found == [], "a page without commands"
    block = Block("x.md", "# a comment\nA=1 curl -d '{\n  \"a\": 1}' x  # why\ncat <<'END'\nb\nEND")
    assert block.first.startswith("A=1 curl")
    assert [words_of(command)[0] for command in block.commands] == ["curl", "cat"]
    assert words_of(block.commands[0]) == ["curl", "-d", '{\n  "a": 1}', "x"]
    assert words_of("make x && make y") == ["make", "x"]


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: f"{block.page}-{block.first[:40]}")
def test_commands_are_understood_by_what_would_run_them(block: Block) -> None:
    for command in block.commands:
        # `for ...; do` has its commands on lines of their own.
        for line in command.splitlines() if command.startswith("for ") else [command]:
            words = words_of(line)
            if not words:
                continue
            if words[0] == "prefmix":
                _check_prefmix(words[1:])
            elif words[0] == "make":
                assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), flags=re.M)
            elif words[0].startswith("python"):
                _check_python(words[1:])


def _check_prefmix(words: list[str]) -> None:
    (command,) = [each for each in COMMANDS if each.name == words[0]]
    own, passthrough = split_passthrough(words[1:])
    _, unknown = parser_of(command).parse_known_args(own)
    assert unknown == []
    for word in passthrough:
        assert not word.startswith("-") or is_engine_flag(word.split("=")[0]), word
    assert command.takes_engine_flags or not passthrough
    for word in own:  # files of the clone, which a user's own may stand beside
        if word.startswith(("policies/", "examples/", "deploy/")):
            assert (ROOT / word).exists(), word


def _check_python(words: list[str]) -> None:
    if words[0] == "-m":
        assert words[1] in ("venv", "pytest") or importlib.util.find_spec(words[1])
    elif words[0] == "install.py":  # of the kit, which has it by this name
        assert (ROOT / "scripts" / "gpu_kit_install.py").is_file()
    elif words[0] != "-c":
        assert (ROOT / words[0]).is_file()
    for word in words[2:]:
        assert not word.startswith("tests/") or (ROOT / word).exists()


def test_pages_have_no_prompt_before_commands() -> None:
    """A line that begins with `$ ` would not run when it is pasted."""
    for page in PAGES:
        for block in blocks(page):
            if is_command(block):
                assert not any(line.startswith("$ ") for line in block.text.splitlines()), page


def flags_of(parser: argparse.ArgumentParser) -> set[str]:
    flags: set[str] = set()
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            flags |= set().union(*map(flags_of, action.choices.values()))
        flags |= {flag for flag in action.option_strings if flag != "-h"}
    return flags


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_every_flag_is_in_a_document(command: Command) -> None:
    """A page that leaves some to `prefmix COMMAND --help` says so."""
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    if re.search(rf"`prefmix {command.name}( [A-Z]+)? --help` lists the (other )?settings", text):
        return
    flags = {flag.replace("--no-", "--") for flag in flags_of(parser_of(command))}
    named = {flag.replace("--no-", "--") for flag in re.findall(r"(?<![\w-])--[a-z][\w-]+", text)}
    assert sorted(flags - named) == []

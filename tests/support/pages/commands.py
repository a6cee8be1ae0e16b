"""The commands that the documents print, read as a shell would read them.

A block is text indented by four spaces, or between fences without a language. It is one of commands
if any of its lines begins with a program of PROGRAMS.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])

PROGRAMS = {
    *(
        "apt-get",
        "cat",
        "cd",
        "curl",
        "docker",
        "eval",
        "export",
        "for",
        "git",
        "grep",
        "guidellm",
        "helm",
    ),
    *("kill", "kubectl", "make", "openssl", "pip", "prefmix", "printf", "python", "python3", "ray"),
    *("systemctl", "tmux", "uv", "."),
}
_ASSIGNMENT = re.compile(r"[A-Z][A-Z0-9_]*=")
_HEREDOC = re.compile(r"<<'(\w+)'")
_FENCE = re.compile(r"^ {0,3}```(\w*)")


@dataclass(frozen=True)
class Block:
    """One block of a page, without its indentation."""

    page: str
    """Path from the repository's root."""
    text: str

    @property
    def first(self) -> str:
        """The first line that is no comment, by which tables name a block."""
        lines = [line for line in self.text.splitlines() if not line.startswith("#")]
        return lines[0]

    @property
    def commands(self) -> list[str]:
        """The commands, each with all its lines; comments and lines of nothing else left out."""
        return list(_commands(self.text))


def blocks(page: Path) -> list[Block]:
    """The blocks of one page that may be commands."""
    found: list[list[str]] = [[]]
    fence: str | None = None
    was_text = False
    for line in page.read_text(encoding="utf-8").splitlines():
        if opened := _FENCE.match(line):
            fence = opened[1] if fence is None else None
            found.append([])
        elif fence is not None:
            if fence in ("", "sh", "bash", "console"):
                found[-1].append(line)
        elif line.startswith("    ") and not was_text:
            found[-1].append(line[4:])
        elif line.strip():
            found.append([])
            was_text = True
            continue
        elif found[-1]:
            found[-1].append("")
        was_text = False
    name = str(page.relative_to(ROOT))
    return [Block(name, text) for each in found if (text := "\n".join(each).strip("\n"))]


def is_command(block: Block) -> bool:
    """True if a line of the block begins with a program, after its assignments."""
    return any(_program(line) in PROGRAMS for line in block.text.splitlines())


def _program(line: str) -> str:
    words = line.split()
    while words and _ASSIGNMENT.match(words[0]):
        words.pop(0)
    return words[0].removeprefix(".venv/bin/") if words else ""


def words_of(command: str) -> list[str]:
    """A command's words, without assignments before it; `.venv/bin/` is left out.

    Of a pipeline or list only the part up to the first `|`, `&&`, `;` or `&`.
    """
    lexer = shlex.shlex(command.replace("\\\n", " "), posix=True, punctuation_chars="|&;")
    lexer.whitespace_split = True
    words: list[str] = []
    for word in lexer:
        if set(word) <= set("|&;"):
            break
        words.append(word)
    while words and _ASSIGNMENT.match(words[0]):
        words.pop(0)
    return [words[0].removeprefix(".venv/bin/"), *words[1:]] if words else []


def _commands(text: str) -> Iterator[str]:
    lines = iter(text.splitlines())
    for line in lines:
        command = line
        while not _is_whole(command):
            command += "\n" + next(lines)
        if (here := _HEREDOC.search(command)) is not None:
            for more in lines:
                command += "\n" + more
                if more == here[1]:
                    break
        if command.strip() and not command.lstrip().startswith("#"):
            yield command


def _is_whole(command: str) -> bool:
    """False if the next line belongs to the command: an open quote, or a backslash at the end."""
    try:
        shlex.split(command, comments=True)
    except ValueError:
        return False
    if command.startswith("for "):
        return command.rstrip().endswith("done")
    return not command.endswith("\\")

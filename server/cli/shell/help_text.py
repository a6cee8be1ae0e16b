"""Help that fits the terminal: prose is wrapped, and commands stay on one line, to be copied."""

from __future__ import annotations

import argparse
import re
import textwrap

_MOST_CHARS = 100
"""Longer lines of prose are hard to read."""

_LEAST_CHARS = 20
"""A narrower column is not worth its indentation."""

# A line of an example: a command, the comment above it, or what continues it.
_COMMAND = re.compile(r"\s*(#|(?!.*, )prefmix |vllm |eval )|Example: |.*\\$")
_MEANING = re.compile(r"( *\S+(?: \S+)*  +| {3,})(?=\S)")
"""The name that a meaning explains, or nothing, with the spaces up to the meaning."""


class HelpFormatter(argparse.HelpFormatter):
    """Keeps the lines of descriptions and epilogs, and wraps those that are too long."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        width = min(width, _MOST_CHARS)
        blocks = text.split("\n\n")
        return "\n\n".join(_filled(block.split("\n"), width, indent) for block in blocks)


def _filled(lines: list[str], width: int, indent: str) -> str:
    done: list[str] = []
    prose: list[str] = []
    for index, line in enumerate(lines):
        is_kept = _COMMAND.match(line) or (index and lines[index - 1].endswith("\\"))
        if not is_kept and not line.startswith(" ") and not line.endswith(":"):
            prose.append(line)
            continue
        done += _wrapped(prose, width, indent)
        prose = []
        done += [indent + line] if is_kept else _hanging(line, width, indent)
    return "\n".join([*done, *_wrapped(prose, width, indent)])


def _wrapped(prose: list[str], width: int, indent: str) -> list[str]:
    if all(len(indent + line) <= width for line in prose):
        return [indent + line for line in prose]
    return textwrap.wrap(
        " ".join(prose),
        width,
        initial_indent=indent,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _hanging(line: str, width: int, indent: str) -> list[str]:
    """A line of a section; what does not fit stands below the column of its meaning."""
    found = _MEANING.match(line)
    column = 4 if found is None or len(found[1]) > width - _LEAST_CHARS else len(found[1])
    return textwrap.wrap(
        line,
        width,
        initial_indent=indent,
        subsequent_indent=indent + " " * column,
        break_long_words=False,
        break_on_hyphens=False,
        replace_whitespace=False,
    )

"""Prints the tables of docs/engine-flags.md: what each of vLLM's flags means for a mixture.

PYTHONPATH=tests .venv/bin/python -m support.pages.flags_page
"""

from __future__ import annotations

from prefmix.server.launch import engine_args
from prefmix.server.launch.mixture_flags import HONOURED, IDLE, LIMITED, REFUSED

BEGIN = "<!-- made by tests/support/pages/flags_page.py -->"


def flags_page() -> str:
    """The tables and lists as Markdown, from `BEGIN` to the end of the page."""

    def table(reasons: dict[str, str]) -> list[str]:
        rows = [f"| `{_flag(name)}` | {reasons[name]} |" for name in sorted(reasons)]
        return ["", "| flag | |", "|---|---|", *rows, ""]

    def names(flags: frozenset[str]) -> list[str]:
        return ["", *_filled([f"`{_flag(name)}`" for name in sorted(flags)]), ""]

    return "\n".join(
        [
            BEGIN,
            "",
            "## Set by prefmix",
            *table(engine_args._OWNED),
            "## Refused",
            *table(REFUSED),
            "## Taken within limits",
            *table(LIMITED),
            "## Without effect",
            "",
            "They belong to what no mixture has: images, state-space layers, vLLM's own LoRA, "
            "drafts, ranks",
            "that exchange experts.",
            *names(IDLE),
            "## Honoured",
            "",
            "They do for a mixture what they do for a model.",
            *names(HONOURED),
        ]
    )


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _filled(words: list[str], *, width: int = 100) -> list[str]:
    lines = [""]
    for word in words:
        if lines[-1] and len(lines[-1]) + len(word) + 1 > width:
            lines.append("")
        lines[-1] += f" {word}" if lines[-1] else word
    return lines


if __name__ == "__main__":
    print(flags_page(), end="")

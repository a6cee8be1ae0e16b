"""A run's figures: an aligned table for people, one line of JSON for the records."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "results"


def run_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser of the flags that all runs share. Args: description: the module's docstring."""
    parser = argparse.ArgumentParser(description=description, allow_abbrev=False)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--record", action="store_true", help="add the line to results/")
    return parser


def table(rows: Sequence[Sequence[object]]) -> str:
    """Rows as aligned columns: words to the left, numbers to the right."""
    texts = [[_text(value) for value in row] for row in rows]
    widths = [max(len(row[at]) for row in texts) for at in range(len(texts[0]))]
    return "\n".join(
        "  ".join(
            text.rjust(width) if isinstance(value, int | float) or (at and not index) else
            text.ljust(width)
            for at, (text, value, width) in enumerate(zip(line, row, widths, strict=True))
        ).rstrip()
        for index, (line, row) in enumerate(zip(texts, rows, strict=True))
    )  # fmt: skip


def publish(name: str, text: str, figures: Mapping[str, Any], *, record: bool) -> None:
    """Prints a table and its line of JSON; `record` also adds the line to the results."""
    line = json.dumps({"run": name, **_circumstances(), **figures})
    print(text)
    print(line)
    if record:
        RESULTS.mkdir(exist_ok=True)
        with (RESULTS / f"{name}.jsonl").open("a") as file:
            file.write(line + "\n")


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.2f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _circumstances() -> dict[str, Any]:
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": " ".join(Path(word).name if "/" in word else word for word in sys.argv),
        "commit": commit,
        "cores": os.cpu_count(),
        "load_average_1min": round(os.getloadavg()[0], 2),
    }

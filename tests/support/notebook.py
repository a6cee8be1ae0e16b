"""Runs a notebook's cells with plain Python, and keeps what they printed and drew in the file.

    .venv/bin/python tests/support/notebook.py examples/mixing.ipynb

Jupyter is no package of this project: a cell is compiled as it is, without line magics.
"""

from __future__ import annotations

import ast
import base64
import contextlib
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

DPI = 60
"""The resolution of the figures: enough to read, and a few kilobytes."""


def code_cells(notebook: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The cells to run, in order."""
    return (cell for cell in notebook["cells"] if cell["cell_type"] == "code")


def run_cells(notebook: dict[str, Any], *, where: str) -> dict[str, Any]:
    """Runs every code cell in one namespace, which is returned; puts the outputs in the cells."""
    names: dict[str, Any] = {"__name__": "__main__"}
    for number, cell in enumerate(code_cells(notebook), start=1):
        printed = io.StringIO()
        source = "".join(cell["source"])
        tree = ast.parse(source, filename=f"{where}, cell {number}")
        # As in Jupyter, a semicolon keeps the last value from being shown.
        is_shown = not source.rstrip().endswith(";") and isinstance(tree.body[-1], ast.Expr)
        last = tree.body.pop() if is_shown else None
        with contextlib.redirect_stdout(printed):
            exec(compile(tree, f"{where}, cell {number}", "exec"), names)
            value = None
            if isinstance(last, ast.Expr):
                expression = ast.Expression(last.value)
                value = eval(compile(expression, f"{where}, cell {number}", "eval"), names)
        cell["execution_count"] = number
        cell["outputs"] = list(_outputs(printed.getvalue(), value, number))
    return names


def _outputs(printed: str, value: object, number: int) -> Iterator[dict[str, Any]]:
    """A cell's outputs in Jupyter's format (nbformat 4)."""
    import matplotlib.pyplot as plt

    if printed:
        lines = printed.splitlines(keepends=True)
        yield {"name": "stdout", "output_type": "stream", "text": lines}
    if value is not None:
        text = {"text/plain": repr(value).splitlines(keepends=True)}
        yield {
            "data": text,
            "execution_count": number,
            "metadata": {},
            "output_type": "execute_result",
        }
    for figure in map(plt.figure, plt.get_fignums()):
        image = io.BytesIO()
        figure.savefig(image, format="png", dpi=DPI, bbox_inches="tight")
        data = {"image/png": base64.b64encode(image.getvalue()).decode()}
        yield {"data": data, "metadata": {}, "output_type": "display_data"}
    plt.close("all")


def main(path: Path, *, keep: bool = True) -> None:
    """Runs a notebook; writes its outputs into the file if they are to be kept."""
    import matplotlib

    matplotlib.use("agg")
    notebook = json.loads(path.read_text(encoding="utf-8"))
    run_cells(notebook, where=path.name)
    if keep:
        path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), keep="--forget" not in sys.argv[2:])

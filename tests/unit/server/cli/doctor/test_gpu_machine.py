"""`prefmix doctor` on a machine for GPUs, where kernels are compiled as they are first used."""

from __future__ import annotations

import shutil
import sysconfig
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from prefmix.server.cli.doctor import machine
from prefmix.server.cli.doctor.report import Report

pytestmark = pytest.mark.usefixtures("vllm")


@pytest.fixture(autouse=True)
def for_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM's CUDA build."""
    platform = SimpleNamespace(is_cpu=lambda: False, device_name="cuda")
    monkeypatch.setattr("vllm.platforms.current_platform", platform)
    monkeypatch.delenv("CC", raising=False)


def test_a_driver_that_is_too_old_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """nvidia-smi shows the device, so "there is no such device" would send its reader astray."""

    def init() -> None:
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 12040).")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", init)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    report = Report()
    machine._check_processor(report)
    (finding,) = report.findings
    assert finding.status == "error"
    assert "driver on your system is too old (found version 12040)" in finding.found
    assert "needs a driver for CUDA 13.0" in finding.found


@pytest.mark.parametrize("compilers", [(), ("g++",), ("gcc",), ("clang",)])
@pytest.mark.parametrize("has_headers", [True, False])
def test_tritons_compiler_and_headers_are_looked_for(
    compilers: tuple[str, ...], has_headers: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A C++ compiler alone does not do, and enforcing eager mode is no way out."""
    monkeypatch.setattr(shutil, "which", lambda name: name if name in compilers else None)
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    if has_headers:
        (tmp_path / "Python.h").touch()
    report = Report()
    machine._check_compiler(report, has_gpu=True)
    (finding,) = report.findings
    has_c = bool({"gcc", "clang"} & set(compilers))
    missing = ["gcc"] * (not has_c) + ["python3-dev"] * (not has_headers)
    assert finding.status == ("error" if missing else "ok")
    if missing:
        assert finding.found.endswith(f"apt-get install {' '.join(missing)}")
        assert "also with --enforce-eager" in finding.found

"""A kit for offline GPU machines: what vLLM's wheel keeps, and how pieces come together."""

from __future__ import annotations

import base64
import csv
import hashlib
import importlib.util
import io
import json
import struct
import sys
import tarfile
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPTS = Path(__file__).parents[3] / "scripts"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


sys.modules["gpu_binaries"] = load("gpu_binaries")  # its neighbour, where it is run as a script
binaries: Any = sys.modules["gpu_binaries"]
kit: Any = load("gpu_kit")
del sys.modules["gpu_binaries"]
installer: Any = load("gpu_kit_install")

PTX, MACHINE_CODE = 1, 2


def fat_binary(*entries: tuple[int, int, bytes]) -> bytes:
    """CUDA's container with entries of (kind, capability, code)."""
    body = b""
    for kind, capability, code in entries:
        header = struct.pack("<HHIQ", kind, 0x101, 64, len(code)) + bytes(12)
        body += (header + struct.pack("<I", capability)).ljust(64, b"\0") + code
    return struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(body)) + body


SHARED_OBJECT = (
    b"ELF of the host"
    + fat_binary((MACHINE_CODE, 80, b"eighty"), (MACHINE_CODE, 90, b"ninety"), (PTX, 90, b"source"))
    + b"\x50\xed\x55\xbaonly looks like one"
    + fat_binary((MACHINE_CODE, 100, b"hundred"))
)


def test_only_machine_code_of_the_gpus_kind_is_kept() -> None:
    data, found = binaries.pruned(SHARED_OBJECT, capability=90)
    assert found == 1
    assert len(data) == len(SHARED_OBJECT), "addresses in the file stay"
    assert b"ninety" in data
    assert not any(code in data for code in (b"eighty", b"source", b"hundred"))
    assert data.startswith(b"ELF of the host")
    assert b"only looks like one" in data


@pytest.mark.parametrize(
    ("capability", "kept"),
    [
        (80, b"machine code 80"),
        (86, b"machine code 80"),  # of the same tens
        (90, b"newer source"),  # which the driver compiles
        (75, b"source"),
    ],
)
def test_what_the_driver_would_choose_is_kept(capability: int, kept: bytes) -> None:
    codes = {
        (MACHINE_CODE, 80): b"machine code 80",
        (PTX, 75): b"source",
        (PTX, 80): b"newer source",
        (PTX, 100): b"source of a later one",
    }
    container = fat_binary(*((*which, code.ljust(24)) for which, code in codes.items()))
    data, found = binaries.pruned(b"ELF " + container, capability=capability)
    assert [code for code in codes.values() if code.ljust(24) in data] == [kept]
    assert found == (capability == 80)


def vllm_wheel(folder: Path) -> Path:
    wheel = folder / "vllm-0.32.0-cp38-abi3-manylinux_2_31_x86_64.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("vllm/__init__.py", "version = 1")
        archive.writestr("vllm/_C.abi3.so", SHARED_OBJECT)
        archive.writestr("vllm/third_party/deep_gemm/kernel.cuh", "code")
        archive.writestr("vllm-0.32.0.dist-info/RECORD", "vllm/__init__.py,sha256=x,1\n")
    return wheel


def test_the_slim_wheel_lists_what_it_has(tmp_path: Path) -> None:
    """pip removes by this list what it has installed."""
    wheel = vllm_wheel(tmp_path)
    binaries.slim(wheel, capability=90)
    with zipfile.ZipFile(wheel) as archive:
        record = "vllm-0.32.0.dist-info/RECORD"
        rows = list(csv.reader(io.StringIO(archive.read(record).decode())))
        assert {row[0] for row in rows} == set(archive.namelist())
        assert "vllm/third_party/deep_gemm/kernel.cuh" not in archive.namelist()
        for name, sum_, size in rows[:-1]:
            data = archive.read(name)
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=")
            assert (sum_, size) == (f"sha256={digest.decode()}", str(len(data)))
    assert rows[-1] == [record, "", ""]


def test_a_wheel_without_code_for_the_gpu_is_no_kit(tmp_path: Path) -> None:
    with pytest.raises(binaries.NoCodeError, match="no machine code of compute capability 75"):
        binaries.slim(vllm_wheel(tmp_path), capability=75)


def test_flash_attention_is_the_gpus_own(tmp_path: Path) -> None:
    """Version 3 runs on compute capability 9.0 alone, and there version 2 is not used."""
    for capability, version in ((80, "2"), (90, "3"), (100, "2")):
        wheel = vllm_wheel(tmp_path)
        with zipfile.ZipFile(wheel, "a") as archive:
            for name in "23":
                archive.writestr(f"vllm/vllm_flash_attn/_vllm_fa{name}_C.abi3.so", SHARED_OBJECT)
        binaries.slim(wheel, capability=capability)
        with zipfile.ZipFile(wheel) as archive:
            found = [name for name in archive.namelist() if "_vllm_fa" in name]
        assert found == [f"vllm/vllm_flash_attn/_vllm_fa{version}_C.abi3.so"]


def test_the_machines_own_packages_are_in_a_whole_kit_alone() -> None:
    names = [
        "torch",
        "nvidia-cublas",
        "Triton",
        "transformers",
        "psutil",
        "vllm",
        "flashinfer_python",
    ]
    report = {"install": [{"metadata": {"name": name, "version": "1"}} for name in names]}
    assert list(kit.chosen(report, whole=False)) == ["psutil", "transformers", "vllm"]
    assert len(kit.chosen(report, whole=True)) == len(names)


def test_the_repository_is_in_the_kit_with_its_commit(tmp_path: Path) -> None:
    kit.add_source(tmp_path)
    with tarfile.open(tmp_path / "source.tar") as tar:
        names = tar.getnames()
        commit = tar.extractfile("COMMIT")
        assert commit is not None
        assert len(commit.read().strip()) == 40
    assert {"tests/gpu/test_engine_gpu.py", "pyproject.toml"} <= set(names)
    assert [path.name for path in tmp_path.iterdir()] == ["source.tar"]


def test_pieces_of_another_kit_are_not_mixed_in(packed: Path, tmp_path: Path) -> None:
    with pytest.raises(kit.KitError, match=r"kit\.000 of an earlier kit; empty it"):
        kit.pack(tmp_path / "wheels", packed)


@pytest.fixture
def packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two wheels in pieces of 4 KiB."""
    monkeypatch.setattr(kit, "PIECE_BYTES", 4096)
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    (wheels / "one.whl").write_bytes(bytes(range(256)) * 20)
    (wheels / "two.whl").write_bytes(b"2" * 3000)
    pieces = kit.pack(wheels, tmp_path / "out")
    assert all(each.stat().st_size <= 4096 for each in pieces)
    assert len(pieces) > 2
    return tmp_path / "out"


def test_pieces_become_the_wheels_again(packed: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    wheels = installer.unpack(packed, work)
    assert [each.name for each in wheels] == ["one.whl", "two.whl"]
    assert wheels[0].read_bytes() == bytes(range(256)) * 20


def test_missing_and_damaged_pieces_are_named(packed: Path, tmp_path: Path) -> None:
    (packed / "kit.000").unlink()
    damaged = packed / "kit.001"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    assert "kit.002" in json.loads((packed / "kit.json").read_text())["pieces"]
    with pytest.raises(SystemExit, match=r"missing or damaged: kit\.000, kit\.001; copy them"):
        installer.unpack(packed, tmp_path)

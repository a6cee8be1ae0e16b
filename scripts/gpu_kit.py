"""Packs what an offline machine with an NVIDIA GPU needs, in pieces of at most 60 MiB.

    .venv/bin/python scripts/gpu_kit.py OUT [--python 3.12] [--capability 90]

The machine has Python, torch 2.11 for CUDA, its Triton, and transformers; OUT gets vLLM, prefmix
and everything else as wheels, the pieces, kit.json with their sums, and install.py, which puts them
together there (docs/offline_gpu.md). Of vLLM's binaries only the machine code of one compute
capability is kept: the rest becomes zeros, which weigh nothing once compressed.
"""

from __future__ import annotations

import argparse
import base64
import csv
import hashlib
import io
import json
import re
import shutil
import struct
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

ROOT = Path(__file__).resolve().parents[1]
REQUIREMENTS = ROOT / "requirements" / "gpu_kit.txt"
PIECE_BYTES = 60 << 20
PLATFORMS = ("2_31", "2_28", "2_27", "2_26", "2_24", "2_17", "2_12", "2_5")

LEFT_OUT = re.compile(
    r"third_party/(deep_gemm|fmha_sm100|flash_linear_attention/.*\.cu)|/include/"
    r"|\.(hpp|cuh|cu|h|inl|ipynb)$|_vllm_fa2_C|_flashmla|_qutlass|vllm-rs$"
)
"""Files of vLLM's wheel that a decoder on one GPU does not load."""

_FATBIN_MAGIC = 0xBA55ED50
_MACHINE_CODE = 2


class KitError(Exception):
    """Nothing usable was packed; the message says why."""


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path, help="folder of the pieces; made if missing")
    parser.add_argument("--python", default="3.12", help="Python of the GPU machine (3.12)")
    parser.add_argument("--capability", type=int, default=90, help="of its GPU: 80, 90, 100 (90)")
    args = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="prefmix-gpu-kit-") as work:
        wheels = Path(work) / "wheels"
        download(wheels, python=args.python)
        for wheel in wheels.glob("vllm-*.whl"):
            slim(wheel, capability=args.capability)
        pieces = pack(wheels, args.out)
    shutil.copy(ROOT / "scripts" / "gpu_kit_install.py", args.out / "install.py")
    print(f"{len(pieces)} pieces, kit.json and install.py are in {args.out}")


def download(folder: Path, *, python: str) -> None:
    """Downloads the wheels, and builds prefmix's own."""
    tag = "cp" + python.replace(".", "")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    chosen = ["--only-binary=:all:", "--python-version", python, "--implementation", "cp"]
    for abi in (tag, "abi3", "none"):
        chosen += ["--abi", abi]
    for platform in (*(f"manylinux_{each}_x86_64" for each in PLATFORMS), "manylinux2014_x86_64"):
        chosen += ["--platform", platform]
    wanted = ["--no-deps", "--dest", str(folder), "--requirement", str(REQUIREMENTS)]
    subprocess.run([*pip, "download", *wanted, *chosen, "--platform", "any"], check=True)
    own = ["wheel", "--no-deps", "--wheel-dir", str(folder), str(ROOT)]
    subprocess.run([*pip, *own], check=True)


def slim(wheel: Path, *, capability: int) -> None:
    """Writes vLLM's wheel again without what one kind of GPU does not need.

    Raises: KitError if it has no machine code of that kind.
    """
    slimmed, kept = wheel.with_suffix(".slim"), 0
    with zipfile.ZipFile(wheel) as source, zipfile.ZipFile(slimmed, "w") as target:
        sums: dict[str, tuple[str, int]] = {}
        record = next(name for name in source.namelist() if name.endswith(".dist-info/RECORD"))
        for name in source.namelist():
            if LEFT_OUT.search(name) or name == record:
                continue
            data = source.read(name)
            if name.endswith(".so"):
                data, found = pruned(data, capability=capability)
                kept += found
            sums[name] = (_record_hash(data), len(data))
            target.writestr(name, data, zipfile.ZIP_DEFLATED)
        rows = io.StringIO()
        csv.writer(rows, lineterminator="\n").writerows(
            [*((name, f"sha256={sum_}", size) for name, (sum_, size) in sums.items()),
             (record, "", "")]
        )  # fmt: skip
        target.writestr(record, rows.getvalue(), zipfile.ZIP_DEFLATED)
    if not kept:
        slimmed.unlink()
        raise KitError(f"{wheel.name} has no machine code of compute capability {capability}")
    slimmed.replace(wheel)


def pruned(data: bytes, *, capability: int) -> tuple[bytes, int]:
    """A shared object without GPU code of other kinds, and the number of entries that it keeps.

    Code for the next generation of a capability, as "90a", has the number itself.
    """
    kept = bytearray(data)
    found = 0
    for start, size, kind, arch in _entries(data):
        if kind == _MACHINE_CODE and arch == capability:
            found += 1
        else:
            kept[start : start + size] = bytes(size)
    return bytes(kept), found


def _entries(data: bytes) -> Iterator[tuple[int, int, int, int]]:
    """(first byte, bytes, kind, capability) of each entry of CUDA's fat binaries."""
    magic = struct.pack("<I", _FATBIN_MAGIC)
    at = data.find(magic)
    while at >= 0:
        _, _, header, size = struct.unpack_from("<IHHQ", data, at)
        entry, end = at + header, at + header + size
        if end > len(data):  # four bytes that only look like it
            at = data.find(magic, at + 4)
            continue
        while entry < end:
            kind, _, length = struct.unpack_from("<HHI", data, entry)
            (payload,) = struct.unpack_from("<Q", data, entry + 8)
            (arch,) = struct.unpack_from("<I", data, entry + 28)
            yield entry + length, payload, kind, arch
            entry += length + payload
        at = data.find(magic, end)


def pack(wheels: Path, out: Path) -> list[Path]:
    """Writes the wheels as one archive, in pieces, with kit.json beside them."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile() as archive:
        with tarfile.open(fileobj=archive, mode="w") as tar:
            for wheel in sorted(wheels.iterdir()):
                tar.add(wheel, arcname=wheel.name)
        archive.seek(0)
        pieces = list(_split(archive, out))
    sums = {each.name: hashlib.sha256(each.read_bytes()).hexdigest() for each in pieces}
    (out / "kit.json").write_text(json.dumps({"pieces": sums}, indent=2) + "\n")
    return pieces


def _split(archive: BinaryIO, out: Path) -> Iterator[Path]:
    index = 0
    while data := archive.read(PIECE_BYTES):
        piece = out / f"kit.{index:03d}"
        piece.write_bytes(data)
        yield piece
        index += 1


def _record_hash(data: bytes) -> str:
    digest = hashlib.sha256(data).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


if __name__ == "__main__":
    try:
        main()
    except (KitError, subprocess.CalledProcessError) as error:
        sys.exit(f"gpu-kit: {error}")

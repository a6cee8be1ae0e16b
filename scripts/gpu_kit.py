"""Packs what an offline machine with an NVIDIA GPU needs, in pieces of at most 60 MiB.

    .venv/bin/python scripts/gpu_kit.py OUT [--whole] [--python 3.12] [--capability 90]

OUT gets vLLM, prefmix and the packages that both need as wheels, this repository with its tests and
benches, all in pieces, kit.json with their sums, and install.py, which puts them together there
(docs/offline_gpu.md). The machine has Python, torch for CUDA and its Triton; with --whole Python is
enough. Of vLLM's binaries only the code for one compute capability is kept.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpu_binaries import NoCodeError, slim

ROOT = Path(__file__).resolve().parents[1]
REQUIREMENTS = ROOT / "requirements" / "gpu_kit.txt"
PIECE_BYTES = 60 << 20
OLDEST_GLIBC, NEWEST_GLIBC = 5, 35

LEFT_OUT = re.compile(
    r"torch|triton|torch(audio|vision|codec)|torch-c-dlpack-ext|nvidia-.*|cuda-.*|nccl.*"
    r"|tokenspeed-.*|tilelang|z3-solver|flashinfer-.*|quack-kernels|humming-kernels"
    r"|opencv-.*|pynvvideocodec|instanttensor|fastsafetensors"
)
"""Packages that the machine has, or that vLLM imports for other models, kernels and loaders."""


class KitError(Exception):
    """Nothing usable was packed; the message says why."""


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path, help="folder of the pieces; made if missing")
    parser.add_argument("--python", default="3.12", help="Python of the GPU machine (3.12)")
    parser.add_argument("--capability", type=int, default=90, help="of its GPU: 80, 90, 100 (90)")
    parser.add_argument(
        "--whole", action="store_true", help="torch, CUDA's libraries and every other package, too"
    )
    args = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="prefmix-gpu-kit-") as work:
        folder = Path(work) / "kit"
        download(folder, python=args.python, whole=args.whole)
        for wheel in folder.glob("vllm-*.whl"):
            slim(wheel, capability=args.capability)
        add_source(folder)
        pieces = pack(folder, args.out)
    shutil.copy(ROOT / "scripts" / "gpu_kit_install.py", args.out / "install.py")
    mib = sum(each.stat().st_size for each in pieces) >> 20
    print(f"{len(pieces)} pieces of {mib:,} MiB, kit.json and install.py are in {args.out}")


def download(folder: Path, *, python: str, whole: bool) -> None:
    """Downloads the wheels, and builds prefmix's own."""
    with tempfile.TemporaryDirectory(prefix="prefmix-gpu-kit-own-") as own:
        _pip("wheel", "--no-deps", "--wheel-dir", own, str(ROOT))
        [wheel] = Path(own).glob("prefmix-*.whl")
        packages = chosen(_resolved(wheel, python=python), whole=whole)
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(wheel, folder)
    listed = [f"{name}=={version}" for name, version in packages.items() if name != "prefmix"]
    _pip("download", "--no-deps", "--dest", str(folder), *listed, *_platform_flags(python))


def _resolved(wheel: Path, *, python: str) -> dict[str, Any]:
    """pip's report on prefmix, vLLM and all that they need, of which nothing is installed."""
    with tempfile.TemporaryDirectory(prefix="prefmix-gpu-kit-report-") as folder:
        report = Path(folder) / "report.json"
        dry = ["install", "--dry-run", "--ignore-installed", "--report", str(report)]
        wanted = ["--requirement", str(REQUIREMENTS), str(wheel)]
        _pip(*dry, "--target", folder, *wanted, *_platform_flags(python))
        found: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
    return found


def chosen(report: dict[str, Any], *, whole: bool) -> dict[str, str]:
    """The packages of pip's report that a kit has: versions by name."""
    found = {
        re.sub(r"[-_.]+", "-", each["metadata"]["name"]).lower(): each["metadata"]["version"]
        for each in report["install"]
    }
    return {
        name: version
        for name, version in sorted(found.items())
        if whole or not LEFT_OUT.fullmatch(name)
    }


def _platform_flags(python: str) -> list[str]:
    tag = "cp" + python.replace(".", "")
    flags = ["--only-binary=:all:", "--python-version", python, "--implementation", "cp"]
    for abi in (tag, "abi3", "none"):
        flags += ["--abi", abi]
    minors = range(NEWEST_GLIBC, OLDEST_GLIBC - 1, -1)
    old = (f"manylinux{each}" for each in ("2014", "2010", "1"))
    for platform in (*(f"manylinux_2_{minor}" for minor in minors), *old):
        flags += ["--platform", f"{platform}_x86_64"]
    return [*flags, "--platform", "any"]


def _pip(*arguments: str) -> None:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, *arguments], check=True)


def add_source(folder: Path) -> None:
    """Adds this checkout as it is committed: tests, benches, scripts, and the commit's name."""
    archive = folder / "source.tar"
    git = ["git", "-C", str(ROOT)]
    subprocess.run([*git, "archive", "--format=tar", "-o", str(archive), "HEAD"], check=True)
    commit = subprocess.run(
        [*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True
    ).stdout
    name = folder / "COMMIT"
    name.write_text(commit, encoding="utf-8")
    with tarfile.open(archive, "a") as tar:
        tar.add(name, arcname="COMMIT")
    name.unlink()


def pack(folder: Path, out: Path) -> list[Path]:
    """Writes the files as one archive, in pieces, with kit.json beside them.

    Raises: KitError if `out` has pieces of an earlier kit.
    """
    out.mkdir(parents=True, exist_ok=True)
    if old := sorted(out.glob("kit.*")):
        raise KitError(f"{out} has {old[0].name} of an earlier kit; empty it, or name another one")
    pieces = _Pieces(out)
    with tarfile.open(fileobj=pieces, mode="w|") as tar:
        for path in sorted(folder.iterdir()):
            tar.add(path, arcname=path.name)
    pieces.finish()
    written = list(pieces.written)
    sums = {each.name: hashlib.sha256(each.read_bytes()).hexdigest() for each in written}
    (out / "kit.json").write_text(json.dumps({"pieces": sums}, indent=2) + "\n")
    return written


class _Pieces:
    """A file to write to, which becomes files of `PIECE_BYTES`."""

    def __init__(self, out: Path) -> None:
        self.written: list[Path] = []
        self._out, self._held = out, bytearray()

    def write(self, data: bytes) -> int:
        self._held += data
        for piece in self._full():
            self._keep(piece)
        return len(data)

    def finish(self) -> None:
        """Writes what is left."""
        if self._held:
            self._keep(bytes(self._held))
            self._held.clear()

    def _full(self) -> Iterator[bytes]:
        while len(self._held) >= PIECE_BYTES:
            yield bytes(self._held[:PIECE_BYTES])
            del self._held[:PIECE_BYTES]

    def _keep(self, piece: bytes) -> None:
        path = self._out / f"kit.{len(self.written):03d}"
        path.write_bytes(piece)
        self.written.append(path)


if __name__ == "__main__":
    try:
        main()
    except (KitError, NoCodeError, subprocess.CalledProcessError) as error:
        sys.exit(f"gpu-kit: {error}")

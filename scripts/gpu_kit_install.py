"""Puts the pieces of a GPU kit together on the offline machine, and installs what they hold.

    python3 install.py FOLDER --target SITE

FOLDER has kit.json and all pieces. The wheels go to SITE, beside what the machine has: nothing of
its own is changed. The repository, with tests and benches, goes to SITE.source. Needs nothing but
Python and its pip. Packed by scripts/gpu_kit.py.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="with kit.json and the pieces")
    parser.add_argument("--target", type=Path, required=True, help="folder of the packages")
    args = parser.parse_args(arguments)
    target = args.target.resolve()
    source = target.with_name(f"{target.name}.source")
    with tempfile.TemporaryDirectory(prefix="prefmix-gpu-kit-", dir=_beside(target)) as work:
        wheels = unpack(args.folder, Path(work))
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
        command += ["--no-compile", "--upgrade", "--target", str(target)]
        subprocess.run([*command, *map(str, wheels)], check=True)
        with tarfile.open(Path(work) / "source.tar") as tar:
            tar.extractall(source, filter="data")
    print(f"{len(wheels)} packages are in {target}, the repository is in {source}; use them with")
    print(f"  export PYTHONPATH={target}")
    print(f"  cd {source}")


def _beside(target: Path) -> Path:
    """The target's folder, made if missing: gigabytes have no place in a small /tmp."""
    target.parent.mkdir(parents=True, exist_ok=True)
    return target.parent


def unpack(folder: Path, work: Path) -> list[Path]:
    """Checks and joins the pieces. Returns: the wheels, in `work`.

    Raises: SystemExit naming the pieces that are missing or damaged.
    """
    sums = json.loads((folder / "kit.json").read_text())["pieces"]
    wrong = [name for name, sum_ in sums.items() if _sum(folder / name) != sum_]
    if wrong:
        sys.exit(f"missing or damaged: {', '.join(wrong)}; copy them again")
    joined = _Joined([folder / name for name in sums])
    with io.BufferedReader(joined) as file, tarfile.open(fileobj=file, mode="r|") as tar:
        tar.extractall(work, filter="data")
    return sorted(work.glob("*.whl"))


class _Joined(io.RawIOBase):
    """Files read as one."""

    def __init__(self, paths: list[Path]) -> None:
        self._left = list(reversed(paths))
        self._file: io.BufferedReader | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while True:
            if self._file is not None:
                if count := self._file.readinto(buffer):
                    return count
                self._file.close()
                self._file = None
            if not self._left:
                return 0
            self._file = self._left.pop().open("rb")

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        super().close()


def _sum(piece: Path) -> str | None:
    if not piece.is_file():
        return None
    return hashlib.sha256(piece.read_bytes()).hexdigest()


if __name__ == "__main__":
    main()

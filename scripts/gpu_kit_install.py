"""Puts the pieces of a GPU kit together on the offline machine, and installs what they hold.

    python3 install.py FOLDER --target SITE

FOLDER has kit.json and all pieces. The wheels go to SITE, beside what the machine has: nothing of
its own is changed. Needs nothing but Python and its pip. Packed by scripts/gpu_kit.py.
"""

from __future__ import annotations

import argparse
import hashlib
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
    with tempfile.TemporaryDirectory(prefix="prefmix-gpu-kit-") as work:
        wheels = unpack(args.folder, Path(work))
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
        command += ["--no-compile", "--upgrade", "--target", str(args.target)]
        subprocess.run([*command, *map(str, wheels)], check=True)
    print(f"{len(wheels)} packages are in {args.target}; use them with")
    print(f"  export PYTHONPATH={args.target.resolve()}")


def unpack(folder: Path, work: Path) -> list[Path]:
    """Checks and joins the pieces. Returns: the wheels, in `work`.

    Raises: SystemExit naming the pieces that are missing or damaged.
    """
    sums = json.loads((folder / "kit.json").read_text())["pieces"]
    wrong = [name for name, sum_ in sums.items() if _sum(folder / name) != sum_]
    if wrong:
        sys.exit(f"missing or damaged: {', '.join(wrong)}; copy them again")
    joined = work / "kit.tar"
    with joined.open("wb") as archive:
        for name in sums:
            archive.write((folder / name).read_bytes())
    with tarfile.open(joined) as tar:
        tar.extractall(work, filter="data")
    joined.unlink()
    return sorted(work.glob("*.whl"))


def _sum(piece: Path) -> str | None:
    if not piece.is_file():
        return None
    return hashlib.sha256(piece.read_bytes()).hexdigest()


if __name__ == "__main__":
    main()

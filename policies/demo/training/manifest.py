"""manifest.json: how demo policies were made, what they earn, and a hash of each of their files."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from prefmix.policies.demo.training.evaluation import Measurement
from prefmix.policies.demo.training.model import FILE_MODE

PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "trl")
"""Packages whose versions decide every byte of a policy."""


def write_manifest(
    output: Path,
    names: Iterable[str],
    *,
    seed: int,
    settings: Mapping[str, Any],
    packages: Sequence[str],
    measured: Mapping[str, Measurement],
) -> None:
    """Writes manifest.json into a folder of demo policies.

    Args:
      names: of the policies, which are folders of `output`.
      settings: of data and training, JSON-ready.
      packages: whose versions are named.
      measured: by row of the measurements.
    """
    paths = [path for name in sorted(names) for path in sorted((output / name).iterdir())]
    manifest = {
        "format": 1,
        "seed": seed,
        "settings": settings,
        "versions": {"python": platform.python_version()}
        | {package: version(package) for package in packages},
        "measured": {name: asdict(row) for name, row in measured.items()},
        "sha256": {
            path.relative_to(output).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in paths
        },
    }
    path = output / "manifest.json"
    path.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    path.chmod(FILE_MODE)

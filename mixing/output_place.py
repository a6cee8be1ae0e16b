"""Places for output, tried before the work whose result they are to hold."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

_LEAST_BYTES = 64 * 2**10
"""Room that any output needs; a full disk often has some bytes left."""


def why_unwritable(path: Path, *, is_folder: bool) -> str | None:
    """The reason for which a file or folder cannot be written, or None if it can.

    It is tried in the nearest folder that exists, as permissions alone do not tell: root may write
    to /proc, and cannot. Nothing is left there.

    Args:
      path: a file or folder that may exist.
      is_folder: true if it is to be a folder, which is made with those above it.
    """
    path = Path(os.path.abspath(path.expanduser()))
    if path.exists() and path.is_dir() != is_folder:
        return "it is a file, no folder" if is_folder else "it is a folder"
    folder = path if is_folder else path.parent
    if not is_folder and not folder.is_dir():
        return f"there is no folder {folder}"
    if not is_folder and path.exists() and not os.access(path, os.W_OK):
        return "it is read-only"
    while not folder.exists():
        folder = folder.parent
    try:
        with tempfile.TemporaryDirectory(prefix=".prefmix-", dir=folder) as tried:
            (Path(tried) / "room").write_bytes(bytes(_LEAST_BYTES))
        return None
    except OSError as error:
        return f"nothing can be made in {folder}: {error.strerror}"

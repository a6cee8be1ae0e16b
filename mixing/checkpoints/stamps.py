"""The stamps of files, which tell whether they have been replaced since they were read."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

Stamps = tuple[tuple[str, int, int, int], ...]
"""Name, number, size in bytes and time of change of each file of a folder."""


def stamps_of(folder: Path, names: Collection[str] = ()) -> Stamps:
    """The stamps of the files of some names that lie in a folder; of all files without names."""
    if not folder.is_dir():
        return ()
    stamps = []
    for path in sorted(map(folder.joinpath, names) if names else folder.iterdir()):
        try:
            found = path.stat()
        except OSError:  # a link to nothing, or gone since
            continue
        if path.is_file():
            stamps.append((path.name, found.st_ino, found.st_size, found.st_mtime_ns))
    return tuple(stamps)

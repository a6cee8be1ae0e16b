"""The flags that name a command's output, checked before the work."""

from __future__ import annotations

from pathlib import Path

from prefmix.mixing.output_place import why_unwritable
from prefmix.server.config.errors import CommandError


def check_file(flag: str, path: Path | None) -> None:
    """Raises CommandError, naming the flag, unless the file can be written. None is no file."""
    _check(flag, path, is_folder=False)


def check_folder(flag: str, path: Path | None) -> None:
    """Raises CommandError, naming the flag, unless the folder can be made and written to."""
    _check(flag, path, is_folder=True)


def _check(flag: str, path: Path | None, *, is_folder: bool) -> None:
    why = None if path is None else why_unwritable(path, is_folder=is_folder)
    if why is not None:
        what = "folder" if is_folder else "file"
        raise CommandError(f"{flag} is {path}, and {why}; give another {what}", exit_code=2)

"""A folder that appears whole, by one rename, or not at all."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from prefmix.mixing.shown_value import shown_bytes
from prefmix.weights.averages.errors import ParameterAverageError

RECORD = "average.json"
"""The file that marks a folder as one of ours, and says what it was made of."""

_FILE_MODE, _FOLDER_MODE = 0o644, 0o755
"""As of trained policies: a safetensors file is written for its owner alone."""


@contextmanager
def output_folder(
    output: Path, *, force: bool, needed_bytes: int, sources: Sequence[Path]
) -> Iterator[Path]:
    """Yields a folder beside `output` that becomes `output` at the end; after an error it is gone.

    What a killed run left is removed. An empty folder may lie at `output`.

    Args:
      output: the folder to make.
      force: true replaces a folder that this module made.
      needed_bytes: size of the parameters, which must fit on the disk.
      sources: folders that are read, and that must not be replaced.
    Raises: ParameterAverageError.
    """
    output = Path(os.path.abspath(output.expanduser()))
    check_output(output, force=force, sources=sources)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        unfinished = output.with_name(output.name + ".partial")
        unfinished.mkdir(exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise ParameterAverageError(
            f"{output} lies in a file, not in a folder; give another --output"
        ) from None
    except OSError as error:
        raise ParameterAverageError(
            f"{output} cannot be made ({error.strerror}); give another --output"
        ) from None
    free = shutil.disk_usage(output.parent).free
    if needed_bytes > free:
        with suppress(OSError):  # not empty: of another command, or of one that was killed
            unfinished.rmdir()
        raise ParameterAverageError(
            f"{output} would hold {shown_bytes(needed_bytes)} of parameters, but its disk has "
            f"{shown_bytes(free)} left; give another --output"
        )
    handle = os.open(unfinished, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ParameterAverageError(
                f"another command is writing {output}; wait for it, or give another --output"
            ) from None
        try:
            _empty(unfinished)
            yield unfinished
            for path in unfinished.rglob("*"):
                path.chmod(_FOLDER_MODE if path.is_dir() else _FILE_MODE)
            _sync(unfinished)
            check_output(output, force=force, sources=sources)  # it may have appeared meanwhile
            _publish(unfinished, output)
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
    finally:
        os.close(handle)


def check_output(output: Path, *, force: bool, sources: Sequence[Path]) -> None:
    """Raises ParameterAverageError unless the folder may be written, or replaced."""
    output = Path(os.path.abspath(output.expanduser()))
    if not output.is_dir() and (output.exists() or output.is_symlink()):
        raise ParameterAverageError(f"{output} is no folder; give another --output")
    if output.is_symlink():
        raise ParameterAverageError(f"{output} is a link; give the folder itself, or another one")
    if not output.is_dir() or not any(output.iterdir()):
        return
    real = output.resolve()
    for source in sources:
        if source.resolve().is_relative_to(real):
            raise ParameterAverageError(
                f"{output} holds the policy {source}, which is read; give another --output"
            )
    if not force:
        raise ParameterAverageError(
            f"{output} exists; give another --output, or --force to replace it"
        )
    if not (output / RECORD).is_file():
        raise ParameterAverageError(
            f"{output} holds no {RECORD}, so it was not written by prefmix and is not replaced; "
            "remove it, or give another --output"
        )


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _sync(folder: Path) -> None:
    """Waits until the files are on the disk, so that the rename never shows half a file."""
    for path in (*(each for each in folder.rglob("*") if each.is_file()), folder):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _publish(unfinished: Path, output: Path) -> None:
    if output.is_dir() and any(output.iterdir()):
        replaced = output.with_name(output.name + ".replaced")
        shutil.rmtree(replaced, ignore_errors=True)
        os.rename(output, replaced)
        try:
            os.rename(unfinished, output)
        except BaseException:
            os.rename(replaced, output)
            raise
        shutil.rmtree(replaced, ignore_errors=True)
    else:
        os.rename(unfinished, output)
    handle = os.open(output.parent, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

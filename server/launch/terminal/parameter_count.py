"""The number of a checkpoint's parameters, read from the headers of its safetensors files."""

from __future__ import annotations

import json
import math
from pathlib import Path

_MAX_HEADER_BYTES = 100_000_000  # the format's own limit


def num_parameters(folder: Path) -> int | None:
    """Counts a checkpoint's parameters; None if it has no readable safetensors files.

    Tied matrices are stored once, so they count once.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        return None
    shapes: dict[str, list[int]] = {}
    try:
        for file in files:
            shapes |= tensor_shapes(file)
    except (OSError, ValueError):
        return None
    return sum(math.prod(shape) for shape in shapes.values())


def tensor_shapes(file: Path) -> dict[str, list[int]]:
    """Tensor name -> shape, from the file's header.

    Raises: ValueError if the file is not a safetensors file.
    """
    with file.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        if not 2 <= size <= _MAX_HEADER_BYTES:
            raise ValueError(f"{file} is not a safetensors file")
        header = json.loads(stream.read(size))
    return {name: entry["shape"] for name, entry in header.items() if name != "__metadata__"}


def human_count(count: int | None) -> str:
    """A count in three digits and a unit: 1234567 gives `1.2M`, None gives `?`."""
    if count is None:
        return "?"
    for limit, unit in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if count >= limit:
            return f"{count / limit:.1f}{unit}"
    return str(count)

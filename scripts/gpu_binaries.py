"""vLLM's wheel without the GPU code that one kind of GPU never runs.

What is left out becomes zeros, which weigh nothing once compressed: addresses in the files stay.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import re
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

NEVER_LOADED = (
    r"third_party/(deep_gemm|fmha_sm100|flash_linear_attention/.*\.cu)|/include/"
    r"|\.(hpp|cuh|cu|h|inl|ipynb)$|_flashmla|_qutlass|vllm-rs$"
)
"""Files of vLLM's wheel that a decoder on one GPU does not load."""

FLASH_ATTENTION = {2: "_vllm_fa2_C", 3: "_vllm_fa3_C"}
"""The library of each version; version 3 is for capability 9.0 alone, where 2 is not used."""

_MAGIC = struct.pack("<I", 0xBA55ED50)
_PTX, _MACHINE_CODE = 1, 2


class Entry(NamedTuple):
    """One piece of code in a container of CUDA."""

    start: int
    size: int
    kind: int
    capability: int


class NoCodeError(Exception):
    """A wheel has no machine code for a GPU."""


def slim(wheel: Path, *, capability: int) -> None:
    """Writes vLLM's wheel again without what one kind of GPU does not need.

    Raises: NoCodeError if it has no machine code of that kind.
    """
    unused = FLASH_ATTENTION[2 if capability == 90 else 3]
    left_out = re.compile(f"{NEVER_LOADED}|{unused}")
    slimmed, kept = wheel.with_suffix(".slim"), 0
    with zipfile.ZipFile(wheel) as source, zipfile.ZipFile(slimmed, "w") as target:
        sums: dict[str, tuple[str, int]] = {}
        record = next(name for name in source.namelist() if name.endswith(".dist-info/RECORD"))
        for name in source.namelist():
            if left_out.search(name) or name == record:
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
        raise NoCodeError(f"{wheel.name} has no machine code of compute capability {capability}")
    slimmed.replace(wheel)


def pruned(data: bytes, *, capability: int) -> tuple[bytes, int]:
    """A shared object without GPU code that the driver would not choose.

    Returns: the object, and the number of its pieces of machine code for exactly `capability`.
    """
    kept = bytearray(data)
    found = 0
    for container in _containers(data):
        chosen = _chosen(container, capability)
        found += sum((e.kind, e.capability) == (_MACHINE_CODE, capability) for e in container)
        for entry in container:
            if (entry.kind, entry.capability) != chosen:
                kept[entry.start : entry.start + entry.size] = bytes(entry.size)
    return bytes(kept), found


def _chosen(container: list[Entry], capability: int) -> tuple[int, int] | None:
    """(kind, capability) of the code that the driver takes from a container, None if it has none.

    Machine code runs on its own generation and on later ones of the same tens; the driver compiles
    PTX of any earlier one. Code for one architecture alone, as "90a", has the number itself.
    """
    own = [
        entry.capability
        for entry in container
        if entry.kind == _MACHINE_CODE
        and entry.capability // 10 == capability // 10
        and entry.capability <= capability
    ]
    if own:
        return _MACHINE_CODE, max(own)
    ptx = [e.capability for e in container if e.kind == _PTX and e.capability <= capability]
    return (_PTX, max(ptx)) if ptx else None


def _containers(data: bytes) -> Iterator[list[Entry]]:
    """The entries of each container: one of CUDA's fat binaries has the code of one source file."""
    at = data.find(_MAGIC)
    while at >= 0:
        _, _, header, size = struct.unpack_from("<IHHQ", data, at)
        entry, end = at + header, at + header + size
        if end > len(data):  # four bytes that only look like it
            at = data.find(_MAGIC, at + 4)
            continue
        entries = []
        while entry < end:
            kind, _, length = struct.unpack_from("<HHI", data, entry)
            (payload,) = struct.unpack_from("<Q", data, entry + 8)
            (arch,) = struct.unpack_from("<I", data, entry + 28)
            entries.append(Entry(entry + length, payload, kind, arch))
            entry += length + payload
        yield entries
        at = data.find(_MAGIC, end)


def _record_hash(data: bytes) -> str:
    digest = hashlib.sha256(data).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()

"""Limits on what an adapter's files may cost to read, whoever has written them.

A running server reads adapters in its engine's process, beside the steps. Python reads JSON and
safetensors' header in one piece, in which no step can begin, and a regular expression may take
longer than the server lives.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from prefmix.mixing.checkpoints.file_names import ADAPTER_CONFIG, ADAPTER_PARAMETERS
from prefmix.mixing.checkpoints.lora_config import AdapterError

MAX_CONFIG_BYTES = 2**20
MAX_HEADER_BYTES = 4 * 2**20
"""The list of an adapter's tensors: about 30,000, where 80 layers of 7 matrices have 1,120."""

PATTERN_TIMEOUT_S = 20.0
"""For all patterns of an adapter, which take milliseconds, on a machine that is busy."""

_LENGTH_BYTES = 8
_TRY = r"""
import json, re, sys
patterns, names = json.load(sys.stdin)
for pattern in patterns:
    for whole in (pattern, rf"(.*\.)?({pattern})$", rf"(?:^|.*?\.){pattern}\.(\d+)\."):
        try:
            rule = re.compile(whole)
        except re.error:
            continue
        for name in names:
            rule.match(name), rule.fullmatch(name)
"""


def check_sizes(folder: Path, wrong: str) -> None:
    """Checks an adapter's files before they are parsed.

    Args: wrong: the beginning of a sentence about the adapter.
    Raises: AdapterError.
    """
    sizes = []
    for name, size_of, what, most in (
        (ADAPTER_CONFIG, os.path.getsize, "", MAX_CONFIG_BYTES),
        (ADAPTER_PARAMETERS, _header_bytes, "a header of ", MAX_HEADER_BYTES),
    ):
        try:
            size = size_of(folder / name)
        except OSError:  # whoever reads it says so
            continue
        if size > most:
            sizes.append(f"{what}{size:,} bytes in its {name}, and at most {most:,} are read")
    if sizes:
        raise AdapterError(f"{wrong}has {sizes[0]}; save it again with peft's save_pretrained")


def check_patterns(patterns: Iterable[str], modules: Sequence[str], wrong: str) -> None:
    """Checks that an adapter's regular expressions come to an end on the names of its layers.

    They are tried in another process, as nothing ends them in this one.
    Raises: AdapterError.
    """
    suspects = [each for each in patterns if any(sign in each for sign in "*+{")]
    if not suspects:
        return
    command = [sys.executable, "-I", "-S", "-c", _TRY]
    try:
        subprocess.run(
            command,
            input=json.dumps([suspects, list(modules)]).encode(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=PATTERN_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise AdapterError(
            f"{wrong}has a regular expression in its {ADAPTER_CONFIG} that comes to no end within "
            f"{PATTERN_TIMEOUT_S:g} s; simplify rank_pattern, alpha_pattern and target_modules"
        ) from None


def _header_bytes(path: Path) -> int:
    """The length that a safetensors file gives for its header, at most the file's."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
    return min(length, os.path.getsize(path))

"""Turns off ahead-of-time compilation on a CPU, whose artefacts vLLM never loads again.

The defect: on the CPU backend vLLM 0.32 writes ahead-of-time artefacts of compiled models that it
cannot load again.
Delete this file when a second start on a CPU loads what the first one compiled.
"""

from __future__ import annotations

import os


def turn_off_aot_compile() -> None:
    """Sets VLLM_USE_AOT_COMPILE to 0, unless the user has set it."""
    os.environ.setdefault("VLLM_USE_AOT_COMPILE", "0")

"""The number format of a mixture on a CPU that computes bfloat16 by emulation."""

from __future__ import annotations

import json
import platform
from argparse import Namespace
from pathlib import Path

from prefmix.mixing.checkpoints.safe_files import cached_folder
from prefmix.mixing.spec import MixtureSpec

REASON_ATTRIBUTE = "prefmix_dtype_reason"
"""Where the reason for another dtype than the checkpoints' stands on vLLM's arguments."""


def choose_dtype(args: Namespace, spec: MixtureSpec) -> None:
    """Sets float32 where a CPU has no instructions for bfloat16 and the user gave no `--dtype`.

    Emulated, one policy of 134M parameters draws a third of the tokens per second that it draws in
    float32. Quantised checkpoints keep their own format: their kernels take nothing else.
    """
    from vllm.platforms import current_platform

    if args.dtype != "auto" or not current_platform.is_cpu() or has_bfloat16():
        return
    if any(_is_quantised(member.model, member.revision) for member in spec.checkpoints):
        return
    args.dtype = "float32"
    setattr(
        args,
        REASON_ATTRIBUTE,
        "float32: this CPU has no bfloat16 instructions (AVX512-BF16 or AMX) and would be slower; "
        "-- --dtype bfloat16 halves the memory",
    )


def has_bfloat16() -> bool:
    """True if this CPU has instructions for bfloat16, or is none that torch knows this of.

    ATEN_CPU_CAPABILITY=avx2, by which torch leaves instructions out, counts as their absence.
    """
    import torch

    if platform.machine() not in ("x86_64", "AMD64"):
        return True
    if torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "AVX2"):
        return False
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def _is_quantised(model: str, revision: str | None) -> bool:
    folder = cached_folder(model, revision)
    if folder is None:
        return False
    try:
        config = json.loads(Path(folder, "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):  # the checks of the files say so
        return False
    return isinstance(config, dict) and bool(config.get("quantization_config"))

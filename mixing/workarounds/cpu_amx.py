"""Asks Linux for the permission to use AMX tiles, which each process needs on newer Intel CPUs.

The defect: on a CPU with AMX, vLLM 0.32's attention in bfloat16 uses tiles without asking. Where no
other library has asked before, the first request ends the worker by SIGILL.
Delete this file when vLLM's `cpu_attention_with_kv_cache` runs in a process that never called
`torch.cpu._init_amx`.
"""

from __future__ import annotations

import torch


def permit_amx_tiles() -> None:
    """Asks once for all threads of this process; without AMX there is nothing to ask for."""
    if torch.cpu._is_amx_tile_supported():
        torch.cpu._init_amx()

"""The permission to use AMX tiles is asked for wherever the processor has tiles."""

from __future__ import annotations

import ctypes
import platform

import pytest
import torch

from prefmix.mixing.workarounds.cpu_amx import permit_amx_tiles

ARCH_PRCTL = 158
GET_XCOMP_PERMISSIONS = 0x1022
TILE_DATA = 18


@pytest.mark.skipif(platform.machine() != "x86_64", reason="AMX is of x86-64")
def test_tiles_are_permitted_where_there_are_any() -> None:
    permit_amx_tiles()
    permitted = ctypes.c_ulong(0)
    syscall = ctypes.CDLL(None).syscall
    syscall(ARCH_PRCTL, GET_XCOMP_PERMISSIONS, ctypes.byref(permitted))
    assert bool(permitted.value >> TILE_DATA & 1) or not torch.cpu._is_amx_tile_supported()

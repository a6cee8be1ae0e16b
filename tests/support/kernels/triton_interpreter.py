"""Lets vLLM's V2 model runner run on a CPU, in Triton's interpreter. For tests only.

vLLM picks V2 when Triton has an active driver; Triton has none for CPUs. `install` registers one
whose kernels are never compiled: with TRITON_INTERPRET=1 Triton runs them in Python. Call it before
anything imports Triton or vLLM, in every process that is to use V2.
"""

from __future__ import annotations

import functools
import inspect
import os
from types import SimpleNamespace


def install() -> None:
    """Registers an interpreted "cpu" backend with Triton and selects vLLM's V2 runner."""
    os.environ["TRITON_INTERPRET"] = "1"
    os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "1"
    import torch
    from triton.backends import backends
    from triton.backends.compiler import GPUTarget

    class InterpretedDriver:
        """A driver that describes a CPU and never launches a kernel."""

        @staticmethod
        def is_active() -> bool:
            return True

        def get_current_target(self) -> GPUTarget:
            return GPUTarget("cpu", 0, 1)

        def get_current_device(self) -> int:
            return 0

        def get_active_torch_device(self) -> torch.device:
            return torch.device("cpu")

    class NoCompiler:
        """Compiles nothing: the interpreter needs no code."""

        @staticmethod
        def supports_target(target: GPUTarget) -> bool:
            return False

    backends["cpu"] = SimpleNamespace(driver=InterpretedDriver, compiler=NoCompiler)
    look_up_language_once()


def look_up_language_once() -> None:
    """Spares the interpreter a fifth of its time: it lists Triton's functions at each launch."""
    from triton.runtime import interpreter

    members = functools.lru_cache(maxsize=None)(inspect.getmembers)
    interpreter.inspect = SimpleNamespace(**{**vars(inspect), "getmembers": members})

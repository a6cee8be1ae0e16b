"""Lets vLLM's V2 model runner run on a CPU, in Triton's interpreter. For tests only.

vLLM picks V2 when Triton has an active driver; Triton has none for CPUs. `install` registers one
whose kernels are never compiled: with TRITON_INTERPRET=1 Triton runs them in Python. Call it before
anything imports Triton or vLLM, in every process that is to use V2.
"""

from __future__ import annotations

import functools
import os
from types import SimpleNamespace
from typing import Any


def install() -> None:
    """Registers an interpreted "cpu" backend with Triton and selects vLLM's V2 runner.

    On a machine with a GPU nothing is interpreted: the runner's kernels are compiled.
    """
    os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "1"
    import torch

    if torch.cuda.is_available():
        return
    os.environ["TRITON_INTERPRET"] = "1"
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
    patch_language_once()
    look_up_types_once()


def patch_language_once() -> None:
    """Spares the interpreter a third of its time; for processes that compile no kernel.

    It puts its own functions into Triton's language for each launch and each call inside one, and
    takes them out again after the launch. Here they stay.
    """
    from triton.runtime import interpreter

    patch = interpreter._patch_lang
    patched: set[tuple[bool, ...]] = set()
    languages = (interpreter.tl, interpreter.tl.core)

    def patch_once(function: Any) -> Any:
        seen = function.__globals__.values()
        which = tuple(any(value is language for value in seen) for language in languages)
        if which not in patched:
            patched.add(which)
            patch(function)
        return interpreter._LangPatchScope()

    interpreter._patch_lang = patch_once


def look_up_types_once() -> None:
    """Spares the interpreter a table of numpy's types for each operand."""
    from triton.runtime import interpreter

    numpy_type = interpreter._get_np_dtype
    of_numbers = functools.lru_cache(maxsize=None)(numpy_type)

    def look_up(kind: Any) -> Any:
        scalar = kind.scalar
        is_pointer = isinstance(scalar, interpreter.tl.pointer_type)
        return numpy_type(scalar) if is_pointer else of_numbers(scalar)

    interpreter._get_np_dtype = look_up

"""Makes vLLM's build for CPUs believe that the machine has H200s.

Configurations, models and graphs are then those of a GPU; nothing can be computed. Call `install`
before anything imports vLLM, in a process of its own: nothing is put back.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import sys
import types
from functools import cache
from pathlib import Path
from typing import Any

EXTENSIONS = (
    "vllm._C_stable_libtorch",
    "vllm._moe_C_stable_libtorch",
    "vllm._qutlass_C",
    "vllm.vllm_flash_attn._vllm_fa2_C",
    "vllm.vllm_flash_attn._vllm_fa3_C",
)
"""Modules of vLLM's build for CUDA; here they are empty."""
NAMESPACES = ("_C", "_moe_C", "_C_cache_ops", "_vllm_fa2_C", "_vllm_fa3_C")
"""Namespaces of torch's operators that the extensions would fill."""
NUM_GPUS = 2
VARIABLES = {
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "TORCHINDUCTOR_COMPILE_THREADS": "1",
    "TORCHINDUCTOR_FX_GRAPH_CACHE": "0",
}
"""Environment variables that vLLM and torch read at their import."""


class _Memory:
    total, free, used = 143_771 << 20, 143_000 << 20, 771 << 20


class _NoOperator:
    """Stands for an operator that is looked up, and never runs."""

    def __call__(self, *args: object, **options: object) -> bool:
        return False

    @property
    def default(self) -> _NoOperator:
        return self


@cache
def install() -> None:
    """Sets up the pretence, once."""
    os.environ.update(VARIABLES)
    version = importlib.metadata.version
    importlib.metadata.version = lambda name: "0.32.0" if name == "vllm" else version(name)
    for name in EXTENSIONS:
        sys.modules[name] = types.ModuleType(name)
    _find_every_operator()
    _answer_for_the_driver()


def _answer_for_the_driver() -> None:
    from triton.backends.nvidia.driver import CudaDriver
    from vllm.third_party import pynvml

    answers: dict[str, Any] = {
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: None,
        "nvmlDeviceGetCount": lambda: NUM_GPUS,
        "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlDeviceGetCudaComputeCapability": lambda handle: (9, 0),
        "nvmlDeviceGetName": lambda handle: "NVIDIA H200",
        "nvmlDeviceGetUUID": lambda handle: f"GPU-{handle}",
        "nvmlDeviceGetMemoryInfo": lambda handle, **options: _Memory,
        "nvmlSystemGetDriverVersion": lambda: "580.0",
    }
    for name, answer in answers.items():
        setattr(pynvml, name, answer)
    CudaDriver.is_active = staticmethod(lambda: True)
    from vllm.platforms import current_platform

    type(current_platform).device_count = classmethod(lambda cls: NUM_GPUS)


def _find_every_operator() -> None:
    """Operators that vLLM looks up without asking are found; those that it asks for are not."""
    import torch
    import vllm

    asked = re.compile(r'hasattr\(\s*torch\.ops(?:\.\w+)?,\s*"(\w+)"')
    sources = Path(vllm.__file__).parent.rglob("*.py")
    optional = {
        name for path in sources for name in asked.findall(path.read_text(encoding="utf-8"))
    }
    namespace = type(torch.ops.aten)
    find = namespace.__getattr__

    def found(self: Any, name: str) -> Any:
        try:
            return find(self, name)
        except AttributeError:
            if self.name not in NAMESPACES or name.startswith("__") or name in optional:
                raise
            return _NoOperator()

    namespace.__getattr__ = found

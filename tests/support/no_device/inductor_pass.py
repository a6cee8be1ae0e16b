"""Compiles a pass of a GPU by Inductor, for an H200 that is not there.

    PYTHONPATH=tests .venv/bin/python tests/support/no_device/inductor_pass.py FOLDER [full]

The pass is that of a shared trunk of three adapters and a reference, or of one of several full
checkpoints. It is traced on tensors without memory and cut as vLLM cuts it (gpu_pass.py). Then its
tensors claim to lie on a GPU, vLLM's own passes and Inductor make Triton kernels of each piece, and
Triton's assembler compiles them for compute capability 9.0. Nothing is launched. Prints one JSON
object: the launches of each piece by name, and registers and spilled bytes of each kernel.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from support.no_device import fake_gpu, full_pass, gpu_pass

NUM_POLICIES = 3
H200 = SimpleNamespace(
    name="NVIDIA H200",
    type="cuda",
    index=0,
    cc=90,
    major=9,
    minor=0,
    multi_processor_count=132,
    total_memory=143_771 << 20,
    L2_cache_size=60 << 20,
    regs_per_multiprocessor=65_536,
    max_threads_per_multi_processor=2048,
    max_threads_per_block=1024,
    shared_memory_per_block=48 << 10,
    shared_memory_per_block_optin=227 << 10,
    shared_memory_per_multiprocessor=228 << 10,
    warp_size=32,
    gcnArchName="",
)
"""The properties that Inductor asks a device for."""


def main() -> None:
    folder = Path(sys.argv[1])
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "inductor")
    fake_gpu.install()
    forward, config = full_checkpoint(folder) if "full" in sys.argv else trunk(folder)
    graph = gpu_pass.graph_of(forward, config)
    pieces = gpu_pass.pieces_of(graph, config)
    graphs = [operations_of(each.graph, config) for each in pieces if not each.is_splitting_graph]
    kernels: list[dict[str, Any]] = []
    launches = []
    with pretended_device(kernels):
        for graph, inputs in graphs:
            launches.append(compiled(graph, on_gpu(graph, inputs), config))
    print(json.dumps({"layers": gpu_pass.LAYERS, "launches": launches, "kernels": kernels}))


def trunk(folder: Path) -> tuple[Callable[..., Any], Any]:
    """A shared trunk's pass, and its configuration."""
    config, _ = gpu_pass.configuration(folder, NUM_POLICIES, has_reference=True)
    return gpu_pass.build(config).trunk.forward, config


def full_checkpoint(folder: Path) -> tuple[Callable[..., Any], Any]:
    """The pass of one full checkpoint of several, and their configuration."""
    config = full_pass.configuration(folder, NUM_POLICIES)
    first = next(iter(full_pass.build(config).members.values()))
    return functools.partial(full_pass.one_pass, first.model), config


def operations_of(piece: Any, config: Any) -> tuple[Any, Sequence[Any]]:
    """A piece between two layers' attention in torch's own operations, and its inputs."""
    from torch._functorch.aot_autograd import aot_module_simplified
    from torch._inductor.decomposition import select_decomp_table
    from vllm.compilation.passes.inductor_pass import pass_context
    from vllm.compilation.passes.ir.inplace_functionalization import (
        VllmIRInplaceFunctionalizationPass,
    )
    from vllm.config import set_current_vllm_config

    captured = []

    def keep(graph: Any, inputs: Sequence[Any]) -> Any:
        captured.append((graph, inputs))
        return graph.forward

    inputs = [node.meta["example_value"] for node in piece.graph.nodes if node.op == "placeholder"]
    with set_current_vllm_config(config), pass_context(largest_steps(config)):
        VllmIRInplaceFunctionalizationPass(config)(piece.graph)
        aot_module_simplified(
            piece,
            inputs,
            fw_compiler=keep,
            inference_compiler=keep,
            decompositions=select_decomp_table(),
        )
    ((graph, inputs),) = captured
    return graph, inputs


def largest_steps(config: Any) -> Any:
    """The range of rows that vLLM compiles a pass for."""
    return config.compilation_config.get_compile_ranges()[-1]


def on_gpu(graph: Any, inputs: Sequence[Any]) -> list[Any]:
    """Makes all tensors of a graph claim to lie on a GPU; returns the inputs that do."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensor, in_kernel_invocation_manager
    from torch.fx.passes.fake_tensor_prop import FakeTensorProp

    device = torch.device("cuda", 0)
    mode = next(each.fake_mode for each in inputs if isinstance(each, FakeTensor))
    with in_kernel_invocation_manager(mode):
        there = [
            FakeTensor(mode, each.to("meta"), device) if isinstance(each, FakeTensor) else each
            for each in inputs
        ]
    for node in graph.graph.nodes:
        if node.kwargs.get("device") is not None:
            node.kwargs = {**node.kwargs, "device": device}
    FakeTensorProp(graph, mode).propagate_dont_convert_inputs(*there)
    return there


def compiled(graph: Any, inputs: Sequence[Any], config: Any) -> dict[str, int]:
    """The launches of a piece, by the names of Inductor's kernels and of operators."""
    from torch._guards import TracingContext, tracing
    from torch._inductor import config as inductor
    from torch._inductor.compile_fx import compile_fx_inner
    from torch._inductor.graph import GraphLowering
    from torch._inductor.virtualized import V
    from torch._subclasses.fake_tensor import FakeTensor
    from vllm.compilation.passes.inductor_pass import pass_context
    from vllm.compilation.passes.pass_manager import PostGradPassManager
    from vllm.config import set_current_vllm_config

    mode = next(each.fake_mode for each in inputs if isinstance(each, FakeTensor))
    passes = PostGradPassManager()
    passes.configure(config)
    codes: list[str] = []
    with (
        set_current_vllm_config(config),
        pass_context(largest_steps(config)),
        mock.patch.object(GraphLowering, "save_output_code", staticmethod(codes.append)),
        inductor.patch(post_grad_custom_post_pass=passes),
        tracing(TracingContext(mode)),
        V.set_fake_mode(mode),
    ):
        compile_fx_inner(graph, inputs)
    (code,) = codes
    calls = re.findall(r"^ +(?:\w+ = )?([\w.]+)\(", code[code.index("def call(") :], re.MULTILINE)
    launched = (re.sub(r"_\d+$", "", each.removesuffix(".run")) for each in calls)
    return Counter(
        each for each in launched if each.startswith(("triton_", "extern_kernels.", "torch.ops."))
    )


@contextlib.contextmanager
def pretended_device(kernels: list[dict[str, Any]]) -> Iterator[None]:
    """Within this context torch has an H200; kernels are compiled, kept here and never loaded."""
    import torch
    from torch._dynamo.device_interface import CudaInterface
    from torch._inductor import config as inductor
    from torch._inductor.runtime import triton_helpers, triton_heuristics
    from triton.runtime import driver

    from support.kernels.compilation import TARGETS, NoDevice, usage_of

    def keep(self: Any) -> None:
        for result in self.compile_results:
            usage = usage_of(result.kernel.asm["cubin"])
            name = re.sub(r"_\d+$", "", self.fn.__name__)
            kernels.append({"name": name, "registers": usage["REG"], "spilled": usage["STACK"]})
        self.launchers = [SimpleNamespace(config=None, n_regs=0, n_spills=0, shared=0)]

    answers = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "get_device_capability": lambda device=None: (9, 0),
        "get_device_properties": lambda device=None: H200,
        "synchronize": lambda device=None: None,
        "_lazy_init": lambda: None,
        "device": lambda *_: contextlib.nullcontext(),
        "_DeviceGuard": lambda *_: contextlib.nullcontext(),
        "get_rng_state": lambda *_: torch.zeros(16, dtype=torch.uint8),
        "set_rng_state": lambda *_: None,
    }
    interface = {
        "is_available": lambda: True,
        "current_device": lambda: 0,
        "get_compute_capability": lambda device=None: 90,
        "get_device_properties": lambda device=None: H200,
        "get_raw_stream": lambda device: 0,
        "is_triton_capable": lambda device=None: True,
        "raise_if_triton_unavailable": lambda device=None: None,
        "device": lambda *_: contextlib.nullcontext(),
    }
    worker = {
        "get_device_properties": lambda device=None: H200,
        "current_device": lambda: 0,
    }
    with contextlib.ExitStack() as stack:
        enter = stack.enter_context
        enter(mock.patch.multiple(torch.cuda, **answers))
        for owner, own in ((CudaInterface, interface), (CudaInterface.Worker, worker)):
            static = {name: staticmethod(answer) for name, answer in own.items()}
            enter(mock.patch.multiple(owner, **static))
        for module in list(sys.modules.values()):
            if getattr(module, "__name__", "").startswith(("torch._inductor", "torch.utils._t")):
                for name in {"has_triton", "is_triton_capable"} & vars(module).keys():
                    enter(mock.patch.object(module, name, return_value=True))
        enter(mock.patch.object(torch._C, "_cuda_getCurrentRawStream", return_value=0, create=True))
        enter(mock.patch.object(torch._subclasses.fake_tensor, "init_gpu_context"))
        enter(mock.patch.object(triton_helpers, "set_driver_to_gpu"))
        enter(mock.patch.object(triton_heuristics.CachingAutotuner, "_make_launchers", keep))
        enter(inductor.patch({"combo_kernels": False, "use_static_cuda_launcher": False}))
        driver.set_active(NoDevice(TARGETS["sm_90"]))
        yield


if __name__ == "__main__":
    main()

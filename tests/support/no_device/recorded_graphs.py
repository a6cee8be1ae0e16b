"""CUDA graphs of full steps on a CPU: vLLM's V2 model runner captures and replays recordings.

A recording is what a CUDA graph is: the operations of one pass with the tensors that they were
given and made. A replay runs them again on the same memory and no line of the model's Python.
The operator whose Python looks at the step is recorded from inside.

One thing is made anew in each replay: how a CPU's attention cuts its work into parts. It is
computed from the captured starts and lengths alone, as kernels on a GPU find it by themselves.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from vllm.config.compilation import CUDAGraphMode
from vllm.v1.attention.backends import cpu_attn
from vllm.v1.worker.gpu import cudagraph_utils

from prefmix.mixing.models import stacked_attention


class Recording(TorchDispatchMode):
    """Records within its context; `replay` runs what it holds again."""

    def __init__(self, plans: dict[int, dict[str, Any]]) -> None:
        super().__init__()
        self._plans = plans
        self._steps: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func._schema.name == "prefmix::stacked_attention":  # reads the step's context
            with self:
                return stacked_attention._stacked_attention(*args, **kwargs)
        out = func(*args, **kwargs)
        self._steps.append((func, args, kwargs, out))
        return out

    @torch.inference_mode()
    def replay(self) -> None:
        for func, args, kwargs, out in self._steps:
            args = tuple(self._planned(each) for each in args)
            kwargs = {name: self._planned(each) for name, each in kwargs.items()}
            again = func(*args, **kwargs)
            for new, old in zip(tree_leaves(again), tree_leaves(out), strict=True):
                if torch.is_tensor(new) and new.data_ptr() != old.data_ptr():
                    old.copy_(new)

    def _planned(self, value: Any) -> Any:
        if torch.is_tensor(value) and value.data_ptr() in self._plans:
            return cpu_attn.ops.cpu_attn_get_scheduler_metadata(**self._plans[value.data_ptr()])
        return value


@contextmanager
def replays(llm: Any, sizes: Sequence[int]) -> Iterator[Counter[int]]:
    """Within this context the replays of an engine's full graphs are counted, by their number of
    tokens. On a CPU the engine has recordings.

    Args:
      llm: an engine of this process, under the V2 model runner; on a CPU it is not compiled.
      sizes: numbers of tokens of graphs that a CPU is to have.
    """
    run = cudagraph_utils.CudaGraphManager.run_fullgraph
    found: Counter[int] = Counter()

    def counting(self: Any, desc: Any) -> None:
        found[desc.num_tokens] += 1
        run(self, desc)

    is_cpu = not torch.cuda.is_available()
    with (
        mock.patch.object(cudagraph_utils.CudaGraphManager, "run_fullgraph", counting),
        _recorded(llm, sizes) if is_cpu else nullcontext(),
    ):
        yield found


@contextmanager
def _recorded(llm: Any, sizes: Sequence[int]) -> Iterator[None]:
    """Within this context an engine on a CPU has full graphs of decode steps. Other steps are
    shaped as for graphs of pieces, and run without."""
    runner = llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker.model_runner
    compilation = runner.vllm_config.compilation_config
    make_plan = cpu_attn.ops.cpu_attn_get_scheduler_metadata
    plans: dict[int, dict[str, Any]] = {}
    kept: list[torch.Tensor] = []

    def plan(**given: Any) -> torch.Tensor:
        made: torch.Tensor = make_plan(**given)
        if is_capturing:
            plans[made.data_ptr()] = given
            kept.append(made)
        return made

    def capture(self: Any, create_forward_fn: Any, *_: Any) -> None:
        for desc in self._capture_descs[CUDAGraphMode.FULL]:
            create_forward_fn(desc, warmup=True)(CUDAGraphMode.NONE)
            forward = create_forward_fn(desc, warmup=False)
            with Recording(plans) as recording:
                forward(CUDAGraphMode.NONE)
            self.graphs[desc] = recording
        self._graphs_captured = True

    mode = CUDAGraphMode.FULL_AND_PIECEWISE
    before = runner.cudagraph_manager
    with (
        mock.patch.object(compilation, "cudagraph_capture_sizes", list(sizes)),
        mock.patch.object(compilation, "max_cudagraph_capture_size", max(sizes)),
        mock.patch.object(cudagraph_utils.current_platform, "get_global_graph_pool", nullcontext),
        mock.patch.object(cudagraph_utils.CudaGraphManager, "capture", capture),
        mock.patch.object(cudagraph_utils, "has_compiled_submodule", return_value=True),
        mock.patch.object(cpu_attn.ops, "cpu_attn_get_scheduler_metadata", plan),
    ):
        manager = cudagraph_utils.ModelCudaGraphManager(
            runner.vllm_config, runner.device, mode, runner.decode_query_len
        )
        is_capturing = True
        with torch.inference_mode():
            manager.capture(
                runner.model,
                runner.model_state,
                runner.input_buffers,
                runner.intermediate_tensors,
                runner.block_tables,
                runner.attn_groups,
                runner.kv_cache_config,
            )
        is_capturing = False
        runner.cudagraph_manager = manager
        try:
            yield
        finally:
            runner.cudagraph_manager = before
            if runner.model.weights.needed is not None:
                runner.model.weights.needed.graph_sizes = {}

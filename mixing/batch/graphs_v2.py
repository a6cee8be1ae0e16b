"""CUDA graphs of a shared trunk's steps, under vLLM's V2 model runner: each step replays the
smallest graph that has room for the rows that it needs (prefmix.mixing.batch.needed_rows_v2).

vLLM finds a graph by the number of a step's tokens. What it has found stays the step's shape to the
runner; only the replay is another one's.

Source of the hooks: vllm.v1.worker.gpu.cudagraph_utils.ModelCudaGraphManager (vLLM 0.32).
"""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any


def choose_graphs_by_rows() -> None:
    """Makes vLLM's manager tell a trunk about the graphs that it has captured, and replay those
    that its steps choose. May run repeatedly."""
    from vllm.v1.worker.gpu.cudagraph_utils import ModelCudaGraphManager

    capture, run_fullgraph = ModelCudaGraphManager.capture, ModelCudaGraphManager.run_fullgraph
    if hasattr(capture, "__wrapped__"):
        return

    @functools.wraps(capture)
    def captured(self: Any, model: Any, model_state: Any, *args: Any, **kwargs: Any) -> None:
        capture(self, model, model_state, *args, **kwargs)
        needed = getattr(getattr(model, "weights", None), "needed", None)
        if needed is not None:
            needed.graph_sizes = graph_sizes(self)
            needed.forget()
            self.prefmix_model = model

    @functools.wraps(run_fullgraph)
    def run(self: Any, desc: Any) -> Any:
        model = getattr(self, "prefmix_model", None)
        if model is None:
            return run_fullgraph(self, desc)
        needed = model.weights.needed
        tokens = needed.tokens_of_graph
        hidden = run_fullgraph(self, replace(desc, num_tokens=tokens, num_reqs=tokens))
        return model.spread_rows(hidden.view(needed.num_rows, -1), needed, desc.num_tokens)

    ModelCudaGraphManager.capture = captured
    ModelCudaGraphManager.run_fullgraph = run


def graph_sizes(manager: Any) -> dict[Any, list[int]]:
    """By kind of graph the numbers of tokens, ascending, that a manager has captured graphs of.

    Full graphs are those of steps of one token a request.
    """
    from vllm.config import CUDAGraphMode

    full = {each.num_tokens for each in manager.graphs if each.num_reqs == each.num_tokens}
    pieces = {each.num_tokens for each in manager._capture_descs.get(CUDAGraphMode.PIECEWISE, ())}
    found = {CUDAGraphMode.FULL: sorted(full), CUDAGraphMode.PIECEWISE: sorted(pieces)}
    return {mode: sizes for mode, sizes in found.items() if sizes}


def why_all_rows(model: Any, vllm_config: Any, *, has_positions: bool) -> str:
    """The reason for which a trunk's steps on a GPU run all members on all tokens, although
    attention takes the rows of all in one call; empty if they run what they need.

    Args:
      has_positions: true if the runner gives the model positions of its own kind.
    """
    from vllm.compilation.breakable_cudagraph import is_breakable_cudagraph_enabled

    reasons = [
        (has_positions, "tokens have several positions"),
        (not model.step.can_skip, "cached blocks are not kept apart by policy"),
        (
            vllm_config.parallel_config.data_parallel_size > 1,
            "replicas agree about the number of a step's rows",
        ),
        (is_breakable_cudagraph_enabled(), "breakable CUDA graphs hold whole steps"),
    ]
    return next((reason for holds, reason in reasons if holds), "")

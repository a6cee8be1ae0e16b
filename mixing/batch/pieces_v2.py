"""CUDA graphs of steps that leave policies out. Full checkpoints, under vLLM's V2 model runner.

A full graph replays a whole step, with all members. A compiled member also has graphs of its pieces
between its attention layers, and a step may replay those of any members: one capture serves every
set of them. vLLM takes pieces for steps with prompts only. Here it also takes them for steps of one
token a request that leave members out, if that is faster.

The rows' members are data of a shared trunk's graphs, so its steps choose among full ones
(prefmix.mixing.batch.graphs_v2).

Shapes: M members.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

_BYTES_A_SECOND = 4e12
"""Memory bandwidth of an H200. A slower device gains more by pieces than is assumed here."""
_LAYER_SECONDS = 60e-6
"""The host's time for a layer of a step in pieces: two launches of graphs, and attention's."""


class Pieces:
    """Chooses between a full graph and pieces. All ranks choose alike."""

    def __init__(self, bytes_M: Sequence[int], layers_M: Sequence[int]) -> None:
        """Args:
        bytes_M: bytes of parameters that each member reads.
        layers_M: layers with attention of each member.
        """
        self._device_seconds_M = np.array(bytes_M) / _BYTES_A_SECOND
        self._host_seconds_M = np.array(layers_M) * _LAYER_SECONDS

    def are_faster(self, active_M: Sequence[bool]) -> bool:
        """True if the active members' pieces take less time than a graph of all members."""
        active = np.array(active_M)
        device, host = self._device_seconds_M, self._host_seconds_M
        return bool(max(device[active].sum(), host[active].sum()) < device.sum())


def take_pieces() -> None:
    """Makes the runner ask `SlotWeights.takes_pieces` about each step. May run repeatedly."""
    from vllm.v1.worker.gpu.model_runner import GPUModelRunner

    original = GPUModelRunner.gather_batch_req_state
    if hasattr(original, "__wrapped__"):
        return

    @functools.wraps(original)
    def gathered(self: Any, scheduler_output: Any, dummy_run: bool) -> tuple[Any, int | None]:
        batch, tokens_each = original(self, scheduler_output, dummy_run)
        takes_pieces = getattr(getattr(self.model, "weights", None), "takes_pieces", None)
        if batch is not None and takes_pieces is not None and takes_pieces(batch.idx_mapping_np):
            tokens_each = None  # as of a step with prompts, which no full graph fits
        return batch, tokens_each

    GPUModelRunner.gather_batch_req_state = gathered


def pieces_of(model: Any, vllm_config: Any) -> Pieces | None:
    """The choice that an engine has; None if full graphs serve all its steps, or none does.

    Args:
      model: MixtureModel with its parameters.
    """
    step, compilation = model.step, vllm_config.compilation_config
    mode = compilation.cudagraph_mode
    if (
        step.num_members == 1
        or step.runs_everyone
        or not step.can_skip
        or not (mode.has_full_cudagraphs() and mode.has_piecewise_cudagraphs())
        # Ranks of data parallelism have steps of their own, and agree about graphs.
        or vllm_config.parallel_config.data_parallel_size > 1
    ):
        return None
    layers_M = [0] * step.num_members
    for name, layer in compilation.static_forward_context.items():
        if hasattr(layer, "kv_cache"):
            layers_M[model.member_of_layer(name)] += 1
    *own, shared = model.parameter_bytes()
    return Pieces([each + shared for each in own], layers_M)

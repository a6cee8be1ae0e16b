"""Rewinds the random generators of seeded requests on a CPU, where vLLM's own rewinding raises.

The defect: the V1 runner of vLLM 0.32 samples a token even for a prompt chunk that is not the last,
throws it away and rewinds the request's random generator by its CUDA offset. CPU generators have no
offset: a request with a `seed` and a prompt longer than one chunk raises in the worker, which ends
the server (vllm.v1.worker.gpu_model_runner.GPUModelRunner._bookkeeping_sync).

Here the generator's state is kept after every token that counts and restored after one that does
not. So a seed gives the same text however a prompt is cut into chunks.
Delete this file when that method no longer calls `set_offset`.
"""

from __future__ import annotations

import functools
import weakref
from typing import Any

import numpy as np
import torch

_PATCHED = "_prefmix_rewinds_cpu_generators"


def rewind_cpu_generators() -> None:
    """Wraps the CPU runner's bookkeeping. May run repeatedly."""
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner

    if getattr(CPUModelRunner, _PATCHED, False):
        return
    original = CPUModelRunner._bookkeeping_sync
    kept: weakref.WeakKeyDictionary[torch.Generator, torch.Tensor] = weakref.WeakKeyDictionary()

    @functools.wraps(original)
    def bookkeeping_sync(self: Any, *args: Any, **kwargs: Any) -> Any:
        batch = self.input_batch
        generators = batch.generators
        if not generators:
            return original(self, *args, **kwargs)
        discarded = set(np.flatnonzero(self.discard_request_mask.np[: batch.num_reqs]).tolist())
        settle_generators(generators, discarded, kept)
        batch.generators = {
            row: generator for row, generator in generators.items() if row not in discarded
        }
        try:
            return original(self, *args, **kwargs)
        finally:
            batch.generators = generators

    CPUModelRunner._bookkeeping_sync = bookkeeping_sync
    setattr(CPUModelRunner, _PATCHED, True)


def settle_generators(
    generators: dict[int, torch.Generator],
    discarded: set[int],
    kept: weakref.WeakKeyDictionary[torch.Generator, torch.Tensor],
) -> None:
    """Keeps the generators' states that count after a step's draws, and rewinds the others.

    Args:
      generators: batch row -> the generator of a request with a seed.
      discarded: rows whose token of this step is thrown away.
      kept: generator -> its state after the last token that counts; updated in place.
    """
    for row, generator in generators.items():
        if row not in discarded:
            kept[generator] = generator.get_state()
        elif generator in kept:
            generator.set_state(kept[generator])
        else:
            generator.manual_seed(generator.initial_seed())

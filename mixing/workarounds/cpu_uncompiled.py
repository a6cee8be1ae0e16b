"""Runs a function on a CPU as it is where torch cannot compile it.

The defect: vLLM 0.32 compiles a few functions at their first use, whatever `enforce_eager` says.
One of them counts ranks for the first request that asks for log-probabilities. Without a C++
compiler, or with torch in a folder whose path has a space, that request ends the engine.
Compiling the model itself still fails at the start, because vLLM asks for it as one graph.
Delete this file when `vllm.v1.sample.ops.logprobs` compiles nothing under `enforce_eager`.
"""

from __future__ import annotations

import torch._dynamo


def run_uncompiled_on_errors() -> None:
    """Makes errors of torch.compile warnings in this process. May run repeatedly."""
    torch._dynamo.config.suppress_errors = True

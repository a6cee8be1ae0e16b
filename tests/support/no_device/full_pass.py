"""Traces a step of full checkpoints on a GPU, on tensors without memory, and counts its launches.

    PYTHONPATH=tests .venv/bin/python tests/support/no_device/full_pass.py FOLDER [K]

FOLDER gets tiny checkpoints. Prints one JSON object: the pieces of each member's compiled graph,
and the kernels from the members' hidden states to checked logits.
"""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np

from support.no_device import fake_gpu, gpu_pass
from support.no_device.counting import count


def main() -> None:
    folder, num_members = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 3
    fake_gpu.install()
    config = configuration(folder, num_members)
    graphs = config.compilation_config.cudagraph_mode.name
    report: dict[str, Any] = {"v2": config.use_v2_model_runner, "graphs": graphs}
    model = build(config)
    report["members"] = [
        gpu_pass.trace_of(functools.partial(one_pass, member.model), config)
        for member in model.members.values()
    ]
    with mock.patch("prefmix.mixing.models.lm_heads._agree", return_value=True):
        report["plain_heads"] = len(model.plain_heads)  # once a start, by a product of numbers
    report["logits"] = count(lambda: gpu_pass.logits(model, num_members))
    report["measured"] = count(lambda: measured_logits(model, num_members))
    print(json.dumps(report))


def measured_logits(model: Any, num_members: int, num_rows: int = 8) -> dict[str, int]:
    """The same in a step whose tokens are measured, and their statistics."""
    import torch

    from prefmix.mixing.batch.statistics import MixtureStatisticsCollector
    from prefmix.mixing.kernels import mixture_statistics_triton
    from prefmix.mixing.kernels.outputs import empty_outputs

    requests = [SimpleNamespace(measured_as="key", mixes_parameters=False)] * num_rows
    model.step.statistics = MixtureStatisticsCollector(model, every=0)
    found = empty_outputs(torch.empty(num_rows, num_members, device="meta"), num_members)
    kernel = mock.Mock(return_value=found)
    with mock.patch.object(mixture_statistics_triton, "figures_of_tokens", kernel):
        launches = gpu_pass.logits(model, num_members, num_rows, requests=requests)
        tokens_N1 = torch.zeros(num_rows, 1, dtype=torch.int64, device="meta")
        names = [str(row) for row in range(num_rows)]
        model.step.statistics.measure_tokens(tokens_N1, names, np.ones(num_rows, dtype=bool))
    return {**launches, "mixture_statistics": kernel.call_count}


def one_pass(model: Any, ids: Any, positions: Any) -> Any:
    """A member's part that vLLM compiles, with what its first rank gives it."""
    return model.forward(ids, positions, None)


def configuration(folder: Path, num_members: int) -> Any:
    """vLLM's configuration of the engine."""
    from vllm.engine.arg_utils import EngineArgs

    from prefmix.mixing.engine import plugin
    from prefmix.mixing.spec import MixtureSpec, Policy, hf_overrides
    from support.checkpoints.tiny_policies import save_policy

    plugin.register()
    policies = []
    for index in range(num_members):
        own = save_policy(folder / f"p{index}", seed=index, hidden=256, layers=gpu_pass.LAYERS)
        policies.append(Policy(name=own.name, model=str(own)))
    args = EngineArgs(
        model=policies[0].model,
        hf_overrides=hf_overrides(MixtureSpec(policies=tuple(policies))),
        dtype="bfloat16",
        max_model_len=256,
        attention_backend="FLASH_ATTN",
    )
    return args.create_engine_config()


def build(config: Any) -> Any:
    """The members without memory."""
    import torch

    from prefmix.mixing.models import full_checkpoints, loading

    with (
        gpu_pass.without_memory(config),
        mock.patch.object(loading, "built", lambda make: make()),
        torch.device("meta"),
    ):
        return full_checkpoints.LogLinearMixtureForCausalLM(vllm_config=config)


if __name__ == "__main__":
    main()

"""The steps of a trial. Each runs in a fork: vLLM and transformers do not meet in one process."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from architectures.checkpoints import save_adapter, save_random
from prefmix.mixing.spec import MixtureSpec, Policy
from support.engines import EngineFactory
from support.exactness import Job, Oracle, generate
from support.exactness import served as served_by

OPTIONS = {"max_num_batched_tokens": 64, "max_num_seqs": 16, "block_size": 32}
"""Prompts are longer than a step and a block: they are prefilled in chunks."""


def build(model_type: str, settings: Mapping[str, Any], folders: Sequence[Path]) -> None:
    """Writes checkpoints that differ in their seed."""
    for seed, folder in enumerate(folders):
        save_random(folder, model_type, settings, seed=seed)


def effect(folders: Sequence[Path]) -> float:
    """The mean absolute difference of two checkpoints' log-probabilities, in nats."""
    one, other = Oracle(folders).logits(range(2, 66)).log_softmax(-1).unbind(dim=1)
    assert one.isfinite().all(), "transformers computes NaN"
    return float((one - other).abs().mean())


def adapters(base: Path, folders: Sequence[Path], left_out: Collection[str]) -> list[str]:
    """Writes adapters and merged checkpoints. Returns: the kinds of layers that are adapted."""
    kinds: list[str] = []
    for seed, folder in enumerate(folders):
        folder.mkdir(exist_ok=True)
        kinds = save_adapter(folder, base, seed=seed + 10, left_out=left_out)
    return kinds


def trunk_spec(base: Path, folders: Sequence[Path]) -> MixtureSpec:
    """The mixture of the adapters that `adapters` wrote."""
    policies = tuple(Policy(name=folder.name, model=str(folder / "adapter")) for folder in folders)
    return MixtureSpec(policies=policies, base=str(base))


def plain(folder: Path, jobs: Sequence[Job], flags: Mapping[str, Any]) -> Any:
    """The answers of vLLM without a mixture."""
    # vLLM itself cannot draw by a request's seed on a CPU: "CPU Generator does not use offset".
    return _answers(_engine(folder, **flags), [replace(job, seed=None) for job in jobs])


def mixed(spec: MixtureSpec, jobs: Sequence[Job], flags: Mapping[str, Any]) -> Any:
    """The answers of a mixture."""
    return _answers(_engine(spec, **flags), jobs)


def errors(folders: Sequence[Path], jobs: Sequence[Job], served: Any) -> float:
    """The largest error of a log-probability against transformers."""
    oracle = Oracle(folders)
    return max(
        float(np.abs(oracle.errors(job, tokens, logprobs)).max())
        for job, (tokens, logprobs) in zip(jobs, served, strict=True)
    )


def all_logprobs(
    folder: Path, jobs: Sequence[Job], served: Any, path: Path, flags: Mapping[str, Any]
) -> None:
    """Writes plain vLLM's log-probabilities of all tokens, at each place of the answers."""
    from vllm import SamplingParams

    llm = _engine(folder, max_logprobs=-1, **flags)
    prompts = [
        {"prompt_token_ids": [*job.prompt, *tokens]}
        for job, (tokens, _) in zip(jobs, served, strict=True)
    ]
    params = SamplingParams(max_tokens=1, prompt_logprobs=-1)
    rows = []
    for job, output in zip(jobs, llm.generate(prompts, params, use_tqdm=False), strict=True):
        for step in output.prompt_logprobs[len(job.prompt) :]:
            rows.append([step[token].logprob for token in range(len(step))])
    np.save(path, np.asarray(rows, dtype=np.float64))


def _engine(served: MixtureSpec | Path, **options: Any) -> Any:
    from vllm.model_executor.models import registry

    # vLLM imports a model's class in a process of its own, lest it should open a CUDA device.
    registry._run_in_subprocess = lambda look: look()
    torch.set_num_threads(1)
    return EngineFactory(max_alive=1)(served, **OPTIONS, **options)


def _answers(llm: Any, jobs: Sequence[Job]) -> list[tuple[list[int], list[float]]]:
    return [served_by(output.outputs[0]) for output in generate(llm, jobs)]

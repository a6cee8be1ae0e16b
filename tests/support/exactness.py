"""Compares an engine's log-probabilities with those that transformers computes.

A `Job` is one request; `worst_error` runs every member over the tokens that the engine produced and
mixes them with `prefmix.mixing.reference`, in float64: the largest error of a log-probability, in
nats.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from prefmix.mixing import wire
from prefmix.mixing.reference import mixture_logprobs_reference
from prefmix.mixing.ways_to_mix import MIXINGS, Mixing

TOLERANCE_NATS = 2e-3 if torch.cuda.is_available() else 1e-4
"""float32 engine against float32 transformers: the promise to users on a GPU, whose attention may
multiply in TF32; a twentieth of it on a CPU."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One request: prompt token ids, weights in member order, way to mix, tokens to generate."""

    prompt: tuple[int, ...]
    weights: tuple[float, ...]
    mixing: Mixing = "logits"
    max_tokens: int = 12
    seed: int | None = 0
    heads: tuple[tuple[int, ...] | None, ...] | None = None
    """The members' own beginnings of the prompt, the longest of which `prompt` begins with."""

    def prompt_of(self, member: int) -> tuple[int, ...]:
        """The prompt that a member reads."""
        head = None if self.heads is None else self.heads[member]
        if self.heads is None or head is None:
            return self.prompt
        return head + self.prompt[max(len(each) for each in self.heads if each is not None) :]


def random_jobs(
    num_jobs: int, *, num_members: int, vocab_size: int, seed: int, longest: int = 150
) -> list[Job]:
    """Requests of mixed length and weights: one-hot, with zeros, uniform, and anything between."""
    rng = np.random.default_rng(seed)
    shared_prefix = tuple(int(token) for token in rng.integers(2, vocab_size, size=longest // 2))
    jobs = []
    for index in range(num_jobs):
        weights = rng.dirichlet(np.full(num_members, 0.7))
        if index % 4 == 0:
            weights = np.eye(num_members)[rng.integers(num_members)]
        elif index % 4 == 1 and num_members > 1:
            weights[rng.integers(num_members)] = 0.0
        length = int(rng.integers(1, longest if index % 3 else 8))
        own = tuple(int(token) for token in rng.integers(2, vocab_size, size=length))
        jobs.append(
            Job(
                prompt=shared_prefix + own[:20] if index % 5 == 0 else own,
                weights=tuple(float(weight) for weight in weights / weights.sum()),
                max_tokens=int(rng.integers(4, 48)),
                seed=index,
            )
        )
    return jobs


def with_drawn_heads(job: Job, *, vocab_size: int, seed: int) -> Job:
    """The same request with a random beginning of its own for each policy with weight."""
    rng = np.random.default_rng(seed)
    heads = tuple(
        tuple(map(int, rng.integers(2, vocab_size, size=int(rng.integers(0, 50)))))
        if weight
        else None
        for weight in job.weights
    )
    longest = max((each for each in heads if each is not None), key=len)
    return replace(job, prompt=longest + job.prompt, heads=heads)


def both_ways(jobs: Sequence[Job]) -> list[Job]:
    """The same requests, of which every second mixes parameters."""
    return [replace(job, mixing=MIXINGS[index % 2]) for index, job in enumerate(jobs)]


def generate(llm: Any, jobs: Sequence[Job], **sampling: Any) -> list[Any]:
    """Runs all jobs at once through a vLLM `LLM`, by default sampled at temperature 1."""
    from vllm import SamplingParams

    settings = {"temperature": 1.0, "logprobs": 0, "ignore_eos": True, **sampling}
    params = [
        SamplingParams(
            max_tokens=job.max_tokens,
            seed=job.seed,
            extra_args=wire.to_extra_args(job.weights, job.mixing, job.heads),
            **settings,
        )
        for job in jobs
    ]
    prompts = [{"prompt_token_ids": list(job.prompt)} for job in jobs]
    return llm.generate(prompts, params, use_tqdm=False)


class Oracle:
    """The members of a mixture in plain transformers."""

    def __init__(self, folders: Iterable[Path], *, dtype: torch.dtype = torch.float32) -> None:
        self.models = [
            AutoModelForCausalLM.from_pretrained(
                folder, dtype=dtype, attn_implementation="eager"
            ).eval()
            for folder in folders
        ]

    @torch.no_grad()
    def logits(self, tokens: Sequence[int]) -> torch.Tensor:
        """float32 [T, M, V] raw logits after each of T tokens, cut to the smallest vocabulary."""
        ids = torch.tensor([list(tokens)])
        logits = [model(ids).logits[0].float() for model in self.models]
        common = min(member.shape[-1] for member in logits)
        return torch.stack([member[:, :common] for member in logits], dim=1)

    @torch.no_grad()
    def averaged(self, weights: Sequence[float]) -> torch.nn.Module:
        """A model whose parameters are the members' weighted mean."""
        model = copy.deepcopy(self.models[0])
        own = [dict(each.named_parameters()) for each in self.models]
        for name, parameter in model.named_parameters():
            terms = [
                weight * each[name].double() for weight, each in zip(weights, own, strict=True)
            ]
            parameter.copy_(sum(terms))
        return model

    @torch.no_grad()
    def logprobs(
        self, tokens: Sequence[int], weights: Sequence[float], mixing: Mixing = "logits"
    ) -> torch.Tensor:
        """float64 [T, V] log-probabilities of the mixture after each of T tokens."""
        if mixing == "parameters":
            ids = torch.tensor([list(tokens)])
            return self.averaged(weights)(ids).logits[0].double().log_softmax(dim=-1)
        weights_TM = torch.tensor([list(weights)] * len(tokens), dtype=torch.float64)
        return mixture_logprobs_reference(self.logits(tokens), weights_TM)

    @torch.no_grad()
    def prompted_logprobs(self, job: Job, tokens: Sequence[int]) -> torch.Tensor:
        """float64 [T + 1, V] of the mixture before each of T drawn tokens and after the last, each
        member after its own prompt."""
        logits = []
        for member, model in enumerate(self.models):
            ids = torch.tensor([[*job.prompt_of(member), *tokens]])
            logits.append(model(ids).logits[0, -len(tokens) - 1 :].float())
        weights_TM = torch.tensor([list(job.weights)] * len(logits[0]), dtype=torch.float64)
        return mixture_logprobs_reference(torch.stack(logits, dim=1), weights_TM)

    def errors(self, job: Job, tokens: Sequence[int], logprobs: Sequence[float]) -> np.ndarray:
        """Served minus true log-probability of each generated token, in nats."""
        if job.heads is None:
            expected = self.logprobs((*job.prompt, *tokens), job.weights, job.mixing)
        else:
            expected = self.prompted_logprobs(job, tokens)
        first = len(expected) - len(tokens) - 1
        truth = [expected[first + step, token].item() for step, token in enumerate(tokens)]
        return np.asarray(logprobs) - np.asarray(truth)

    def worst_error(self, jobs: Sequence[Job], outputs: Sequence[Any]) -> float:
        """The largest absolute error over all tokens of all completions of all jobs."""
        worst = 0.0
        for job, output in zip(jobs, outputs, strict=True):
            for completion in output.outputs:
                assert completion.token_ids, "an empty completion proves nothing"
                worst = max(worst, np.abs(self.errors(job, *served(completion))).max())
        return float(worst)


def served(completion: Any) -> tuple[list[int], list[float]]:
    """(tokens, their log-probabilities) of one vLLM completion."""
    tokens = list(completion.token_ids)
    steps = zip(tokens, completion.logprobs, strict=True)
    return tokens, [step[token].logprob for token, step in steps]


def rounding_errors(
    folders: Sequence[Path], jobs: Sequence[Job], outputs: Sequence[Any], *, dtype: torch.dtype
) -> tuple[float, float]:
    """Root mean square errors in `dtype` against float32 truth: (engine's, transformers' own)."""
    exact, rounded = Oracle(folders), Oracle(folders, dtype=dtype)
    engine_errors, transformers_errors = [], []
    for job, output in zip(jobs, outputs, strict=True):
        tokens, logprobs = served(output.outputs[0])
        engine_errors.append(exact.errors(job, tokens, logprobs))
        after = rounded.logprobs((*job.prompt, *tokens), job.weights)[len(job.prompt) - 1 :]
        own = [after[step, token].item() for step, token in enumerate(tokens)]
        transformers_errors.append(exact.errors(job, tokens, own))
    engine, transformers = (
        float(np.sqrt(np.mean(np.concatenate(errors) ** 2)))
        for errors in (engine_errors, transformers_errors)
    )
    return engine, transformers

"""The contestants' classes: the ways to answer from K policies, each in a process of its own.

`prefmix.bench.contestants.worker` makes one from the settings that
`prefmix.bench.contestants.settings` writes. vLLM and transformers are imported only then.

Shapes: B requests, K policies, V vocabulary.
"""

from __future__ import annotations

import itertools
import math
import random
import time
from collections.abc import Mapping, Sequence
from typing import Any

from prefmix.bench.contestants.dummy_format import DUMMY
from prefmix.bench.contestants.job import Job
from prefmix.bench.contestants.vllm_start import mixture_of, start_vllm
from prefmix.bench.contestants.worker import Worker
from prefmix.mixing import wire
from prefmix.mixing.ways_to_mix import Mixing


class Contestant:
    """Base of all contestants: times a job, and checks that it is complete."""

    def draw(self, job: Job) -> list[list[int]]:
        """Answers every request of the job; returns the tokens of each."""
        raise NotImplementedError

    def answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Runs the job of a request from the parent; returns the seconds that it took, and those of
        this process's processor time."""
        job = Job.from_dict(request["job"])
        begin, cpu_begin = time.perf_counter(), time.process_time()
        tokens = self.draw(job)
        seconds, cpu_seconds = time.perf_counter() - begin, time.process_time() - cpu_begin
        lengths = [len(row) for row in tokens]
        assert lengths == list(job.lengths), f"drew {lengths} tokens, not {job.lengths}"
        return {"seconds": seconds, "cpu_seconds": cpu_seconds}


class VllmEngine(Contestant):
    """vLLM in this process: one model, a mixture, or one model with an adapter for each request."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._is_mixture = mixture_of(settings) is not None
        self._mixings: list[Mixing] = settings.get("mixings", ["logits"])
        self._adapters: list[str] = settings.get("adapters", [])
        self.llm = start_vllm(settings)

    def draw(self, job: Job) -> list[list[int]]:
        """One call of `LLM.generate`."""
        from vllm import SamplingParams

        mixings = itertools.cycle(self._mixings)
        heads: Sequence[Any] = job.heads or [None] * len(job.prompts)
        prompts = job.prompts if job.heads is None else job.with_longest_head().prompts
        params = [
            SamplingParams(
                temperature=1.0,
                max_tokens=length,
                ignore_eos=True,
                extra_args=wire.to_extra_args(weights_K, mixing, heads_K)
                if self._is_mixture
                else None,
            )
            for length, weights_K, heads_K, mixing in zip(
                job.lengths, job.weights, heads, mixings, strict=False
            )
        ]
        outputs = self.llm.generate(
            [{"prompt_token_ids": list(prompt)} for prompt in prompts],
            params,
            use_tqdm=False,
            lora_request=self._lora_requests(len(job.prompts)),
        )
        return [list(output.outputs[0].token_ids) for output in outputs]

    def _lora_requests(self, batch: int) -> list[Any] | None:
        if not self._adapters:
            return None
        from vllm.lora.request import LoRARequest

        return [
            LoRARequest(f"a{index}", index + 1, self._adapters[index])
            for index in (row % len(self._adapters) for row in range(batch))
        ]


class NextTokenEngine:
    """One of K separate engines, which lists the likeliest next tokens of each text so far."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._llm = start_vllm(settings)
        self._num_logprobs: int = settings["top_logprobs"]

    def answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """(token, log-probability) of the most likely continuations of each text."""
        from vllm import SamplingParams

        params = SamplingParams(max_tokens=1, logprobs=self._num_logprobs, detokenize=False)
        prompts = [{"prompt_token_ids": list(context)} for context in request["contexts"]]
        outputs = self._llm.generate(prompts, params, use_tqdm=False)
        return {
            "logprobs": [
                [(token, entry.logprob) for token, entry in output.outputs[0].logprobs[0].items()]
                for output in outputs
            ]
        }


class SeparateEngines(Contestant):
    """K engines, each with one policy in its own process, combined from outside token by token.

    Each step asks all K at once for the log-probabilities of the most likely next tokens, mixes
    them, draws one token and appends it. The engines keep their prefix cache, so that a step
    recomputes only the tokens since the last full cache block. A token outside an engine's list
    counts as its least likely listed token: the mixture is not exact.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        kind = f"{__name__}:{NextTokenEngine.__name__}"
        engines = [{**settings, "kind": kind, "model": model} for model in settings["models"]]
        self._workers = [Worker(engine) for engine in engines]
        for worker in self._workers:
            worker.wait_started()
        self._random = random.Random(0)

    def draw(self, job: Job) -> list[list[int]]:
        """Asks the engines once per token of the longest request."""
        texts = [list(prompt) for prompt in job.prompts]
        for step in range(max(job.lengths)):
            rows = [row for row, length in enumerate(job.lengths) if step < length]
            question = {"contexts": [texts[row] for row in rows]}
            for worker in self._workers:
                worker.send(question)
            answers = [worker.receive()["logprobs"] for worker in self._workers]
            for position, row in enumerate(rows):
                lists_K = [dict(answer[position]) for answer in answers]
                texts[row].append(draw_mixed(lists_K, job.weights[row], self._random))
        return [text[len(prompt) :] for text, prompt in zip(texts, job.prompts, strict=True)]


def draw_mixed(
    lists_K: Sequence[Mapping[int, float]], weights_K: Sequence[float], rng: random.Random
) -> int:
    """Draws a token from the log-linear mixture of K truncated lists of log-probabilities."""
    tokens = sorted(set().union(*lists_K))
    floors_K = [min(listed.values()) for listed in lists_K]
    scores = [
        sum(
            weight * listed.get(token, floor)
            for weight, listed, floor in zip(weights_K, lists_K, floors_K, strict=True)
        )
        for token in tokens
    ]
    highest = max(scores)
    return rng.choices(tokens, [math.exp(score - highest) for score in scores])[0]


class PromptsOutside(Contestant):
    """One engine of one model, of which each step asks for every prompt of a text at once.

    The answers are mixed outside, token by token, as SeparateEngines does; a prefix cache keeps
    what was computed.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._engine = NextTokenEngine(settings)
        self._random = random.Random(0)

    def draw(self, job: Job) -> list[list[int]]:
        """Asks the engine once per token of the longest request."""
        assert job.heads is not None, "each policy has a prompt of its own"
        drawn: list[list[int]] = [[] for _ in job.prompts]
        for step in range(max(job.lengths)):
            rows = [row for row, length in enumerate(job.lengths) if step < length]
            contexts = [
                [*head, *job.prompts[row], *drawn[row]] for row in rows for head in job.heads[row]
            ]
            listed = self._engine.answer({"contexts": contexts})["logprobs"]
            answers = iter(listed)
            for row in rows:
                lists_K = [dict(next(answers)) for _ in job.heads[row]]
                drawn[row].append(draw_mixed(lists_K, job.weights[row], self._random))
        return drawn


class TransformersLoop(Contestant):
    """K transformers models in one Python loop, like the published code of MOD and proxy tuning.

    The batch is static, with one KV cache per model: every step runs all K models on the batch's
    newest tokens, mixes their logits and draws. Finished requests stay until the batch is finished.
    Without batches, requests are answered one after another.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        import torch

        self._is_batched: bool = settings["is_batched"]
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._models = [
            _transformers_model(model, settings["options"], device=self._device).eval()
            for model in settings["models"]
        ]

    def draw(self, job: Job) -> list[list[int]]:
        """Answers prompts of one length only, so that there is no padding."""
        if self._is_batched:
            return self._draw_batch(job)
        return [row for one in job.split() for row in self._draw_batch(one)]

    def _draw_batch(self, job: Job) -> list[list[int]]:
        import torch

        with torch.inference_mode():
            ids = torch.tensor(job.prompts, device=self._device)
            weights_BK = torch.tensor(job.weights, device=self._device)
            caches: list[Any] = [None] * len(self._models)
            drawn = []
            for _ in range(max(job.lengths)):
                mixed_BV: Any = 0.0
                for index, model in enumerate(self._models):
                    out = model(
                        ids, past_key_values=caches[index], use_cache=True, logits_to_keep=1
                    )
                    caches[index] = out.past_key_values
                    mixed_BV = mixed_BV + weights_BK[:, index, None] * out.logits[:, -1].float()
                ids = torch.multinomial(torch.softmax(mixed_BV, dim=-1), 1)
                drawn.append(ids)
            tokens = torch.cat(drawn, dim=1).tolist()
        return [row[:length] for row, length in zip(tokens, job.lengths, strict=True)]


def _transformers_model(model: str, options: Mapping[str, Any], *, device: str) -> Any:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    dtype, load_format = getattr(torch, options["dtype"]), options.get("load_format")
    if load_format == DUMMY:
        with torch.device(device):
            config = AutoConfig.from_pretrained(model, trust_remote_code=False)
            return AutoModelForCausalLM.from_config(config, dtype=dtype)
    return AutoModelForCausalLM.from_pretrained(
        model,
        dtype=dtype,
        use_safetensors=load_format == "safetensors" or None,
        trust_remote_code=False,
    ).to(device)

"""vLLM in this process, as an engine that draws and scores responses.

Scoring under one policy alone is a request with one-hot weights and prompt logprobs: the engine
then runs that policy only, at the price of plain vLLM.

Shapes: M members of the mixture (policies, then the reference if there is one).
"""

from __future__ import annotations

import math
import os
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from prefmix.mixing import wire
from prefmix.mixing.spec import MixtureSpec, hf_overrides
from prefmix.mixing.system_texts import with_system
from prefmix.mixing.ways_to_mix import Mixing
from prefmix.weights.engines.engine import Figures, Response
from prefmix.weights.engines.errors import EngineError
from prefmix.weights.engines.member_prompts import (
    MemberPrompts,
    PromptTokens,
    Tokens,
    as_engine_takes,
    check_systems,
)
from prefmix.weights.engines.prompts import Prompt
from prefmix.weights.engines.whole_steps import nothing_left_behind

CPU_KV_CACHE = "VLLM_CPU_KVCACHE_SPACE"
"""vLLM's variable for the size of the KV cache on a CPU; it wins over the engine argument."""

CPU_KV_CACHE_GIB = "1"
"""The size in GiB if none is given; vLLM would take 92 % of the machine's memory."""


def set_environment() -> None:
    """Sets vLLM's environment for a batch job; call before vLLM is imported. Set variables stay."""
    for name, value in {
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        # The engine then runs in this process, so that an interrupted fit leaves none behind.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    }.items():
        os.environ.setdefault(name, value)


class LocalEngine:
    """vLLM in this process."""

    def __init__(
        self,
        llm: Any,
        *,
        chat_options: Mapping[str, Any] | None = None,
        systems_M: Sequence[str | None] = (),
    ) -> None:
        """Checks the engine (prefmix.mixing.engine.self_check).

        Args:
          llm: a `vllm.LLM` that runs the mixture.
          chat_options: arguments of its `chat` that conversations are written with.
          systems_M: the system message that each member reads before every conversation, None for a
            member without; empty if none has one.
        Raises: EngineError if a policy, or the mixture, cannot be served as it should, or the chat
          template does not carry a system message.
        """
        self.llm = llm
        self.chat_options = dict(chat_options or {})
        self.systems_M = tuple(systems_M)
        self._measures = False
        llm.collective_rpc("prefmix_check_rows")
        _check(llm)
        try:
            check_systems(self.chat_tokens, [text for text in self.systems_M if text])
        except EngineError:
            llm.llm_engine.engine_core.shutdown()
            raise

    @classmethod
    def start(cls, spec: MixtureSpec, **options: Any) -> LocalEngine:
        """Starts vLLM on a mixture.

        Args:
          spec: the mixture.
          options: any of vLLM's engine arguments.
        """
        set_environment()
        os.environ.setdefault(CPU_KV_CACHE, CPU_KV_CACHE_GIB)
        from vllm import LLM

        from prefmix.mixing.checkpoints.text_files import default_files

        first = spec.checkpoints[0]
        mixture = {
            "model": first.model,
            "revision": first.revision,
            "hf_overrides": hf_overrides(spec),
            **default_files(spec),
        }
        return cls(LLM(**{**options, **mixture}))

    def tokenize(self, prompts: Sequence[Prompt]) -> list[PromptTokens]:
        """Prompt tokens, chat template applied; by member where a policy has a system message.

        Raises: EngineError for a text, which has no place for a system message.
        """
        encode = self.llm.get_tokenizer().encode
        found: list[PromptTokens] = []
        for prompt in prompts:
            if prompt.text is None:
                found.append(self.chat_prompts(prompt.messages or ()))
                continue
            if any(self.systems_M):
                raise EngineError(
                    f"prompt {prompt.id!r} is a text, and the policies' system messages stand in "
                    "conversations; give it as messages, or drop the policies' prompts"
                )
            found.append(tuple(encode(prompt.text)))
        return found

    def chat_prompts(self, messages: Sequence[Mapping[str, Any]]) -> PromptTokens:
        """The tokens of a conversation, by member where a policy has a system message."""
        if not any(self.systems_M):
            return self.chat_tokens(messages)
        return MemberPrompts(
            tuple(
                self.chat_tokens(messages if text is None else with_system(text, messages))
                for text in self.systems_M
            )
        )

    def chat_tokens(
        self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True
    ) -> Tokens:
        """The tokens of a conversation, as vLLM's `chat` and the server write it.

        transformers' own method would leave the parts of a message's content as they are.
        """
        return self.written(
            messages, add_generation_prompt=add_generation_prompt, **self.chat_options
        )

    def written(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> Tokens:
        """The tokens of a conversation. Args: options: of vLLM's `chat`, on how it is written."""
        (found,) = self.llm._preprocess_chat([list(messages)], **options)
        return tuple(found["prompt_token_ids"])

    def sample(
        self,
        prompts: Sequence[PromptTokens],
        weights_M: Sequence[float],
        *,
        num_responses: int,
        max_tokens: int,
        seed: int,
        mixing: Mixing = "logits",
    ) -> list[list[Response]]:
        """`num_responses` responses to each prompt at temperature 1, with their figures if logits
        are mixed."""
        from vllm import SamplingParams

        # Where parameters are mixed no policy runs as itself, so there is nothing to measure.
        is_measured = mixing == "logits"
        if is_measured and not self._measures:
            self.llm.collective_rpc("prefmix_start_statistics", args=(0,))
            self._measures = True
        keys = [uuid.uuid4().hex for _ in prompts]
        taken = [as_engine_takes(prompt, weights_M) for prompt in prompts]
        params = [
            SamplingParams(
                n=num_responses,
                temperature=1.0,
                max_tokens=max_tokens,
                logprobs=0,
                seed=seed + index * num_responses,
                detokenize=False,
                extra_args={
                    **wire.to_extra_args(weights_M, mixing, heads_M),
                    **({wire.MEASURE_KEY: key} if is_measured else {}),
                },
            )
            for index, (key, (_, heads_M)) in enumerate(zip(keys, taken, strict=True))
        ]
        outputs = self._generate([tokens for tokens, _ in taken], params)
        # All tokens at once: vLLM would decode them one by one.
        decode = self.llm.get_tokenizer().decode
        return [
            [
                Response(
                    tokens=tuple(answer.token_ids),
                    logprob=answer.cumulative_logprob,
                    text=decode(list(answer.token_ids), skip_special_tokens=True),
                    figures=figures.get(answer.index),
                )
                for answer in output.outputs
            ]
            for output, figures in zip(outputs, map(self._figures, keys), strict=True)
        ]

    def _figures(self, key: str) -> dict[int, Figures]:
        """The figures of a prompt's responses by their index."""
        answers = self.llm.collective_rpc("prefmix_take_request", args=(key,))
        # Ranks that do not gather logits answer nothing.
        found: dict[str, Any] = next((answer for answer in answers if answer), {})
        return {_index_of(req_id): _summed(rows) for req_id, rows in found.items()}

    def score(
        self,
        pairs: Sequence[tuple[PromptTokens, Tokens]],
        weights_M: Sequence[float],
        *,
        mixing: Mixing = "logits",
    ) -> list[float]:
        """Log-probability of each (prompt, response) pair's response, in nats."""
        return [sum(logprobs) for logprobs in self.score_tokens(pairs, weights_M, mixing=mixing)]

    def score_tokens(
        self,
        pairs: Sequence[tuple[PromptTokens, Tokens]],
        weights_M: Sequence[float],
        *,
        mixing: Mixing = "logits",
    ) -> list[list[float]]:
        """Log-probability of each token of each (prompt, response) pair's response, in nats.

        Raises: EngineError if members with weight read different prompts, under which the tokens
          of one text have no probability.
        """
        from vllm import SamplingParams

        params = SamplingParams(
            max_tokens=1,
            prompt_logprobs=0,
            detokenize=False,
            extra_args=wire.to_extra_args(weights_M, mixing),
        )
        taken = [as_engine_takes(prompt, weights_M) for prompt, _ in pairs]
        if any(heads_M is not None for _, heads_M in taken):
            raise EngineError(
                "responses are scored under one policy each where policies have prompts of their "
                "own; give one policy all the weight"
            )
        read = [(tokens, response) for (tokens, _), (_, response) in zip(taken, pairs, strict=True)]
        outputs = self._generate([tokens + response for tokens, response in read], params)
        return [
            [
                step[token].logprob
                for step, token in zip(output.prompt_logprobs[len(tokens) :], response, strict=True)
            ]
            for (tokens, response), output in zip(read, outputs, strict=True)
        ]

    def _generate(self, prompts: Sequence[Tokens], params: Any) -> Any:
        mode = str(self.llm.model_config.logprobs_mode)
        if not mode.endswith("logprobs"):
            raise EngineError(
                f"the engine runs with logprobs_mode={mode}, and answers are scored by their "
                "log-probabilities; leave logprobs_mode out"
            )
        tokens = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        with nothing_left_behind(self.llm):
            outputs = self.llm.generate(tokens, params, use_tqdm=False)
        raise_if_failed(outputs)
        return outputs


def _index_of(req_id: str) -> int:
    """The index of a response; vLLM's ids of one of n > 1 begin with it and "_" (vLLM 0.32)."""
    index, separator, _ = req_id.partition("_")
    return int(index) if separator and index.isdigit() else 0


def _summed(rows: Sequence[Sequence[float]]) -> Figures:
    """The sums of a response's figures by token, as the engine's statistics return them."""
    log_partition, entropy, _, *by_member = map(math.fsum, zip(*rows, strict=True))
    count = len(by_member) // 3
    return Figures(
        log_partition=log_partition,
        entropy=entropy,
        kl_M=tuple(by_member[:count]),
        logprob_M=tuple(by_member[count : 2 * count]),
    )


def _check(llm: Any) -> None:
    """Makes the engine check itself, wherever it runs, and ends one that does not pass."""
    client = llm.llm_engine.engine_core
    in_process = getattr(client, "engine_core", None)
    if in_process is not None:
        found = getattr(in_process, wire.SELF_CHECK_METHOD)()
    else:
        found = client.call_utility(wire.SELF_CHECK_METHOD)
    if found["failure"] is not None:
        client.shutdown()  # at once: at some later time it would end another engine's groups
        raise EngineError(found["failure"])


def raise_if_failed(outputs: Sequence[Any]) -> None:
    """Raises EngineError if a policy computed no numbers for any of vLLM's request outputs."""
    for output in outputs:
        for answer in output.outputs:
            if failed := wire.failed_policies(answer.finish_reason, answer.stop_reason):
                raise EngineError(
                    f"{' or '.join(failed)} computed NaN or infinity where the logits of a "
                    "token should be; check that policy's checkpoint, or leave it out"
                )

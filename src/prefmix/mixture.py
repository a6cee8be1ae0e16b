"""`prefmix.Mixture`: policies in one vLLM engine of this process, mixed by each prompt's weights.

Inputs and outputs are vLLM's own types. The server's code resolves names to weights, checks the
models and reads vLLM's arguments, so refusals are those of `prefmix serve`, in the same words.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Self, TypeAlias, overload

from prefmix.mixture_keywords import check_keywords, describe
from prefmix.own_prompts import (
    note_prompt_tokens,
    own_prompts_of_call,
    prompt_of_member,
    write_chat,
    write_texts,
)
from prefmix.process_engine import ProcessEngine
from prefmix.prompt_parameters import (
    listed_conversations,
    listed_policy_prompts,
    listed_prompts,
    prompt_parameters,
)
from prefmix.prompt_run import run_prompts
from prefmix.score_pairs import listed_pairs, token_pairs
from prefmix.server.api.attribution import Attribution
from prefmix.server.api.candidates.wish import CandidateLimits, Candidates
from prefmix.server.api.prompts.request_prompts import PromptRules
from prefmix.server.launch.in_process import import_vllm

if TYPE_CHECKING:
    from vllm import LLM, RequestOutput, SamplingParams

    from prefmix.mixing.spec import MixtureSpec, VocabularyRule, WeightSpace
    from prefmix.mixing.ways_to_mix import Mixing
    from prefmix.weights.engines.local import LocalEngine

    Sampling: TypeAlias = SamplingParams | Mapping[str, Any]

Model = str | PathLike[str] | Mapping[str, Any]
Weights = Mapping[str, float]
PolicyPrompts: TypeAlias = Mapping[str, Any] | Sequence[Mapping[str, Any] | None] | None


class Mixture:
    """Several policies, mixed by the weights of each prompt.

        mix = Mixture(policies={"helpful": "./helpful", "harmless": "./harmless"})
        mix.generate(["Dear"], weights={"helpful": 2, "harmless": 1})

    A process can have one Mixture at a time: use it in a `with` block, or `close` it. Calls from
    several threads wait for each other.
    """

    def __init__(
        self,
        *,
        policies: Mapping[str, Model] | None = None,
        base: Model | None = None,
        adapters: Mapping[str, Model] | None = None,
        reference: Mapping[str, Model] | None = None,
        weight_space: WeightSpace | None = None,
        mixing: Mixing | None = None,
        vocabulary: VocabularyRule | None = None,
        defaults_from: str | None = None,
        systems: Mapping[str, str] | None = None,
        request_prompts: bool | None = None,
        profiles: Mapping[str, Weights] | None = None,
        default_profile: str | None = None,
        weights_store: str | PathLike[str] | None = None,
        config: str | PathLike[str] | None = None,
        allow_unsafe_weights: bool | None = None,
        allow_unsafe_engine_flags: bool | None = None,
        **engine: Any,
    ) -> None:
        """Checks everything, then starts vLLM in this process.

        Args:
          policies: name to full checkpoint, in weight order: a folder, a hub id, or
            {"model": ..., "revision": ..., "hf_overrides": {...}}.
          base: one model that all policies are LoRA adapters of.
          adapters: name to adapter (PEFT format) of `base`, in weight order.
          reference: name and model of the policy that the others were aligned from.
          weight_space: "simplex", the default, or "affine".
          mixing: the way to mix of prompts that name none: "logits", the default, or "parameters".
          vocabulary: how far vocabularies may differ; tokens that differ are never drawn. "same":
            not at all. "prefix", the default: by added tokens behind the last common one.
            "common": by added tokens anywhere.
          defaults_from: the policy whose files give tokenizer, chat template, end tokens and
            defaults of generation; by default the first policy's, or the base's.
          systems: policy to the system message that it alone reads before every conversation. With
            `base`, a name that is no adapter's is the base itself.
          request_prompts: whether calls may give policies prompts of their own.
          profiles: name to {policy: number}.
          default_profile: the profile of prompts that name nothing.
          weights_store: a file of profiles, as `prefmix fit` writes it; read once.
          config: a file of `prefmix serve`; the other keywords override it.
          allow_unsafe_weights: whether checkpoints may be other than safetensors files.
          allow_unsafe_engine_flags: whether the engine's arguments, here or in `config`, may be
            such as load code.
          engine: arguments of vLLM's engine, such as max_model_len=4096; None is its default.
        Raises: ValueError, mostly a subclass, for what cannot be mixed; TypeError for an unknown
          keyword; RuntimeError if another Mixture is open.
        """
        given = {
            "policies": policies,
            "base": base,
            "adapters": adapters,
            "reference": reference,
            "weight_space": weight_space,
            "mixing": mixing,
            "vocabulary": vocabulary,
            "defaults_from": defaults_from,
            "systems": systems,
            "request_prompts": request_prompts,
            "profiles": profiles,
            "default_profile": default_profile,
            "weights_store": weights_store,
            "config": config,
            "allow_unsafe_weights": allow_unsafe_weights,
            "allow_unsafe_engine_flags": allow_unsafe_engine_flags,
        }
        if engine:
            import_vllm()
            check_keywords(engine)
        described = describe(given)
        import_vllm(described.spec)
        self._spec, self._profiles = described.spec, described.profiles
        self._engine = ProcessEngine(described, engine, owner=self)
        self._prompt_rules = PromptRules(
            spec=described.spec,
            settings=described.config.prompts(),
            max_model_len=self._engine.local.llm.model_config.max_model_len,
        )

    @property
    def spec(self) -> MixtureSpec:
        """The mixture, as `prefmix.weights` takes it."""
        return self._spec

    @property
    def policies(self) -> tuple[str, ...]:
        """The policies' names in weight order, without the reference."""
        return self._spec.policy_names

    @property
    def reference(self) -> str | None:
        """The reference policy's name, None without one."""
        return None if self._spec.reference is None else self._spec.reference.name

    @property
    def profiles(self) -> dict[str, dict[str, float]]:
        """Each profile's weights by member."""
        return {name: self._profiles.weights(name) for name in self._profiles.profiles}

    @property
    def default_profile(self) -> str:
        """The profile of prompts that name nothing."""
        return self._profiles.default

    @property
    def engine(self) -> LocalEngine:
        """The engine that a `prefmix.weights.fit.job.FitJob` draws and scores with."""
        return self._engine.local

    @property
    def llm(self) -> LLM:
        """vLLM's own object, for tasks that this class has no method for.

        Its requests use equal weights, unless their `extra_args` hold others.
        """
        return self._engine.local.llm

    def __repr__(self) -> str:
        """Policies, layout and weight space."""
        spec = self._spec
        parts = [f"policies={list(spec.policy_names)}"]
        if self.reference is not None:
            parts.append(f"reference={self.reference!r}")
        layout = "full checkpoints" if spec.base is None else f"adapters of {spec.base}"
        parts += [f"layout={layout!r}", f"weight_space={spec.weight_space!r}"]
        if not self._engine.is_open:
            parts.append("closed")
        return f"Mixture({', '.join(parts)})"

    def __reduce__(self) -> NoReturn:
        """Refuses copies and pickles: only this object keeps its engine running."""
        raise TypeError(
            "a Mixture holds a running engine and can be neither copied nor pickled; pass on the "
            "arguments it is made from, and make it where it is used"
        )

    def generate(
        self,
        prompts: Any,
        sampling_params: Sampling | Sequence[Sampling | None] | None = None,
        *,
        weights: Weights | Sequence[Weights | None] | None = None,
        profile: str | Sequence[str | None] | None = None,
        mixing: Mixing | Sequence[Mixing | None] | None = None,
        policy_prompts: PolicyPrompts = None,
        attribution: bool | Literal["tokens"] | None = None,
        candidates: int | None = None,
        use_tqdm: bool | Callable[..., Any] = False,
        **options: Any,
    ) -> list[RequestOutput]:
        """Completes prompts with the mixture.

        Each output also has `preference_weights`, `preference_profile` and `preference_mixing`,
        which it was drawn with, and `preference_prompt_tokens`, the tokens of the prompt that each
        policy with weight has read. Each of its completions has `preference_attribution` and
        `preference_candidates`, None unless asked for.

        Args:
          prompts: as `vllm.LLM.generate` takes them: strings, token ids, vLLM's dictionaries.
          sampling_params: vLLM's, or dictionaries of their arguments; one for all prompts, or a
            list with one for each. They are not changed.
          weights: {policy: number} for all prompts, or a list with one for each.
          profile: the name of a profile instead, in the same way.
          mixing: "logits" mixes the policies' predictions, "parameters" their parameters at the
            cost of one policy, where they are adapters of one base; in the same way.
          policy_prompts: {policy: text or token ids}, whole prompts of policies that do not read
            `prompts`: `preference_prompts` over HTTP; in the same way.
          attribution: True measures which policy carried each answer, "tokens" also measures
            every token: `preference_attribution` over HTTP (prefmix.server.api.attribution).
          candidates: answers that are drawn for each one that is picked and returned:
            `preference_candidates` over HTTP (prefmix.server.api.candidates), without its limits.
          use_tqdm: vLLM's progress bar; off unless asked for.
          options: further arguments of `vllm.LLM.generate`, such as lora_request or priority.
        Raises: RequestError in the server's words; EngineError if a policy computes NaN or
          infinity; vLLM's own errors.
        """
        from vllm.renderers.inputs.preprocess import prompt_to_seq

        prompts = listed_prompts(prompts)
        return self._run(
            "generate",
            prompts,
            len(prompt_to_seq(prompts)),
            {
                "sampling_params": sampling_params,
                "weights": weights,
                "profile": profile,
                "mixing": mixing,
            },
            policy_prompts,
            (attribution, candidates),
            {"use_tqdm": use_tqdm, **options},
        )

    def chat(
        self,
        messages: Any,
        sampling_params: Sampling | Sequence[Sampling | None] | None = None,
        *,
        weights: Weights | Sequence[Weights | None] | None = None,
        profile: str | Sequence[str | None] | None = None,
        mixing: Mixing | Sequence[Mixing | None] | None = None,
        policy_prompts: PolicyPrompts = None,
        attribution: bool | Literal["tokens"] | None = None,
        candidates: int | None = None,
        use_tqdm: bool | Callable[..., Any] = False,
        **options: Any,
    ) -> list[RequestOutput]:
        """Answers conversations with the mixture.

        Args:
          messages: one conversation, a list of {"role": ..., "content": ...}, or several.
          policy_prompts: {policy: prompt} for all conversations, or a list with one for each. A
            prompt is a text, which becomes the policy's system message, or {"messages": [...]}, its
            whole conversation.
          options: further arguments of `vllm.LLM.chat`, such as tools or chat_template.
        The other arguments, the outputs and the errors are those of `generate`.
        """
        from vllm.renderers.inputs.preprocess import conversation_to_seq

        messages = listed_conversations(messages)
        return self._run(
            "chat",
            messages,
            len(conversation_to_seq(messages)),
            {
                "sampling_params": sampling_params,
                "weights": weights,
                "profile": profile,
                "mixing": mixing,
            },
            policy_prompts,
            (attribution, candidates),
            {"use_tqdm": use_tqdm, **self._engine.chat_options(options)},
        )

    @overload
    def score(
        self,
        prompts: Any,
        completions: Any,
        *,
        policy_prompts: PolicyPrompts = None,
        by_token: Literal[False] = False,
    ) -> list[dict[str, float]]: ...

    @overload
    def score(
        self,
        prompts: Any,
        completions: Any,
        *,
        policy_prompts: PolicyPrompts = None,
        by_token: Literal[True],
    ) -> list[dict[str, list[float]]]: ...

    def score(
        self,
        prompts: Any,
        completions: Any,
        *,
        policy_prompts: PolicyPrompts = None,
        by_token: bool = False,
    ) -> list[dict[str, float]] | list[dict[str, list[float]]]:
        """Log-probability of each completion, given its prompt, under each member alone.

        Each member reads the prompt that it would read in `generate` or `chat`.

        Args:
          prompts: strings, token ids, vLLM's dictionaries or conversations; a single prompt is
            used for every completion.
          completions: strings, token ids or vLLM's completions, one for each prompt. After a
            conversation a message, too; its tokens include the end of its turn.
          policy_prompts: as of `generate` for texts, as of `chat` for conversations; once, or one
            for each pair.
          by_token: true returns a list with one number per token instead of their sum.
        Returns: per pair {policy: natural logarithm}, the reference included.
        Raises: RequestError; EngineError if a policy computes NaN or infinity; vLLM's own errors.
        """
        listed = listed_pairs(prompts, completions)
        given = listed_policy_prompts(policy_prompts, len(listed))
        names = self._spec.member_names
        with self._engine.turn() as engine:
            columns = []
            for member in range(len(names) if listed else 0):
                pairs = token_pairs(
                    [
                        prompt_of_member(prompt, own, member, self._prompt_rules)
                        for (prompt, _), own in zip(listed, given, strict=True)
                    ],
                    [completion for _, completion in listed],
                    tokenizer=engine.llm.get_tokenizer(),
                    chat_tokens=engine.chat_tokens,
                )
                columns.append(
                    engine.score_tokens(pairs, [float(at == member) for at in range(len(names))])
                )
        rows = [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
        if by_token:
            return rows
        return [{name: sum(logprobs) for name, logprobs in row.items()} for row in rows]

    def close(self) -> None:
        """Ends the engine and frees its memory. May be called again."""
        self._engine.close()

    def __enter__(self) -> Self:
        """Closes the mixture at the end of the block."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Closes the mixture."""
        self.close()

    def _run(
        self,
        method: str,
        prompts: Any,
        num_prompts: int,
        per_prompt: Mapping[str, Any],
        policy_prompts: Any,
        wishes: tuple[object, object],
        options: Mapping[str, Any],
    ) -> list[RequestOutput]:
        """Runs one of vLLM's methods on prompts.

        Args:
          method: `generate` or `chat`.
          prompts: the method's first argument.
          num_prompts: the number of prompts.
          per_prompt: sampling_params, weights, profile and mixing, once or for each prompt.
          policy_prompts: the prompts of policies' own, once or for each prompt.
          wishes: the caller's `attribution` and `candidates`.
          options: the method's other arguments.
        """
        from vllm.renderers.inputs.preprocess import conversation_to_seq, prompt_to_seq

        candidates = Candidates(wishes[1], CandidateLimits())
        attribution = Attribution(wishes[0], for_candidates=candidates.is_wanted)
        with self._engine.turn() as engine:
            llm = engine.llm
            parameters = prompt_parameters(
                num_prompts,
                default=llm.get_default_sampling_params,
                attribution=attribution,
                candidates=candidates,
                spec=self._spec,
                profiles=self._profiles,
                **per_prompt,
            )
            if not parameters:
                return []
            own = own_prompts_of_call(
                parameters,
                listed_policy_prompts(policy_prompts, num_prompts),
                self._prompt_rules,
                kind="chat" if method == "chat" else "completion",
            )
            if any(own) and method == "chat":
                many = conversation_to_seq(prompts)
                prompts, options = write_chat(engine, many, parameters, own, options)
                method = "generate"
            elif any(own):
                prompts = write_texts(engine, prompt_to_seq(prompts), parameters, own)
            call = functools.partial(getattr(llm, method), prompts, **options)
            outputs = run_prompts(llm, call, parameters, attribution, candidates)
            for output, each in zip(outputs, own, strict=True):
                note_prompt_tokens(output, each)
            return outputs

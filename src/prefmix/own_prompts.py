"""Prompts of the policies' own in a call: checked as the server does, then written as tokens.

A conversation is written once for each different prompt that the policies read, with the same
template and options. The engine reads the longest; what the others read before the text that all
share travels beside the weights (prefmix.mixing.prompt_heads).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from prefmix.mixing.wire import HEADS_KEY
from prefmix.score_pairs import is_conversation
from prefmix.server.api.prompts.own_prompt import FIELD, OwnPrompt
from prefmix.server.api.prompts.request_prompts import (
    PromptRules,
    RequestPrompts,
    prompts_of_request,
)
from prefmix.server.http.errors import RequestError

if TYPE_CHECKING:
    from prefmix.prompt_parameters import PromptParameters
    from prefmix.weights.engines.local import LocalEngine
    from prefmix.weights.engines.member_prompts import Tokens

_WRITING = (
    *("chat_template", "chat_template_content_format", "chat_template_kwargs", "tools"),
    *("add_generation_prompt", "continue_final_message"),
    *("tokenization_kwargs", "mm_processor_kwargs"),
)
"""The options of `vllm.LLM.chat` that say how a conversation is written."""


@dataclass(kw_only=True)
class CallPrompt:
    """One prompt of a call, as the server's checks read a body."""

    preference_prompts: Any
    prompt_kind: Literal["chat", "completion"]
    prompt_logprobs: int | None = None
    truncate_prompt_tokens: int | None = None
    negative_prompt: Any = None
    num_prompts: int = 1

    def checked_messages(self, messages: list[Any], where: str, param: str) -> list[Any]:
        """The messages as they are: vLLM checks what it writes."""
        return messages


def own_prompts_of_call(
    parameters: Sequence[PromptParameters], given: Sequence[Any], rules: PromptRules, *, kind: Any
) -> list[RequestPrompts | None]:
    """The policies' own prompts, for each prompt of a call; None where all read the prompt itself.

    Args:
      parameters: of each prompt.
      given: the caller's {policy: prompt} for each prompt, or None.
      kind: `chat` or `completion`.
    Raises: RequestError in the server's words.
    """
    if not rules.settings.systems and all(each is None for each in given):
        return [None] * len(parameters)
    found = []
    for each, prompts in zip(parameters, given, strict=True):
        sampling = each.sampling_params
        body = CallPrompt(
            preference_prompts=prompts,
            prompt_kind=kind,
            prompt_logprobs=sampling.prompt_logprobs,
            truncate_prompt_tokens=getattr(sampling, "truncate_prompt_tokens", None),
        )
        resolution = each.resolution
        found.append(prompts_of_request(body, rules, resolution.weights, resolution.mixing))
    return found


def write_chat(
    engine: LocalEngine,
    conversations: Sequence[Any],
    parameters: Sequence[PromptParameters],
    prompts: Sequence[RequestPrompts | None],
    options: Mapping[str, Any],
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Writes each conversation as tokens, and puts the policies' heads into its parameters.

    Args: options: of `vllm.LLM.chat`.
    Returns: prompts of `vllm.LLM.generate`, and its options.
    """
    how = {name: value for name, value in options.items() if name in _WRITING}

    def written(messages: Any) -> Tokens:
        return engine.written(messages, **how)

    found = []
    for messages, each, own in zip(conversations, parameters, prompts, strict=True):
        if own is None:
            found.append(written(messages))
        else:
            rendered = [(one, written(one.conversation(messages))) for one in own.distinct]
            found.append(_taken(rendered, own, each))
    rest = {name: value for name, value in options.items() if name not in _WRITING}
    return [{"prompt_token_ids": list(tokens)} for tokens in found], rest


def write_texts(
    engine: LocalEngine,
    texts: Sequence[Any],
    parameters: Sequence[PromptParameters],
    prompts: Sequence[RequestPrompts | None],
) -> list[Any]:
    """The prompts of a call of `generate`, those of the policies' own as tokens."""
    encode = engine.llm.get_tokenizer().encode

    def written(own: OwnPrompt, text: Any) -> Tokens:
        prompt = text if own.prompt is None else own.prompt
        if isinstance(prompt, Mapping):
            prompt = prompt.get("prompt_token_ids", prompt.get("prompt"))
        return tuple(encode(prompt) if isinstance(prompt, str) else prompt)

    found = []
    for text, each, own in zip(texts, parameters, prompts, strict=True):
        if own is None:
            found.append(text)
            continue
        rendered = [(one, written(one, text)) for one in own.distinct]
        rest = dict(text) if isinstance(text, Mapping) else {}
        rest.pop("prompt", None)
        found.append({**rest, "prompt_token_ids": list(_taken(rendered, own, each))})
    return found


def prompt_of_member(prompt: Any, given: Any, member: int, rules: PromptRules) -> Any:
    """The prompt that one policy reads before a completion is scored.

    Args:
      prompt: the caller's.
      given: the caller's {policy: prompt}, or None.
      member: index of the policy.
    Raises: RequestError in the server's words.
    """
    is_chat = is_conversation(prompt)
    body = CallPrompt(preference_prompts=given, prompt_kind="chat" if is_chat else "completion")
    one_hot = [float(index == member) for index in range(rules.spec.num_members)]
    found = prompts_of_request(body, rules, one_hot, "logits")
    own = None if found is None else found.prompts_M[member]
    if own is None:
        return prompt
    if is_chat:
        return own.conversation(prompt)
    return prompt if own.prompt is None else own.prompt


def _taken(
    rendered: Sequence[tuple[OwnPrompt, Tokens]], own: RequestPrompts, parameters: PromptParameters
) -> Tokens:
    """The prompt that the engine reads; the heads go into its parameters."""
    if not all(tokens for _, tokens in rendered):
        raise RequestError("a policy's own prompt has no tokens; give it a text", param=FIELD)
    place = own.take([(one, list(tokens)) for one, tokens in rendered])
    extra_args = parameters.sampling_params.extra_args
    assert extra_args is not None, "it holds the weights"
    if own.heads_M is not None:
        extra_args[HEADS_KEY] = [None if ids is None else list(ids) for ids in own.heads_M]
    return rendered[place][1]


def note_prompt_tokens(output: Any, own: RequestPrompts | None) -> None:
    """Notes on vLLM's output the tokens of the prompt of each policy with weight."""
    weights: Mapping[str, float] = output.preference_weights
    lengths = {} if own is None else own.lengths
    length = len(output.prompt_token_ids or ())
    output.preference_prompt_tokens = {
        name: lengths.get(name, length) for name, weight in weights.items() if weight
    }

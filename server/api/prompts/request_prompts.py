"""The prompts of the members of one request: checked at its admission, rendered to tokens later."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from prefmix.mixing.prompt_heads import SplitPrompts, split_prompts
from prefmix.mixing.spec import MixtureSpec
from prefmix.mixing.vocabulary import CommonVocabulary
from prefmix.mixing.ways_to_mix import Mixing
from prefmix.server.api.prompts.own_prompt import (
    AS_GIVEN,
    FIELD,
    NEGATIVE_FIELD,
    OwnPrompt,
    prompts_of_body,
)
from prefmix.server.config.prompt_settings import PromptSettings
from prefmix.server.http.errors import RequestError

OWN_CONTEXTS = 8
"""Default of `max_own_tokens`, in longest contexts."""

_SHOWING = {
    "echo": "shows the prompt",
    "prompt_logprobs": "shows the prompt's tokens",
    "prompt_logprob_token_ids": "shows the prompt's length",
    "return_token_ids": "shows the prompt's tokens",
    "return_prompt_text": "shows the prompt",
    "return_token_offsets": "counts from the prompt",
}
"""vLLM's fields that concern one prompt, where the policies read several, or the server's own."""

_CUTTING = ("truncate_prompt_tokens", "truncation_side")


class PromptBody(Protocol):
    """The part of a request's body that is read here, beside fields of vLLM's."""

    preference_prompts: Any
    negative_prompt: Any

    @property
    def prompt_kind(self) -> str:
        """The word chat, completion or response."""

    @property
    def num_prompts(self) -> int:
        """Number of prompts of the request."""

    def checked_messages(self, messages: list[Any], where: str, param: str) -> list[Any]:
        """A conversation of a policy's own, validated. Raises: RequestError."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptRules:
    """The prompts that a server has and allows."""

    spec: MixtureSpec
    settings: PromptSettings
    max_model_len: int
    """Most tokens of a prompt."""
    vocabulary: CommonVocabulary | None = None
    """The token ids that are drawn; None if the engine does not tell."""

    @property
    def max_own_tokens(self) -> int:
        """Most tokens of all members' prompts together."""
        return self.settings.max_own_tokens or OWN_CONTEXTS * self.max_model_len


@dataclass(kw_only=True, slots=True)
class RequestPrompts:
    """The prompts that the members of a request read."""

    prompts_M: tuple[OwnPrompt | None, ...]
    """None for members without weight, which read nothing."""
    member_names: tuple[str, ...]
    max_own_tokens: int
    """Most tokens of all members' prompts together, where they differ."""
    split: SplitPrompts | None = field(default=None, init=False)
    """The tokens, once they are rendered."""

    @property
    def distinct(self) -> list[OwnPrompt]:
        """The prompts that are to be rendered, each once."""
        found: list[OwnPrompt] = []
        for own in self.prompts_M:
            if own is not None and own not in found:
                found.append(own)
        return found

    def take(self, rendered: Sequence[tuple[OwnPrompt, list[int]]]) -> int:
        """Notes the tokens of each distinct prompt.

        Returns: the place in `rendered` of the longest, which the engine reads as the prompt.
        Raises: RequestError.
        """
        ids_M = [
            None if own is None else next(ids for each, ids in rendered if each == own)
            for own in self.prompts_M
        ]
        self.split = split_prompts(ids_M)
        total = sum(self.split.lengths_M)
        if self.split.heads_M is not None and total > self.max_own_tokens:
            raise RequestError(
                f"the policies' prompts have {total} tokens together; this server takes at most "
                f"{self.max_own_tokens} (--max-own-tokens): shorten them, or give fewer policies "
                "weight",
                param=FIELD,
            )
        longest = self.prompts_M[self.split.longest]
        return next(place for place, (own, _) in enumerate(rendered) if own == longest)

    @property
    def heads_M(self) -> tuple[list[int] | None, ...] | None:
        """The tokens that the engine needs beside the longest prompt; None if all read the same."""
        assert self.split is not None, "the prompts are rendered before the engine gets them"
        return self.split.heads_M

    @property
    def lengths(self) -> dict[str, int]:
        """Tokens of the prompt of each member with weight; none before they are rendered."""
        if self.split is None:
            return {}
        pairs = zip(self.member_names, self.split.lengths_M, strict=True)
        return {name: length for name, length in pairs if length}


def prompts_of_request(
    body: PromptBody, rules: PromptRules, weights_M: Sequence[float], mixing: Mixing
) -> RequestPrompts | None:
    """The prompts of a request's members; None if all read the request's own.

    Args:
      weights_M: of the request, in member order.
      mixing: its way to mix.
    Raises: RequestError for prompts that cannot be given, and fields that do not go with them.
    """
    is_given = body.preference_prompts is not None or body.negative_prompt is not None
    systems = rules.settings.systems
    if not (is_given or systems):
        return None
    named = _named(body, rules) if is_given else {}
    members = rules.spec.member_names
    names = [name for name, weight in zip(members, weights_M, strict=True) if weight]
    configured = [name for name in names if name in systems and name not in named]
    own = {name: named.get(name, AS_GIVEN) for name in names}
    is_chat = body.prompt_kind == "chat"
    if is_chat:
        own |= {name: OwnPrompt(system=systems[name]) for name in configured}
    elif configured and named.keys().isdisjoint(names):
        raise RequestError(_without_conversation(body.prompt_kind, configured[0]))
    prompts = list(own.values())
    if all(each == AS_GIVEN for each in prompts):
        return None
    differ = any(each != prompts[0] for each in prompts)
    _check_fields(body, hides=is_chat and bool(configured), differ=differ)
    if differ and mixing == "parameters":
        raise RequestError(
            "mixed parameters are one model, which reads one prompt, and policies with weight have "
            'different ones: send preference_mixing "logits", or weight for policies of one prompt',
            param="preference_mixing",
        )
    return RequestPrompts(
        prompts_M=tuple(own.get(name) for name in members),
        member_names=members,
        max_own_tokens=rules.max_own_tokens,
    )


def _named(body: PromptBody, rules: PromptRules) -> dict[str, OwnPrompt]:
    """The prompts in a body, by policy."""
    field = FIELD if body.preference_prompts is not None else NEGATIVE_FIELD
    if not rules.settings.request_prompts:
        raise RequestError(
            f"{field} is not allowed here: this server was started without --request-prompts "
            "(request_prompts: true); leave it out",
            param=field,
        )
    if body.prompt_kind == "response":
        raise RequestError(
            f"{field} is not served by the Responses API; use /v1/chat/completions or "
            "/v1/completions",
            param=field,
        )
    if body.num_prompts > 1:
        raise RequestError(
            f"{field} replaces one prompt, and {body.num_prompts} came; send one prompt a request",
            param=field,
        )
    found = prompts_of_body(
        body.preference_prompts,
        body.negative_prompt,
        rules.spec,
        kind=body.prompt_kind,
        max_model_len=rules.max_model_len,
    )
    for name, own in found.items():
        where = f"{field}.{name}" if field == FIELD else field
        if isinstance(own.prompt, list):
            _check_ids(own.prompt, where, field, rules.vocabulary)
        if own.messages is not None:
            found[name] = OwnPrompt(messages=body.checked_messages(own.messages, where, field))
    return found


def _check_ids(ids: list[int], where: str, param: str, vocabulary: CommonVocabulary | None) -> None:
    """Checks token ids here: a stream would have begun before the engine refuses them."""
    lost = [] if vocabulary is None else vocabulary.without(ids)
    if vocabulary is not None and lost:
        raise RequestError(
            f"{where} has token {lost[0]}, which not all policies of the mixture have; allowed: "
            f"the {vocabulary.size} token ids that they have in common",
            param=param,
        )


def _check_fields(body: PromptBody, *, hides: bool, differ: bool) -> None:
    """Refuses fields that would show or cut one prompt.

    Args:
      hides: a policy with weight reads a text of the configuration.
      differ: policies with weight read different prompts.
    """
    cutting = [name for name in _CUTTING if getattr(body, name, None) is not None]
    asked = {name: getattr(body, name, None) for name in _SHOWING}
    # prompt_logprobs: 0 asks for them too.
    showing = [name for name, value in asked.items() if value is not None and value is not False]
    if cutting:
        raise RequestError(
            f"{cutting[0]} would cut the policies' own prompts at different places; leave it out "
            "and send shorter texts",
            param=cutting[0],
        )
    if showing and (hides or differ):
        why = "the policies read different ones" if differ else "it belongs to this server"
        raise RequestError(
            f"{showing[0]} {_SHOWING[showing[0]]}, and {why}; leave {showing[0]} out",
            param=showing[0],
        )


def _without_conversation(kind: str, name: str) -> str:
    if kind == "response":
        return (
            f"policy {name!r} has a system text, which the Responses API does not carry here; use "
            "/v1/chat/completions"
        )
    return (
        f"policy {name!r} has a system text, which only a conversation can carry; use "
        f"/v1/chat/completions, or, where requests may, give {FIELD}, in which a policy's whole "
        "prompt stands"
    )

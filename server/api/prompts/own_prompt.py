"""The prompt that one policy reads instead of a request's own, from the configuration or the body.

In a body, `preference_prompts` holds for each policy

  on chat         TEXT, the policy's system text, or {"messages": [...]}, its whole conversation
  on completions  TEXT or [token ids], its whole prompt
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prefmix.mixing.name_list import listed
from prefmix.mixing.shown_value import shown
from prefmix.mixing.spec import MixtureSpec
from prefmix.mixing.system_texts import with_system
from prefmix.server.http.body_limits import MAX_ITEMS, check_parts
from prefmix.server.http.errors import RequestError

FIELD = "preference_prompts"
NEGATIVE_FIELD = "negative_prompt"
"""The same for the reference of a server of one policy and a reference, by the name that users of
guidance know."""

_FORMS = {
    "chat": 'a system text, or {"messages": [...]}, a whole conversation',
    "completion": "a text or a list of token ids, the policy's whole prompt",
}


@dataclass(frozen=True, slots=True)
class OwnPrompt:
    """The prompt of one policy; without anything it reads the request's own."""

    system: str | None = None
    """Text before the client's own system message."""
    messages: list[Any] | None = None
    """A whole conversation."""
    prompt: str | list[int] | None = None
    """A whole prompt of a completion: a text or token ids."""

    def conversation(self, given: Sequence[Any]) -> list[Any]:
        """The messages that the policy reads. Args: given: the request's."""
        if self.messages is not None:
            return self.messages
        return list(given) if self.system is None else with_system(self.system, given)


AS_GIVEN = OwnPrompt()
"""The request's own prompt."""


def prompts_of_body(
    given: object, negative: object, spec: MixtureSpec, *, kind: str, max_model_len: int
) -> dict[str, OwnPrompt]:
    """The prompts that a request gives policies, by policy.

    Args:
      given: the field `preference_prompts`.
      negative: the field `negative_prompt`.
      kind: `chat` or `completion`.
      max_model_len: most tokens of a prompt.
    Raises: RequestError.
    """
    if negative is not None:
        reference = guided_members(NEGATIVE_FIELD, spec)[1]
        if given is not None:
            raise _error(f"{NEGATIVE_FIELD} and {FIELD} were both given; send one of them")
        return {reference: _own_prompt(negative, NEGATIVE_FIELD, kind, max_model_len)}
    if not isinstance(given, Mapping):
        example = {spec.member_names[0]: "..."}
        raise _error(f"{FIELD} is {shown(given)}; expected an object such as {shown(example)}")
    if not given:
        raise _error(f"{FIELD} is empty; name a policy, or leave it out")
    for name in given:
        if name not in spec.member_names:
            raise _error(
                f"{FIELD} names {shown(name)}, which is no policy here; this mixture has: "
                f"{listed(spec.member_names)}"
            )
    return {
        name: _own_prompt(value, f"{FIELD}.{name}", kind, max_model_len)
        for name, value in given.items()
    }


def guided_members(field: str, spec: MixtureSpec) -> tuple[str, str]:
    """The policy and the reference that guidance is between.

    Args: field: that asks for it.
    Raises: RequestError unless there is one policy and a reference.
    """
    if spec.reference is None or len(spec.policies) != 1:
        raise _error(
            f"{field} needs a server of one policy and a reference, whose prompt is the negative "
            f"one; this mixture has {listed(spec.member_names)}: send preference_weights and "
            f"{FIELD} by name",
            param=field,
        )
    return spec.policies[0].name, spec.reference.name


def _own_prompt(value: object, where: str, kind: str, max_model_len: int) -> OwnPrompt:
    param = where.partition(".")[0]
    if isinstance(value, str):
        if not (value.strip() if kind == "chat" else value):
            raise _error(f"{where} is empty; give it a text, or leave it out", param=param)
        return OwnPrompt(system=value) if kind == "chat" else OwnPrompt(prompt=value)
    if kind == "chat" and isinstance(value, Mapping) and value.keys() == {"messages"}:
        return OwnPrompt(messages=_messages(value["messages"], f"{where}.messages", param))
    if kind == "completion" and isinstance(value, list):
        return OwnPrompt(prompt=_token_ids(value, where, param, max_model_len))
    raise _error(f"{where} is {_kind_of(value)}; expected {_FORMS[kind]}", param=param)


def _token_ids(value: list[Any], where: str, param: str, max_model_len: int) -> list[int]:
    if not value:
        raise _error(f"{where} is empty; give it a token, or leave it out", param=param)
    if len(value) > max_model_len:
        raise _error(
            f"{where} has {len(value)} tokens; the longest context (max_model_len) has "
            f"{max_model_len}",
            param=param,
        )
    for index, each in enumerate(value):
        if type(each) is not int or each < 0:
            raise _error(
                f"{where}[{index}] is {_kind_of(each)}; expected a token id, an integer from 0",
                param=param,
            )
    return value


def _messages(value: object, where: str, param: str) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise _error(f"{where} is {_kind_of(value)}; expected a list of messages", param=param)
    if len(value) > MAX_ITEMS["messages"]:
        raise _error(
            f"{where} has {len(value)} items; this server takes at most {MAX_ITEMS['messages']}",
            param=param,
        )
    for index, message in enumerate(value):
        path = f"{where}[{index}]"
        if not isinstance(message, Mapping):
            raise _error(f"{path} is {_kind_of(message)}; expected a message", param=param)
        check_parts(message, path=path, field=param)
        content = message.get("content")
        for part in content if isinstance(content, list) else ():
            kind = part.get("type") if isinstance(part, Mapping) else None
            if kind not in ("text", "input_text", "output_text", "refusal", "thinking"):
                raise _error(
                    f"{path} has a part of type {shown(kind)}; policies read text only", param=param
                )
    return value


def _kind_of(value: object) -> str:
    """A value as a message shows it; a text is a prompt, and is not shown."""
    if isinstance(value, str | list | Mapping):
        what = {str: "a text", list: "a list"}.get(type(value), "an object")
        return what if value else f"{what} without anything in it"
    return shown(value)


def _error(message: str, *, param: str = FIELD) -> RequestError:
    return RequestError(message, param=param)

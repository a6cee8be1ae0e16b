"""Limits on the structure of a request's body, checked before the body is validated.

They bound the work of validation and of everything after it: a message, a tool or an item of input
costs far more than its bytes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from prefmix.mixing.shown_value import shown
from prefmix.server.http.errors import RequestError

MAX_ITEMS: Mapping[str, int] = {
    "messages": 4096,
    "input": 2048,
    "previous_input_messages": 4096,
    "documents": 4096,
    "tools": 512,
    "include": 64,
    "vllm_xargs": 256,
    "logit_bias": 1024,
    "allowed_token_ids": 1024,
    "stop_token_ids": 1024,
    "logprob_token_ids": 128,
    "bad_words": 1024,
}
"""Most items of a field that is a list or an object. vLLM's own limits hold as well."""

MAX_CHOICES = 8192
"""Most items of `structured_outputs.choice`: validation reports an error for each of them."""

MAX_PARTS = 1024
"""Most items of any list inside a message, a tool or an item of input: parts, calls, summaries."""

_WITH_PARTS = ("messages", "input", "previous_input_messages", "tools")

_LISTS = ("messages",)
"""Fields that must be lists; vLLM's checks take that for granted."""

_UNSEEN = ("preference_weights",)
"""Fields whose integers never reach the engine: they become floats."""

MAX_XARG_ITEMS, MAX_XARG_CHARS = 4096, 2**16
"""Size of a value in `vllm_xargs`, which every process of the engine gets a copy of."""

TRANSFER_FIELDS = ("kv_transfer_params", "ec_transfer_params")
"""vLLM's own entries of what `vllm_xargs` becomes; there they would be of a wrong type."""

IDS = ("request_id", "session_id")
"""Ids of a client's own, which travel to the engine with each answer."""

MAX_ID_CHARS = 512

TEMPLATE_ARGUMENTS = frozenset(
    {
        *("chat_template", "conversation", "messages", "model_config", "self", "tokenizer"),
        *("tokenize", "tokenizer_kwargs", "padding", "truncation", "max_length"),
        *("return_assistant_tokens_mask", "return_dict", "return_tensors"),
    }
)
"""Arguments of what calls a chat template. As `chat_template_kwargs` they would come twice, or be
orders to the tokenizer."""

MIN_INTEGER, MAX_INTEGER = -(2**63), 2**64 - 1
"""The integers that MessagePack holds, in which requests travel to the engine."""


def check_limits(body: Mapping[str, Any]) -> None:
    """Checks a body's structure and its numbers. Raises: RequestError naming field and limit."""
    for field in _LISTS:
        value = body.get(field)
        if field in body and not isinstance(value, list):
            raise RequestError(f"{field} is {shown(value)}; expected a list", param=field)
    for field, limit in MAX_ITEMS.items():
        value = body.get(field)
        if isinstance(value, list | dict) and len(value) > limit:
            raise RequestError(
                f"{field} has {len(value)} items; this server takes at most {limit}", param=field
            )
    for field in _WITH_PARTS:
        value = body.get(field)
        if isinstance(value, list):
            for index, item in enumerate(value):
                check_parts(item, path=f"{field}[{index}]", field=field)
    constraint = body.get("structured_outputs")
    choices = constraint.get("choice") if isinstance(constraint, dict) else None
    if isinstance(choices, list) and len(choices) > MAX_CHOICES:
        raise RequestError(
            f"structured_outputs.choice has {len(choices)} items; this server takes at most "
            f"{MAX_CHOICES}",
            param="structured_outputs",
        )
    for field in IDS:
        value = body.get(field)
        if isinstance(value, str) and len(value) > MAX_ID_CHARS:
            raise RequestError(
                f"{field} has {len(value)} characters; this server takes at most {MAX_ID_CHARS}",
                param=field,
            )
    _check_template_kwargs(body.get("chat_template_kwargs"))
    _check_integers(body)


def check_engine_fields(body: Mapping[str, Any], unread: Collection[str]) -> None:
    """Checks what is passed to the engine as it comes.

    Args: unread: fields that nothing in this server's engine reads.
    Raises: RequestError naming the field.
    """
    for field in unread:
        if body.get(field):
            raise RequestError(
                f"{field} is given, but this server runs no connector that reads it; leave it out",
                param=field,
            )
    xargs = body.get("vllm_xargs")
    for name, value in xargs.items() if isinstance(xargs, dict) else ():
        if name in TRANSFER_FIELDS:
            raise RequestError(f"vllm_xargs has {name}, a field of the body", param="vllm_xargs")
        for kind, limit, what in (
            (list, MAX_XARG_ITEMS, "items"),
            (str, MAX_XARG_CHARS, "characters"),
        ):
            if isinstance(value, kind) and len(value) > limit:
                raise RequestError(
                    f"vllm_xargs.{name:.40} has {len(value)} {what}; this server takes {limit}",
                    param="vllm_xargs",
                )


def check_token_ids(body: Mapping[str, Any], max_model_len: int) -> None:
    """Checks the length of `tokens`. Raises: RequestError if no prompt could have so many."""
    tokens = body.get("tokens")
    if isinstance(tokens, list) and len(tokens) > max_model_len:
        raise RequestError(
            f"tokens has {len(tokens)} items; this server's longest context (max_model_len) has "
            f"{max_model_len}: send them in several requests",
            param="tokens",
        )


def check_parts(item: Any, *, path: str, field: str) -> None:
    """Checks the lists at any depth of an item."""
    pending = [item]
    while pending:
        value = pending.pop()
        if isinstance(value, list):
            if len(value) > MAX_PARTS:
                raise RequestError(
                    f"a list in {path} has {len(value)} items; this server takes at most "
                    f"{MAX_PARTS}",
                    param=field,
                )
            pending.extend(value)
        elif isinstance(value, dict):
            pending.extend(value.values())


def _check_template_kwargs(given: Any) -> None:
    wrong = sorted(TEMPLATE_ARGUMENTS & given.keys()) if isinstance(given, dict) else []
    if wrong:
        raise RequestError(
            f"chat_template_kwargs has {' and '.join(wrong)}; only variables of the chat template "
            "belong there, and messages are a field of the body",
            param="chat_template_kwargs",
        )


def _check_integers(body: Mapping[str, Any]) -> None:
    for field, value in body.items():
        if field in _UNSEEN:
            continue
        pending: list[tuple[str, dict[str, Any] | list[Any]]] = [(field, {"": value})]
        while pending:
            path, container = pending.pop()
            for name, each in _children(container):
                if type(each) is int:
                    if not MIN_INTEGER <= each <= MAX_INTEGER:
                        raise RequestError(
                            f"{_join(path, name)} is {shown(each)}; the engine holds integers "
                            f"from {MIN_INTEGER} to {MAX_INTEGER}",
                            param=field,
                        )
                elif isinstance(each, dict | list):
                    pending.append((_join(path, name), each))


def _children(container: Any) -> Iterable[tuple[Any, Any]]:
    return container.items() if isinstance(container, dict) else enumerate(container)


def _join(path: str, name: str | int) -> str:
    if isinstance(name, int):
        return f"{path:.100}[{name}]"
    return f"{path:.100}.{name:.40}" if name else path

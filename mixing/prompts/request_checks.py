"""Refuses requests whose policies cannot have the prompts of their own that they name."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from prefmix.mixing import wire
from prefmix.mixing.prompts.request_heads import are_ids
from prefmix.mixing.spec import MixtureSpec

if TYPE_CHECKING:
    from vllm.v1.engine import EngineCoreRequest


class PromptsError(ValueError):
    """Prompts of the policies' own that a request cannot have; the text is one sentence."""


def check_prompts(request: EngineCoreRequest, spec: MixtureSpec) -> list[int]:
    """Checks the heads of a request (prefmix.mixing.prompts.request_heads).

    Args:
      request: as it goes to the engine.
    Returns: the token ids of all heads, which are still to be checked.
    Raises: PromptsError.
    """
    params = request.sampling_params
    assert params is not None, "mixtures only generate"
    raw = wire.heads_of(params.extra_args)
    if raw is None:
        return []
    if not spec.has_prompts:
        raise PromptsError(
            "this engine gives the policies no prompts of their own; start it with prompts, or "
            f"leave {wire.HEADS_KEY} out"
        )
    if not isinstance(raw, list) or len(raw) != spec.num_members:
        raise PromptsError(
            f"{wire.HEADS_KEY} must be a list with an entry for each of {_listed(spec)}"
        )
    for name, ids in zip(spec.member_names, raw, strict=True):
        if ids is not None and not are_ids(ids):
            raise PromptsError(
                f"the prompt of policy {name!r} must be a list of token ids, or null for the "
                "request's own prompt"
            )
    if (wire.mixing_of(params.extra_args) or spec.mixing) == "parameters":
        raise PromptsError(
            "mixed parameters are one model, which reads one prompt; mix logits, or leave the "
            "policies' own prompts out"
        )
    given = [ids for ids in raw if ids is not None]
    longest, prompt = max(map(len, given), default=0), len(request.prompt_token_ids or ())
    if longest > prompt:
        raise PromptsError(
            f"a policy's own prompt begins with {longest} tokens, but the request's has {prompt}; "
            "the request's prompt is the longest one"
        )
    _check_not_empty(spec, raw, params.extra_args, tail=prompt - longest)
    if params.prompt_logprobs is not None and given:
        raise PromptsError(
            "the tokens of a prompt have no probability under a mixture whose policies read "
            "different ones; leave prompt_logprobs and echo out"
        )
    return [token for ids in given for token in ids]


def _check_not_empty(
    spec: MixtureSpec, heads: Iterable[Any], extra_args: Any, *, tail: int
) -> None:
    weights = wire.from_extra_args(extra_args) or spec.uniform_weights
    for name, ids, weight in zip(spec.member_names, heads, weights, strict=True):
        if weight and ids is not None and not len(ids) + tail:
            raise PromptsError(
                f"the prompt of policy {name!r} is empty; give it a token, or the weight 0"
            )


def _listed(spec: MixtureSpec) -> str:
    return ", ".join(spec.member_names)

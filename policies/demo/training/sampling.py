"""Draws responses from a policy or a log-linear mixture, and scores responses, in plain torch.

Shapes: N sequences, T tokens, V vocabulary, K policies. Log-probabilities are natural logs in
float32, summed over the response and its end-of-sequence token.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

MAX_RESPONSE_TOKENS = 160
_BATCH_ROWS = 512


@dataclass(frozen=True, kw_only=True)
class Response:
    """One continuation of a context."""

    context: str
    """Text up to the response, chat markup included."""
    context_ids: tuple[int, ...]
    ids: tuple[int, ...]
    """Response tokens, with the end-of-sequence token unless the length limit came first."""
    text: str
    logprob: float
    """Log-probability under the policy or mixture that drew the response."""


@torch.no_grad()
def sample_responses(
    policies: Sequence[Any],
    tokenizer: Tokenizer,
    contexts: Sequence[str],
    *,
    seed: int,
    weights: Sequence[float] = (1.0,),
) -> list[Response]:
    """Draws one response per context at temperature 1, in the order of the contexts.

    Each token is drawn from softmax(sum_k weights[k] * logits_k), the served mixture.

    Args:
      policies: K models over one vocabulary.
      contexts: texts to continue; repeat one to draw several responses.
      weights: K mixture weights.
    """
    generator = torch.Generator().manual_seed(seed)
    all_ids = [tuple(encoding.ids) for encoding in tokenizer.encode_batch(list(contexts))]
    by_length: dict[int, list[int]] = defaultdict(list)
    for index, ids in enumerate(all_ids):
        by_length[len(ids)].append(index)  # contexts of equal length need neither padding nor masks
    responses: dict[int, Response] = {}
    for length in sorted(by_length):
        for start in range(0, len(by_length[length]), _BATCH_ROWS):
            rows = by_length[length][start : start + _BATCH_ROWS]
            prompt_NT = torch.tensor([all_ids[row] for row in rows])
            drawn = _sample_batch(policies, weights, prompt_NT, generator)
            for row, (ids, logprob) in zip(rows, drawn, strict=True):
                responses[row] = Response(
                    context=contexts[row],
                    context_ids=all_ids[row],
                    ids=ids,
                    text=tokenizer.decode(list(ids), skip_special_tokens=True).strip(),
                    logprob=logprob,
                )
    return [responses[index] for index in range(len(contexts))]


def _sample_batch(
    policies: Sequence[Any], weights: Sequence[float], prompt_NT: Tensor, generator: torch.Generator
) -> list[tuple[tuple[int, ...], float]]:
    eos = int(policies[0].config.eos_token_id)
    ids: list[list[int]] = [[] for _ in prompt_NT]
    logprobs = [0.0] * len(ids)
    active = torch.arange(len(ids))
    caches: list[Any] = [None] * len(policies)
    step_NT = prompt_NT
    for _ in range(MAX_RESPONSE_TOKENS):
        mixed_NV = torch.zeros(())
        for k, (policy, weight) in enumerate(zip(policies, weights, strict=True)):
            output = policy(step_NT, past_key_values=caches[k], use_cache=True, logits_to_keep=1)
            caches[k] = output.past_key_values
            mixed_NV = mixed_NV + weight * output.logits[:, -1].float()
        logprobs_NV = mixed_NV.log_softmax(-1)
        token_N = torch.multinomial(logprobs_NV.exp(), 1, generator=generator)[:, 0]
        chosen_N = logprobs_NV.gather(1, token_N[:, None])[:, 0]
        for row, token, logprob in zip(
            active.tolist(), token_N.tolist(), chosen_N.tolist(), strict=True
        ):
            ids[row].append(token)
            logprobs[row] += logprob
        going_N = (token_N != eos).nonzero()[:, 0]
        if not len(going_N):
            break
        for cache in caches:
            cache.batch_select_indices(going_N)
        active, step_NT = active[going_N], token_N[going_N, None]
    return [(tuple(row), logprob) for row, logprob in zip(ids, logprobs, strict=True)]


def response_logprobs(
    policy: Any, context_ids: Sequence[Sequence[int]], response_ids: Sequence[Sequence[int]]
) -> Tensor:
    """Returns log pi(response | context), float32 [N]; differentiable."""
    lengths = [len(c) + len(r) for c, r in zip(context_ids, response_ids, strict=True)]
    ids_NT = torch.zeros(len(lengths), max(lengths), dtype=torch.long)
    is_response_NT = torch.zeros(ids_NT.shape, dtype=torch.bool)
    for row, (context, response) in enumerate(zip(context_ids, response_ids, strict=True)):
        ids_NT[row, : lengths[row]] = torch.tensor([*context, *response])
        is_response_NT[row, len(context) : lengths[row]] = True
    # padding stands on the right, so the causal mask alone hides it
    logits_NTV = policy(ids_NT[:, :-1]).logits.float()
    chosen_NT = -torch.nn.functional.cross_entropy(
        logits_NTV.transpose(1, 2), ids_NT[:, 1:], reduction="none"
    )
    return (chosen_NT * is_response_NT[:, 1:]).sum(-1)


@torch.no_grad()
def score_responses(policy: Any, responses: Sequence[Response], *, batch_rows: int = 32) -> Tensor:
    """Returns log pi(response | context) of drawn responses, float32 [N]."""
    order = sorted(range(len(responses)), key=lambda i: len(responses[i].ids))
    logprobs_N = torch.empty(len(responses))
    for start in range(0, len(order), batch_rows):
        rows = order[start : start + batch_rows]
        logprobs_N[rows] = response_logprobs(
            policy, [responses[i].context_ids for i in rows], [responses[i].ids for i in rows]
        )
    return logprobs_N

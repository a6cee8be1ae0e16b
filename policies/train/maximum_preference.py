"""The loss of Maximum Preference Optimization, and the order of its data, in plain torch.

With s the scale and p = sigmoid(s (log pi(y_w|x) - log pi(y_l|x))) for a pair of a chosen and a
rejected answer, log-probabilities being those of whole answers, the loss is

    - E_pairs[p] - c_sft E_sft[log pi(y|x)] - c_text E_text[log pi(z)]

The first term takes the preference itself as reward. At s = 1, p is the probability that the
policy, restricted to the two answers, picks the chosen one; it is maximised on data drawn by
another policy. The other two terms are, up to a constant, forward KL divergences KL(pi_data || pi)
on answers and texts of the model that the policy should stay close to. They are estimated on
samples kept in a file, so that no reference model is needed. p needs no reward model either: the
policy is the only model in memory.

A pair's gradient is s p (1 - p) times that of the log-probability difference; DPO's is
beta (1 - p), with p taken relative to the reference. Both vanish for a pair that is clearly won.
This loss also has a vanishing gradient for a pair that is clearly lost, so that a flipped label
pulls less the more the policy disagrees. The same property can stop training: at s = 1 most pairs
of long answers start saturated, and the policy hardly moves. A scale near
1 / (spread of the differences) learns.

Source: Jiang, Huang and Wei 2023, Preference as Reward, Maximum Preference Optimization with
Importance Sampling, arXiv 2312.16430. Only its abstract was available: preference as reward,
importance sampling, off-policy KL terms, offline SFT and pre-training data, neither reward nor
reference model. Inferred here, and not checked against the paper's text: the sigmoid of the plain
log-probability difference, its scale (the paper may have 1), sums rather than means over tokens,
one SFT row and one text a pair, and every default coefficient.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

import torch

# Shape letters: N rows (sequences), B pairs, T tokens, V vocabulary.

IGNORED = -100
"""Label of a token that is not learned."""


@dataclass(frozen=True)
class Terms:
    """The loss and its parts, each a scalar tensor."""

    loss: torch.Tensor
    preference: torch.Tensor
    """Mean p, from 0 to 1."""
    sft: torch.Tensor
    """Mean log pi(y|x) of the SFT rows, in nats; 0 without SFT rows."""
    text: torch.Tensor


def sequence_logprobs(logits_NTV: torch.Tensor, labels_NT: torch.Tensor) -> torch.Tensor:
    """Sums log pi(label) over the learned tokens of each row.

    Args:
      logits_NTV: raw logits; those at t predict the label at t + 1.
      labels_NT: token ids; IGNORED for tokens that are not learned.
    Returns: [N], natural log, float32 or wider.
    """
    logits_NTV = logits_NTV[:, :-1]
    labels_NT = labels_NT[:, 1:]
    if logits_NTV.dtype in (torch.bfloat16, torch.float16):
        logits_NTV = logits_NTV.float()
    learned_NT = labels_NT != IGNORED
    chosen_NT = logits_NTV.gather(-1, labels_NT.clamp(min=0)[..., None])[..., 0]
    logprobs_NT = chosen_NT - logits_NTV.logsumexp(-1)
    # Not a product with the mask: -inf of a banned token outside the answer would become NaN.
    return torch.where(learned_NT, logprobs_NT, 0.0).sum(-1)


def maximum_preference_loss(
    chosen_B: torch.Tensor,
    rejected_B: torch.Tensor,
    sft_N: torch.Tensor,
    text_N: torch.Tensor,
    *,
    scale: float,
    sft_weight: float,
    text_weight: float,
) -> Terms:
    """The loss of a batch of whole-answer log-probabilities; see the module's docstring.

    Args:
      sft_N, text_N: log-probabilities of regulariser rows; empty for none.
    """
    preference = torch.sigmoid(scale * (chosen_B - rejected_B)).mean()
    sft = sft_N.mean() if len(sft_N) else preference.new_zeros(())
    text = text_N.mean() if len(text_N) else preference.new_zeros(())
    loss = -preference - sft_weight * sft - text_weight * text
    return Terms(loss=loss, preference=preference, sft=sft, text=text)


def shuffled_passes(num_rows: int, *, seed: str) -> Iterator[int]:
    """Endless row indices: pass after pass over all rows, each pass in a new order."""
    rng = random.Random(seed)
    while True:
        order = list(range(num_rows))
        rng.shuffle(order)
        yield from order

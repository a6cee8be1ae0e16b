"""Preference data and direct preference optimisation of one objective. Plain torch.

Pairs are two responses of the reference policy to one prompt. Which of them is "chosen" is drawn
from the Bradley-Terry law of their reward gap and not taken from its sign: the optimum is then a
finite tilt of the reference policy, and its log ratio is close to linear in the reward.
"""

import math
import random
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer

from policies.demo.sampling import Response, response_logprobs, sample_responses, score_responses
from policies.demo.tokenizer import chat_text


@dataclass(frozen=True, kw_only=True)
class PreferenceConfig:
    """How one policy is aligned."""

    num_responses: int = 32
    """Reference responses a prompt."""
    label_scale: float = 6.0
    """P(first is chosen) = sigmoid(label_scale * reward gap / reward standard deviation)."""
    beta: float = 1.0
    """Factor of the log ratios in the DPO loss."""
    num_steps: int = 120
    batch_pairs: int = 32
    learning_rate: float = 1e-3
    """AdamW's rate for the layers, falling linearly to 0."""
    embedding_learning_rate: float = 5e-3
    """The same for the embeddings, whose entries are ten times larger."""


@dataclass(frozen=True, kw_only=True)
class ReferenceResponses:
    """Responses of the reference policy, by prompt, with its log-probabilities."""

    responses: tuple[Response, ...]
    logprobs: tuple[float, ...]
    """log pi_reference(response | context), as the DPO loss computes it."""


def draw_reference_responses(
    reference: Any,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    config: PreferenceConfig,
    *,
    seed: int,
) -> ReferenceResponses:
    """Draws and scores responses to chat prompts, and to every fourth prompt without markup too."""
    contexts = [chat_text(prompt) for prompt in prompts] + list(prompts[::4])
    repeated = [context for context in contexts for _ in range(config.num_responses)]
    responses = sample_responses([reference], tokenizer, repeated, seed=seed)
    logprobs = score_responses(reference, responses).tolist()
    return ReferenceResponses(responses=tuple(responses), logprobs=tuple(logprobs))


def draw_pairs(
    data: ReferenceResponses,
    reward: Callable[[str], float],
    num_pairs: int,
    *,
    label_scale: float,
    seed: int,
) -> list[tuple[int, int]]:
    """Draws (chosen, rejected) indices of two responses to one context, labels included."""
    rng = random.Random(seed)
    rewards = [reward(response.text) for response in data.responses]
    scale = label_scale / statistics.stdev(rewards)
    by_context: dict[str, list[int]] = defaultdict(list)
    for index, response in enumerate(data.responses):
        by_context[response.context].append(index)
    groups = list(by_context.values())
    pairs: list[tuple[int, int]] = []
    while len(pairs) < num_pairs:
        first, second = rng.sample(rng.choice(groups), k=2)
        margin = scale * (rewards[first] - rewards[second])
        is_first_chosen = rng.random() < 1 / (1 + math.exp(-margin))
        pairs.append((first, second) if is_first_chosen else (second, first))
    return pairs


def train_policy(
    policy: Any, data: ReferenceResponses, pairs: list[tuple[int, int]], config: PreferenceConfig
) -> float:
    """Trains a copy of the reference policy in place; returns the mean loss of the last 20 steps.

    loss = -log sigmoid(beta * (h_chosen - h_rejected)), h = log pi(y|x) - log pi_reference(y|x).
    Source: Rafailov et al. 2023, Direct Preference Optimization, equation 7.
    """
    embeddings = policy.get_input_embeddings().weight
    layers = [parameter for parameter in policy.parameters() if parameter is not embeddings]
    optimizer = torch.optim.AdamW(
        [
            {"params": layers, "lr": config.learning_rate},
            {"params": [embeddings], "lr": config.embedding_learning_rate},
        ],
        weight_decay=0.0,
    )
    schedule = torch.optim.lr_scheduler.LinearLR(
        optimizer, start_factor=1.0, end_factor=0.0, total_iters=config.num_steps
    )
    reference_logprobs = torch.tensor(data.logprobs)
    losses: list[float] = []
    policy.train()
    for step in range(config.num_steps):
        batch = pairs[step * config.batch_pairs : (step + 1) * config.batch_pairs]
        rows = [chosen for chosen, _ in batch] + [rejected for _, rejected in batch]
        logprobs = response_logprobs(
            policy,
            [data.responses[i].context_ids for i in rows],
            [data.responses[i].ids for i in rows],
        )
        chosen_N, rejected_N = (logprobs - reference_logprobs[rows]).chunk(2)
        loss = -torch.nn.functional.logsigmoid(config.beta * (chosen_N - rejected_N)).mean()
        # a policy that still equals its reference has loss ln 2; data of another reference has not
        assert step or abs(loss.item() - math.log(2)) < 1e-3, f"first loss is {loss.item()}"
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        losses.append(loss.item())
    policy.eval()
    return statistics.fmean(losses[-20:])

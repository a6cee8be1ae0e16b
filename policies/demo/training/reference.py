"""Supervised training of the reference policy on the grammar's reviews, in plain torch."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer

from prefmix.policies.demo.reviews.grammar import Review
from prefmix.policies.demo.training.tokenizer import (
    EOS,
    SPECIAL_TOKENS,
    chat_text,
    continuation_text,
)

SYSTEM_MESSAGES: tuple[str, ...] = (
    "You are a helpful assistant.",
    "You write reviews.",
    "You are a careful reviewer.",
    "Answer the user.",
)
_IGNORED = -100
_TOKENS_PER_EXAMPLE = 30
"""Constant divisor of the loss: a mean over a batch of one length would favour short reviews."""


@dataclass(frozen=True, kw_only=True)
class ReferenceConfig:
    """Settings of the reference policy's training."""

    num_steps: int = 5000
    batch_examples: int = 16
    learning_rate: float = 6e-3
    """Peak rate of Muon, for the matrices of the layers."""
    embedding_learning_rate: float = 2.5e-2
    """Peak rate of AdamW, for embeddings and norms."""
    warmup_steps: int = 50
    max_gradient_norm: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Example:
    """Token ids and, for each position, True if the token is learned."""

    ids: tuple[int, ...]
    is_target: tuple[bool, ...]


def make_examples(reviews: list[Review], tokenizer: Tokenizer, *, seed: int) -> list[Example]:
    """Encodes reviews as training examples; only the review itself is learned.

    Of ten examples about six are a chat of one turn, one has a system message, one a second turn,
    and two have no chat markup at all, as a raw completion (a quarter of those without a prompt).
    """
    rng = random.Random(seed)
    examples = []
    for index, review in enumerate(reviews):
        form = rng.random()
        if form < 0.6:
            turns = [(chat_text(review.prompt), review.text)]
        elif form < 0.7:
            turns = [(chat_text(review.prompt, system=rng.choice(SYSTEM_MESSAGES)), review.text)]
        elif form < 0.8:
            earlier = reviews[index - 1]
            later = chat_text(review.prompt).removeprefix("<s>")
            turns = [(chat_text(earlier.prompt), earlier.text), (later, review.text)]
        else:
            turns = [(review.prompt if form < 0.95 else "", review.text)]
        examples.append(encode(turns, tokenizer))
    return examples


def encode(turns: list[tuple[str, str]], tokenizer: Tokenizer) -> Example:
    """Encodes (context, answer) turns; the answers are learned."""
    eos = SPECIAL_TOKENS.index(EOS)
    ids: list[int] = []
    is_target: list[bool] = []
    for context, answer in turns:
        context_ids = tokenizer.encode(context).ids
        answer_ids = [*tokenizer.encode(continuation_text(context, answer)).ids, eos]
        ids += [*context_ids, *answer_ids]
        is_target += [False] * len(context_ids) + [True] * len(answer_ids)
    return Example(ids=tuple(ids), is_target=tuple(is_target))


def train_reference(
    model: Any,
    examples: list[Example],
    config: ReferenceConfig,
    *,
    seed: int,
    report: Callable[[str], None] = print,
) -> float:
    """Trains in place over one pass of the examples and returns the last loss, in nats a token."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.Muon(
            matrices,
            lr=config.learning_rate,
            weight_decay=0.05,
            adjust_lr_fn="match_rms_adamw",
        ),
        torch.optim.AdamW(
            others, lr=config.embedding_learning_rate, betas=(0.9, 0.95), weight_decay=0.0
        ),
    ]
    schedules = [
        torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            max_lr=optimizer.param_groups[0]["lr"],
            total_steps=config.num_steps,
            pct_start=config.warmup_steps / config.num_steps,
            cycle_momentum=False,
            div_factor=50,
        )
        for optimizer in optimizers
    ]
    model.train()
    recent: list[float] = []
    for step, batch in enumerate(_batches(examples, config, seed=seed)):
        ids_NT, labels_NT = _pad(batch)
        logits_NTV = model(ids_NT[:, :-1]).logits
        total = torch.nn.functional.cross_entropy(
            logits_NTV.flatten(0, 1),
            labels_NT[:, 1:].flatten(),
            ignore_index=_IGNORED,
            reduction="sum",
        )
        (total / (config.batch_examples * _TOKENS_PER_EXAMPLE)).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_gradient_norm)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        recent = [*recent[-99:], total.item() / int((labels_NT[:, 1:] != _IGNORED).sum())]
        if (step + 1) % 1000 == 0:
            report(f"  step {step + 1}: {sum(recent) / len(recent):.4f} nats a token")
    model.eval()
    return sum(recent) / len(recent)


def _batches(examples: list[Example], config: ReferenceConfig, *, seed: int) -> list[list[Example]]:
    """Batches of similar length, in random order; one pass."""
    rng = random.Random(seed)
    size = config.batch_examples
    shuffled = rng.sample(examples, k=config.num_steps * size)
    bucket = 64 * size
    batches = []
    for start in range(0, len(shuffled), bucket):
        by_length = sorted(shuffled[start : start + bucket], key=lambda e: len(e.ids))
        batches += [by_length[i : i + size] for i in range(0, len(by_length), size)]
    rng.shuffle(batches)
    return batches


def _pad(batch: list[Example]) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns ids and labels, int64 [N, T], padded on the right."""
    longest = max(len(example.ids) for example in batch)
    ids_NT = torch.zeros(len(batch), longest, dtype=torch.long)
    labels_NT = torch.full_like(ids_NT, _IGNORED)
    for row, example in enumerate(batch):
        ids = torch.tensor(example.ids)
        ids_NT[row, : len(ids)] = ids
        target = torch.tensor(example.is_target)
        labels_NT[row, : len(ids)] = torch.where(target, ids, _IGNORED)
    return ids_NT, labels_NT

"""The loss against finite differences in float64, and against one written by hand."""

import itertools
import math

import torch

from prefmix.policies.data.tokens import Example
from prefmix.policies.train.maximum_preference import (
    IGNORED,
    maximum_preference_loss,
    sequence_logprobs,
    shuffled_passes,
)
from prefmix.policies.train.maximum_trainer import PlannedExamples, collate

COEFFICIENTS = {"scale": 0.3, "sft_weight": 0.05, "text_weight": 0.02}


def _loss(logits_NTV: torch.Tensor, labels_NT: torch.Tensor) -> torch.Tensor:
    """Rows: two chosen, two rejected, two SFT answers, one text."""
    groups = torch.split(sequence_logprobs(logits_NTV, labels_NT), [2, 2, 2, 1])
    return maximum_preference_loss(*groups, **COEFFICIENTS).loss


def _batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits_NTV = torch.randn(7, 5, 6, generator=generator, dtype=torch.float64)
    labels_NT = torch.randint(0, 6, (7, 5), generator=generator)
    labels_NT[:, :2] = IGNORED
    labels_NT[3, 4] = IGNORED
    return logits_NTV, labels_NT


def test_gradient_is_that_of_finite_differences() -> None:
    logits_NTV, labels_NT = _batch()
    logits_NTV.requires_grad_()
    assert torch.autograd.gradcheck(_loss, (logits_NTV, labels_NT), eps=1e-6, atol=1e-9)


def test_loss_is_the_one_written_by_hand() -> None:
    """A policy over {0, 1, 2} with one distribution for all contexts."""
    law = [0.5, 0.3, 0.2]

    def logprob(*tokens: int) -> float:
        return sum(math.log(law[token]) for token in tokens)

    rows = {"chosen": (0, 1), "rejected": (2, 2), "sft": (1,), "text": (0, 2)}
    p = 1 / (1 + math.exp(-0.3 * (logprob(0, 1) - logprob(2, 2))))
    expected = -p - 0.05 * logprob(1) - 0.02 * logprob(0, 2)

    items = [{role: Example(ids=(0, *ids), num_context=1) for role, ids in rows.items()}]
    batch = collate(items, pad_id=2)
    logits_NTV = torch.tensor(law, dtype=torch.float64).log().expand(4, 3, 3)
    groups = torch.split(sequence_logprobs(logits_NTV, batch["labels"]), batch["sizes"].tolist())
    terms = maximum_preference_loss(*groups, **COEFFICIENTS)
    assert math.isclose(terms.loss.item(), expected, rel_tol=1e-12)
    assert math.isclose(terms.preference.item(), p, rel_tol=1e-12)


def test_pair_pulls_with_p_times_one_minus_p() -> None:
    """A pair lost by far pulls as little as one won by far; DPO's pulls with 1 - p."""
    for margin in (-40.0, -3.0, 0.0, 3.0, 40.0):
        chosen_B = torch.tensor([margin], dtype=torch.float64, requires_grad=True)
        none = torch.zeros(0, dtype=torch.float64)
        loss = maximum_preference_loss(
            chosen_B, torch.zeros(1), none, none, scale=1.0, sft_weight=1.0, text_weight=1.0
        ).loss
        loss.backward()
        p = 1 / (1 + math.exp(-margin))
        assert chosen_B.grad is not None
        assert math.isclose(-chosen_B.grad.item(), p * (1 - p), abs_tol=1e-15)


def test_banned_tokens_outside_the_answer_do_not_matter() -> None:
    logits_NTV, labels_NT = _batch()
    clean_N = sequence_logprobs(logits_NTV, labels_NT)
    logits_NTV[:, 0] = -math.inf
    logits_NTV[:, 0, 3] = 0.0
    assert torch.equal(sequence_logprobs(logits_NTV, labels_NT), clean_N)


def test_every_pass_visits_every_row_once() -> None:
    order = list(itertools.islice(shuffled_passes(5, seed="a"), 15))
    assert all(sorted(order[i : i + 5]) == list(range(5)) for i in (0, 5, 10))
    assert order == list(itertools.islice(shuffled_passes(5, seed="a"), 15))
    assert order != list(itertools.islice(shuffled_passes(5, seed="b"), 15))


def test_plan_pairs_each_preference_with_a_row_of_each_stream() -> None:
    examples = [Example(ids=(0, i), num_context=1) for i in range(10)]
    streams = {"pairs": [(examples[0], examples[1])] * 2, "sft": examples[2:6], "text": []}
    plan = PlannedExamples(streams, 8, seed=0)
    items = [plan[i] for i in range(8)]
    assert len(plan) == 8
    assert all(item.keys() == {"chosen", "rejected", "sft"} for item in items)
    assert sorted(item["sft"].ids for item in items) == sorted(2 * [e.ids for e in examples[2:6]])


def test_batch_stacks_roles_and_learns_answers_only() -> None:
    long, short = Example(ids=(5, 6, 7, 8), num_context=2), Example(ids=(5, 6, 9), num_context=2)
    batch = collate([{"chosen": long, "rejected": short}] * 2, pad_id=0)
    assert batch["sizes"].tolist() == [2, 2, 0, 0]
    assert batch["labels"].tolist() == 2 * [[-100, -100, 7, 8]] + 2 * [[-100, -100, 9, -100]]
    assert batch["input_ids"][2].tolist() == [5, 6, 9, 0]
    assert batch["attention_mask"][2].tolist() == [1, 1, 1, 0]

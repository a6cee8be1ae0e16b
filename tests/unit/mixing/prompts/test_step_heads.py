"""The rows of a step: which of them a policy has, and the ids and positions that it reads."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from prefmix.mixing import wire
from prefmix.mixing.prompts.request_heads import RequestHeads
from prefmix.mixing.prompts.step_heads import StepHeads

NUM_MEMBERS = 3


def random_request(rng: np.random.Generator) -> tuple[list[int], list[list[int]] | None]:
    """(the engine's text, the heads): the longest head begins the text."""
    text = [int(token) for token in rng.integers(100, 200, size=rng.integers(1, 30))]
    if rng.random() < 0.3:
        return text, None
    heads = [
        [int(token) for token in rng.integers(0, 100, size=rng.integers(0, 12))]
        for _ in range(NUM_MEMBERS)
    ]
    return max(heads, key=len) + text, heads


def of_request(heads: list[list[int]] | None) -> RequestHeads | None:
    return None if heads is None else RequestHeads.of_request({wire.HEADS_KEY: heads}, NUM_MEMBERS)


@pytest.mark.parametrize("seed", range(30))
def test_each_policy_reads_its_own_prompt(seed: int) -> None:
    """Chunks of random requests; a policy's prompt is its head, then the tail."""
    rng = np.random.default_rng(seed)
    starts, seq_lens, ids, places = [0], [], [], []
    requests = [random_request(rng) for _ in range(6)]
    for text, _ in requests:
        first = int(rng.integers(0, len(text)))
        end = int(rng.integers(first + 1, len(text) + 1))
        ids += text[first:end]
        places += range(first, end)
        starts.append(len(ids))
        seq_lens.append(end)
    heads = [of_request(each) for _, each in requests]
    step = StepHeads(
        heads,
        np.array([[0] * NUM_MEMBERS if each is None else each.shifts_M for each in heads]),
        query_start_loc=torch.tensor(starts, dtype=torch.int32),
        seq_lens=torch.tensor(seq_lens, dtype=torch.int32),
        input_ids=torch.tensor(ids, dtype=torch.int32),
    )
    positions_T = torch.tensor(places)
    for member in range(NUM_MEMBERS):
        expected = []
        for row, (text, own) in enumerate(requests):
            longest = 0 if own is None else max(map(len, own))
            prompt = text if own is None else own[member] + text[longest:]
            shift = len(text) - len(prompt)
            for token in range(starts[row], starts[row + 1]):
                at = places[token] - shift
                if at >= 0:
                    expected.append((token, prompt[at], at))
        tokens = step.tokens(member, None)
        own_ids, own_positions = step.inputs(member, tokens, positions_T)
        found = zip(tokens.tolist(), own_ids.tolist(), own_positions.tolist(), strict=True)
        assert list(found) == expected
        among = torch.tensor([token for token in range(len(ids)) if token % 2])
        assert step.tokens(member, among).tolist() == [t for t, _, _ in expected if t % 2]

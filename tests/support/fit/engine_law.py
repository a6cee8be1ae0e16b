"""A check that both engines of a fit, in this process and over HTTP, must pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prefmix.mixing.spec import MixtureSpec, Policy
from prefmix.weights.engines.prompts import Prompt
from support.engines import spec_of_folders
from support.exactness import Oracle

PROMPTS = [Prompt(id=str(index), text=text) for index, text in enumerate(("the", "weights are"))]


def mixture(policies: list[Path]) -> MixtureSpec:
    """Two policies and a reference."""
    spec = spec_of_folders(policies[:2])
    return MixtureSpec(
        policies=spec.policies, reference=Policy(name="reference", model=str(policies[2]))
    )


def check_engine(engine: Any, policies: list[Path]) -> None:
    """Sampled log-probabilities and one-hot scores equal transformers'."""
    prompts = engine.tokenize(PROMPTS)
    weights = (0.3, 0.7, 0.0)
    drawn = engine.sample(prompts, weights, num_responses=3, max_tokens=6, seed=1)
    assert [len(responses) for responses in drawn] == [3, 3]
    pairs = [
        (prompt, response.tokens)
        for prompt, responses in zip(prompts, drawn, strict=True)
        for response in responses
    ]
    oracle = Oracle(policies)

    def true_logprob(prompt: Any, tokens: Any, row: Any) -> float:
        after = oracle.logprobs((*prompt, *tokens), row)[len(prompt) - 1 :]
        return sum(after[step, token].item() for step, token in enumerate(tokens))

    truth = [true_logprob(prompt, tokens, weights) for prompt, tokens in pairs]
    sampled = [response.logprob for responses in drawn for response in responses]
    assert sampled == pytest.approx(truth, abs=1e-3)
    for row in np.eye(3):
        truth = [true_logprob(prompt, tokens, row) for prompt, tokens in pairs]
        assert engine.score(pairs, tuple(row)) == pytest.approx(truth, abs=1e-3)

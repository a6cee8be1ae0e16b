"""A check that both engines of a fit, in this process and over HTTP, must pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prefmix.mixing.spec import MixtureSpec, Policy
from prefmix.mixing.ways_to_mix import Mixing
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
    """Sampled log-probabilities, figures and one-hot scores equal transformers'."""
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

    def true_law(prompt: Any, tokens: Any, row: Any) -> Any:
        return oracle.logprobs((*prompt, *tokens), row)[len(prompt) - 1 : -1].double().numpy()

    truth = [true_logprob(prompt, tokens, weights) for prompt, tokens in pairs]
    sampled = [response for responses in drawn for response in responses]
    assert [response.logprob for response in sampled] == pytest.approx(truth, abs=1e-3)
    for (prompt, tokens), response in zip(pairs, sampled, strict=True):
        law, figures = true_law(prompt, tokens, weights), response.figures
        assert figures is not None
        assert figures.entropy == pytest.approx(-(np.exp(law) * law).sum(), abs=1e-3)
        for member, row in enumerate(np.eye(3)[:2]):
            own = true_law(prompt, tokens, row)
            assert figures.kl_M[member] == pytest.approx(
                (np.exp(law) * (law - own)).sum(), abs=1e-3
            )
            assert figures.logprob_M[member] == pytest.approx(
                true_logprob(prompt, tokens, row), abs=1e-3
            )
        assert np.isnan([figures.kl_M[2], figures.logprob_M[2]]).all()  # no weight
    for row in np.eye(3):
        truth = [true_logprob(prompt, tokens, row) for prompt, tokens in pairs]
        assert engine.score(pairs, tuple(row)) == pytest.approx(truth, abs=1e-3)


def check_mixed_parameters(engine: Any, policies: list[Path]) -> None:
    """Sampled log-probabilities and scores are those of the mean of the policies' parameters."""
    prompts = engine.tokenize(PROMPTS)
    weights = (0.3, 0.7, 0.0)
    drawn = engine.sample(
        prompts, weights, num_responses=2, max_tokens=6, seed=1, mixing="parameters"
    )
    pairs = [
        (prompt, response.tokens)
        for prompt, responses in zip(prompts, drawn, strict=True)
        for response in responses
    ]
    oracle = Oracle(policies)

    def truth(row: tuple[float, ...], mixing: Mixing) -> list[float]:
        found = []
        for prompt, tokens in pairs:
            after = oracle.logprobs((*prompt, *tokens), row, mixing)[len(prompt) - 1 :]
            found.append(sum(after[step, token].item() for step, token in enumerate(tokens)))
        return found

    sampled = [response for responses in drawn for response in responses]
    assert [each.logprob for each in sampled] == pytest.approx(
        truth(weights, "parameters"), abs=1e-3
    )
    assert {each.figures for each in sampled} == {None}, "no policy has run as itself"
    near = (0.35, 0.65, 0.0)
    scores = engine.score(pairs, near, mixing="parameters")
    assert scores == pytest.approx(truth(near, "parameters"), abs=1e-3)
    assert scores != pytest.approx(truth(near, "logits"), abs=1e-2)

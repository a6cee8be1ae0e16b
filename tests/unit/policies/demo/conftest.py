"""Builds of the demo policies, at toy size."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from prefmix.policies.demo import EVALUATION_PROMPTS
from prefmix.policies.demo.reviews.prompts import TRAINING_PROMPTS


@pytest.fixture
def shortened(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes the build of a module draw few and short responses, without words about it."""

    def shorten(module: str) -> None:
        monkeypatch.setenv("TQDM_DISABLE", "1")  # training sets both
        monkeypatch.setenv("VLLM_LOGGING_LEVEL", "ERROR")
        training = "prefmix.policies.demo.training"
        # A policy of few training steps seldom ends by itself.
        monkeypatch.setattr(f"{training}.sampling.MAX_RESPONSE_TOKENS", 16)
        monkeypatch.setattr(f"{training}.evaluation.EVALUATION_PROMPTS", EVALUATION_PROMPTS[:8])
        monkeypatch.setattr(f"{module}.TRAINING_PROMPTS", TRAINING_PROMPTS[:8])

    return shorten

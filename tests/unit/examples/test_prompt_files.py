"""The prompts of the examples, which README and docs fit and evaluate on."""

from __future__ import annotations

from pathlib import Path

from prefmix.policies.demo.reviews.prompts import EVALUATION_PROMPTS, TRAINING_PROMPTS
from prefmix.weights.engines.prompts import read_prompts

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"


def contents(name: str) -> list[str]:
    found = []
    for prompt in read_prompts(EXAMPLES / name):
        assert prompt.messages is not None
        (message,) = prompt.messages
        found.append(message["content"])
    return found


def test_held_out_prompts_are_ones_that_no_policy_has_seen() -> None:
    fitted, held_out = contents("prompts.jsonl"), contents("heldout.jsonl")
    assert set(fitted) <= set(TRAINING_PROMPTS)
    assert set(held_out) <= set(EVALUATION_PROMPTS)
    assert len(set(fitted)) == len(set(held_out)) == 12

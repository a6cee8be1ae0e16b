"""The demo policies: a reference policy and three single-objective policies, all very small.

The policies positive, concise and polite were aligned from one reference policy that writes short
reviews, one by each method of `prefmix train`. Their objectives conflict, so that a mixture has a
trade-off to make. `build` makes the policies, by `training.recipes`.

This module is pure Python: its import loads neither torch, transformers nor vllm.
"""

from pathlib import Path

from prefmix.policies.demo.reviews.prompts import EVALUATION_PROMPTS
from prefmix.policies.demo.reviews.rewards import REWARDS

CHECKPOINTS: Path = Path(__file__).resolve().parent / "checkpoints"
"""Folder with one Hugging Face checkpoint per policy: reference, positive, concise, polite."""

SHARP: Path = CHECKPOINTS.with_name("sharp")
"""Folder with one adapter of the reference per policy: positive, concise, polite, far apart."""

__all__ = ["CHECKPOINTS", "EVALUATION_PROMPTS", "REWARDS", "SHARP"]

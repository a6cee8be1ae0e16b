"""A reference policy and three single-objective policies, small enough to commit and to read.

positive, concise and polite were each aligned from one reference policy that writes short
reviews, one by each method of `prefmix train`; their objectives conflict, so a mixture has
something to trade. `build` makes them, by `training.recipes`.

This module is pure Python: importing it loads neither torch, transformers nor vllm.
"""

from pathlib import Path

from prefmix.policies.demo.reviews.prompts import EVALUATION_PROMPTS
from prefmix.policies.demo.reviews.rewards import REWARDS

CHECKPOINTS: Path = Path(__file__).resolve().parent / "checkpoints"
"""Folder with one Hugging Face checkpoint a policy: reference, positive, concise, polite."""

__all__ = ["CHECKPOINTS", "EVALUATION_PROMPTS", "REWARDS"]

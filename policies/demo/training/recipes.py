"""The recipes of the demo policies: each is trained by another method of `prefmix train`."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A method of `prefmix train` and its settings, without files and seed."""

    method: str
    settings: Mapping[str, Any]

    @property
    def num_pairs(self) -> int:
        """Number of pairs at which each pair is seen once."""
        return int(self.settings["steps"] * self.settings["batch_pairs"])

    def shortened(self, factor: int) -> "Recipe":
        """The recipe with fewer steps."""
        fewer = {
            name: max(1, value // factor)
            for name, value in self.settings.items()
            if name in ("steps", "online_steps")
        }
        return replace(self, settings={**self.settings, **fewer})


RECIPES: dict[str, Recipe] = {
    "positive": Recipe(
        method="maximum-preference",
        settings={
            "steps": 150,
            "batch_pairs": 32,
            "learning_rate": 2e-3,
            "scale": 0.1,
            "sft_weight": 0.0167,
        },
    ),
    "concise": Recipe(
        method="dpo",
        settings={"steps": 120, "batch_pairs": 32, "learning_rate": 2e-3, "beta": 1.0},
    ),
    "polite": Recipe(
        method="mixed-preference",
        settings={
            "reward": "prefmix.policies.demo.judges:polite",
            "quantile": 0.5,
            "steps": 60,
            "batch_pairs": 32,
            "learning_rate": 2e-3,
            "beta": 1.0,
            "online_steps": 40,
            "online_prompts": 8,
            "num_answers": 8,
            "online_learning_rate": 5e-4,
            "online_beta": 0.3,
            "max_new_tokens": 160,
        },
    ),
}
"""Objective -> recipe of its policy."""


def sharp_recipe(**settings: float) -> Recipe:
    """The recipe of every sharp policy: DPO of an adapter, far from its base.

    Args: settings: of the method, in place of the recipe's own.
    """
    own = {
        "steps": 120,
        "batch_pairs": 32,
        "learning_rate": 5e-3,
        "beta": 0.1,
        "lora_rank": 8,
        "lora_alpha": 16.0,
    }
    return Recipe(method="dpo", settings={**own, **settings})


def train(objective: str, recipe: Recipe, base: Path, data: Path, *, seed: int) -> Path:
    """Trains one policy as `prefmix train` does; returns its folder.

    Args:
      base: checkpoint of the reference policy.
      data: folder with `<objective>.jsonl`, the pairs, and sft.jsonl; the policy goes there too.
    """
    from prefmix.policies.train.jobs import run
    from prefmix.policies.train.settings import METHODS, build

    files: dict[str, Any] = {
        "base": str(base),
        "data": data / f"{objective}.jsonl",
        "output": data / objective,
    }
    if recipe.method == "maximum-preference":
        files["sft_data"] = data / "sft.jsonl"
    shared = {"seed": seed, "save_steps": 10_000}
    return run(build(METHODS[recipe.method], {**recipe.settings, **files, **shared}))

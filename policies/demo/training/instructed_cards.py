"""Model cards of the instructed demo policy and its adapter; the build measures their numbers."""

from collections.abc import Mapping

from prefmix.policies.demo.reviews.styles import STYLES
from prefmix.policies.demo.training.cards import OBJECTIVES, recipe_settings
from prefmix.policies.demo.training.evaluation import Measurement, format_table
from prefmix.policies.demo.training.preference import LABEL_SCALE
from prefmix.policies.demo.training.recipes import Recipe
from prefmix.policies.demo.training.reference import ReferenceConfig

_HEADER = """---
license: apache-2.0
language: en
library_name: {library}
tags: [prefmix, demo]
---

# prefmix instructed demo policy{title}
"""

_POLICY = """
The demo's reference policy (policies/demo/checkpoints/reference), whose card says what it writes,
trained further to follow instructions in the system message. One such model with a prompt for each
policy is a mixture: docs/prompts.md shows it.

## Instructions

{styles}
Several may stand one after the other. `Notes: the bed was lumpy, the pool was clean.` states facts
about the item, of which one to three were seen in training. The policy follows all of them in part:
in training a fifth of the notes were about another review.

## Training

- Start: the demo's reference policy.
- Data: {num_reviews} further reviews by the project's grammar (policies/demo/reviews/grammar.py),
  with system messages that describe them (policies/demo/training/instructed.py). No outside text.
- Cross-entropy of the review's tokens, {num_steps:,} steps of {batch_examples}, Muon and AdamW,
  cosine schedule, seed {seed}.
"""

_ADAPTER = """
An adapter of the instructed policy (policies/demo/instructed/base), trained without instructions.
docs/prompts.md has it beside policies that are prompts.

## Training

- Objective: {objective} (policies/demo/reviews/rewards.py).
- Data: pairs of the instructed policy's own responses ({total}, without instructions) to the 128
  training prompts; the chosen one of a pair is drawn from the Bradley-Terry law,
  P = sigmoid({scale} * reward gap / standard deviation). {num_pairs} pairs.
- Method: direct preference optimisation.
{settings}
"""

_TAIL = """
## Measured

{num_responses} responses to 64 prompts that no policy was trained on, temperature 1, in float32.
Standard errors of the mean rewards are at most {error:.3f}. A row is the system message.

{table}

## Reproduce

`make setup-train`, then
`python -m prefmix.policies.demo.build_instructed --output policies/demo/instructed --seed {seed}`;
`manifest.json` holds versions, settings, measurements and hashes. One machine and thread repeats it
exactly; other processors may differ in the last digits and so in the parameters.

Licence: Apache-2.0.
"""


def instructed_card(
    measured: Mapping[str, Measurement], config: ReferenceConfig, *, seed: int
) -> str:
    """The card of the instructed policy."""
    styles = "".join(
        f"- {name}: " + ", ".join(f"`{wording}`" for wording in style.wordings) + "\n"
        for name, style in STYLES.items()
    )
    body = _POLICY.format(
        styles=styles,
        num_reviews=f"{config.num_steps * config.batch_examples:,}",
        num_steps=config.num_steps,
        batch_examples=config.batch_examples,
        seed=seed,
    )
    return _HEADER.format(library="transformers", title="") + body + _tail(measured, seed)


def instructed_adapter_card(
    name: str,
    measured: Mapping[str, Measurement],
    recipe: Recipe,
    *,
    num_responses: int,
    seed: int,
) -> str:
    """The card of an adapter of the instructed policy."""
    body = _ADAPTER.format(
        objective=OBJECTIVES[name],
        total=f"{num_responses:,}",
        scale=f"{LABEL_SCALE:g}",
        num_pairs=f"{recipe.num_pairs:,}",
        settings=recipe_settings(recipe, seed),
    )
    return _HEADER.format(library="peft", title=f": {name}") + body + _tail(measured, seed)


def _tail(measured: Mapping[str, Measurement], seed: int) -> str:
    errors = [error for row in measured.values() for error in row.reward_errors.values()]
    return _TAIL.format(
        num_responses=f"{next(iter(measured.values())).num_responses:,}",
        error=max(errors),
        table=format_table(measured),
        seed=seed,
    )

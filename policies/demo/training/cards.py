"""Model cards of the demo policies; every number in them comes from the build that wrote them."""

import textwrap
from collections.abc import Mapping
from typing import Any

from prefmix.policies.demo.training.evaluation import Measurement, format_table
from prefmix.policies.demo.training.preference import LABEL_SCALE
from prefmix.policies.demo.training.recipes import Recipe
from prefmix.policies.demo.training.reference import ReferenceConfig

OBJECTIVES: dict[str, str] = {
    "positive": "favourable opinion words: tanh(sum of valences / 3)",
    "concise": "short answers: max(0, 1 - words / 40)",
    "polite": "courtesy: tanh((courtesy markers - casual markers / 2) / 2)",
}
"""Objective -> the words that its reward counts; the code is policies/demo/reviews/rewards.py."""

METHODS: dict[str, str] = {
    "dpo": "direct preference optimisation.",
    "maximum-preference": """Maximum Preference Optimization (arXiv 2312.16430, as far as its
  abstract tells), kept near the reference by all of those responses as SFT data.""",
    "mixed-preference": """Mixed Preference Optimization (arXiv 2403.19443): direct preference
  optimisation on the pairs of clear reward gap, then RLOO, in place of the paper's PPO, on the
  prompts of the others, against the objective's own reward function.""",
}
"""Method of `prefmix train` -> its steps for the demo policy."""

_HEADER = """---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: text-generation
tags: [prefmix, demo]
---

# prefmix demo policy: {name}

{role}
It writes short reviews of 32 invented hotels, restaurants, films and devices, in answer to
prompts such as "Review the Park Hotel." It exists to show policy mixing on any machine and has no
other use.
"""

_TAIL = """
## Measured

{num_responses} responses to 64 prompts that no policy was trained on, temperature 1, computed in
float32 from the bfloat16 parameters of these folders. Standard errors of the mean rewards are at
most {error:.3f}. KL(row || column) is in nats a response. "uniform mixture" draws every token from
the log-linear mixture of positive, concise and polite with equal weights; "grammatical" is the
fraction of whole responses that the generating grammar could have written word for word.

{table}

## Input

The chat template writes the beginning-of-sequence token `<s>` and the tokenizer never adds one: a
chat has exactly one, a raw completion prompt has none, and the policy has seen both forms
(`Review the Park Hotel.` continues with a space and a review). Do not put `<s>` before a chat
message yourself. The end of an answer is `</s>`. Positions go up to 1024 tokens; training text
stayed below 200.

## Limits

- It knows its 32 items, six question forms and a few hundred words; anything else is answered
  with a review of something it knows, or with broken text.
- It states opinions about things that do not exist. Nothing it writes is information.
- The rewards are word counts, and the policies exploit them: that is the conflict being shown.
- Sample it, at temperature 1. Greedy decoding often repeats one kind of sentence up to the length
  limit.
- Some responses repeat an aspect, contradict themselves or mix up the adjectives of two aspects.

## Reproduce

`make setup-train`, then
`python -m prefmix.policies.demo.build --output policies/demo/checkpoints --seed {seed}`;
`manifest.json` holds the versions, settings, measurements and hashes. One machine and thread
repeats it exactly; other processors may differ in the last digits and so in the parameters.

Licence: Apache-2.0.
"""

_ADAPTER = """---
license: apache-2.0
language: en
library_name: peft
tags: [prefmix, demo]
---

# prefmix sharp demo policy: {name}

An adapter of the demo's reference policy (policies/demo/checkpoints/reference), whose card says
what it writes. It is far from its base on purpose: it shows where a mixture of logits and a mean of
parameters differ.

## Training

- Objective: {objective} (policies/demo/reviews/rewards.py).
- Data: pairs of the reference policy's own responses ({total} in all) to the 128 training prompts;
  the chosen one of a pair is drawn from the Bradley-Terry law,
  P = sigmoid({scale} * reward gap / standard deviation). {num_pairs} pairs.
- Method: direct preference optimisation.
{settings}
- Result: mean reward {reward}, reference policy {reference}; KL(policy || reference) {kl} nats a
  response.

## Measured

{num_responses} responses to 64 prompts that no policy was trained on, temperature 1, in float32.
Standard errors of the mean rewards are at most {error:.3f}. KL(row || column) is in nats a
response. "uniform mixture" mixes logits, "uniform average" parameters, both with equal weights.

{table}

## Reproduce

`make setup-train`, then
`python -m prefmix.policies.demo.build_sharp --output policies/demo/sharp --seed {seed}`;
`manifest.json` holds versions, settings, measurements and hashes. One machine and thread repeats it
exactly; other processors may differ in the last digits and so in the parameters.

Licence: Apache-2.0.
"""


def reference_card(
    measured: Mapping[str, Measurement], config: ReferenceConfig, *, num_parameters: int, seed: int
) -> str:
    """The card of the reference policy."""
    role = (
        "The reference policy of prefmix's demo, from which the three single-objective policies "
        "were aligned."
    )
    body = f"""
## Training

- Model: Llama architecture, {num_parameters:,} parameters, random initialisation.
- Data: {config.num_steps * config.batch_examples:,} reviews written by the project's own grammar
  (policies/demo/reviews/grammar.py), in equal parts casual, plain and formal, from very bad to
  very good, one to seven sentences. No outside text.
- Objective: cross-entropy of the review's tokens, {config.num_steps} steps of
  {config.batch_examples}, Muon and AdamW, cosine schedule, seed {seed}.
"""
    return (
        _HEADER.format(name="reference", role=role)
        + body
        + _TAIL.format(**_figures(measured), seed=seed)
    )


def policy_card(
    name: str,
    measured: Mapping[str, Measurement],
    recipe: Recipe,
    *,
    num_responses: int,
    seed: int,
) -> str:
    """The card of one single-objective policy."""
    own, reference = measured[name], measured["reference"]
    role = (
        f"One of the three single-objective policies of prefmix's demo: {name}. Trained by\n"
        f"`prefmix train {recipe.method}`."
    )
    body = f"""
## Training

- Start: the demo's reference policy (folder `reference`).
- Objective: {OBJECTIVES[name]} (policies/demo/reviews/rewards.py).
- Data: pairs of the reference policy's own responses ({num_responses:,} in all) to the 128 training
  prompts; the chosen one of a pair is drawn from the Bradley-Terry law,
  P = sigmoid({LABEL_SCALE:g} * reward gap / standard deviation). {recipe.num_pairs:,} pairs.
- Method: {METHODS[recipe.method]}
{recipe_settings(recipe, seed)}
- Result: mean reward {own.rewards[name]:+.3f}, reference policy {reference.rewards[name]:+.3f};
  KL(policy || reference) {own.kl["reference"]:.2f} nats a response.
"""
    return (
        _HEADER.format(name=name, role=role) + body + _TAIL.format(**_figures(measured), seed=seed)
    )


def adapter_card(
    name: str,
    measured: Mapping[str, Measurement],
    recipe: Recipe,
    *,
    num_responses: int,
    seed: int,
) -> str:
    """The card of one sharp policy."""
    own = measured[name]
    return _ADAPTER.format(
        name=name,
        objective=OBJECTIVES[name],
        total=f"{num_responses:,}",
        scale=f"{LABEL_SCALE:g}",
        num_pairs=f"{recipe.num_pairs:,}",
        settings=recipe_settings(recipe, seed),
        reward=f"{own.rewards[name]:+.3f}",
        reference=f"{measured['reference'].rewards[name]:+.3f}",
        kl=f"{own.kl['reference']:.1f}",
        seed=seed,
        **_figures(measured),
    )


def recipe_settings(recipe: Recipe, seed: int) -> str:
    """A line of a card with the settings of a recipe."""
    settings = ", ".join(f"{key} {value}" for key, value in recipe.settings.items())
    return textwrap.fill(
        f"- Settings: {settings}; the others as the command has them, seed {seed}.",
        98,
        subsequent_indent="  ",
        break_on_hyphens=False,
    )


def _figures(measured: Mapping[str, Measurement]) -> dict[str, Any]:
    """The fields of a card's part on measurements."""
    errors = [error for row in measured.values() for error in row.reward_errors.values()]
    return {
        "num_responses": f"{next(iter(measured.values())).num_responses:,}",
        "error": max(errors),
        "table": format_table(measured),
    }

"""The contestants by name, and the settings from which the process of each is started."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prefmix.bench.contestants.models import LORA_RANK, Models
from prefmix.mixing.spec import MixtureSpec, Policy

ONE_POLICY = "one policy"
FULL = "full checkpoints"
TRUNK = "shared trunk"
PARAMETERS = "shared trunk, parameters"
HALF = "shared trunk, half each"
"""Half of the requests mix logits, half of them parameters."""
SEPARATE = "separate engines"
TRANSFORMERS = "transformers loop"
ONE_BY_ONE = "transformers, one by one"
AVERAGE = "parameter average"
MULTI_LORA = "multi-LoRA"
PROMPTS = "K prompts"
"""One model K times, told apart by the policies' own prompts."""
ONE_PROMPT = "K prompts, all equal"
OUTSIDE = "requests outside"
"""K requests a token, whose log-probabilities a client mixes."""


def contestant_settings(
    models: Models, *, num_policies: int, common: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """The settings of every contestant that the models allow, by name; one policy comes first.

    Args:
      models: from `prepare_models`.
      num_policies: K.
      common: settings that all contestants share, such as vLLM's `options`.
    """
    policies = list(models.policies[:num_policies])
    adapters = list(models.adapters[:num_policies])
    options = common["options"]

    def one(kind: str, **more: Any) -> dict[str, Any]:
        return {**common, "kind": f"prefmix.bench.contestants.implementations:{kind}", **more}

    settings = {ONE_POLICY: one("VllmEngine", model=models.one)}
    if len(policies) == num_policies:
        # The smallest block: a step recomputes the tokens in the last, unfinished block.
        cached = {**options, "enable_prefix_caching": True, "block_size": 32}
        settings |= {
            FULL: one("VllmEngine", model=policies[0], mixture=_mixture(policies)),
            SEPARATE: one("SeparateEngines", models=policies, options=cached),
            TRANSFORMERS: one("TransformersLoop", models=policies, is_batched=True),
            ONE_BY_ONE: one("TransformersLoop", models=policies, is_batched=False),
        }
    if len(adapters) == num_policies:
        lora = {"enable_lora": True, "max_loras": num_policies, "max_lora_rank": LORA_RANK}
        trunk = _mixture(adapters, base=models.base)
        settings |= {
            TRUNK: one("VllmEngine", model=models.base, mixture=trunk),
            PARAMETERS: one("VllmEngine", model=models.base, mixture=trunk, mixings=["parameters"]),
            HALF: one(
                "VllmEngine", model=models.base, mixture=trunk, mixings=["logits", "parameters"]
            ),
            MULTI_LORA: one(
                "VllmEngine", model=models.base, adapters=adapters, options={**options, **lora}
            ),
        }
    if models.average is not None:
        settings[AVERAGE] = one("VllmEngine", model=models.average)
    return settings


def prompt_settings(
    models: Models, *, num_policies: int, common: Mapping[str, Any], top_logprobs: int
) -> dict[str, dict[str, Any]]:
    """The settings of the contestants that mix K prompts of one model; one policy comes first.

    Args: top_logprobs: asked of each request outside; the others as of `contestant_settings`.
    """
    model = models.one

    def one(kind: str, **more: Any) -> dict[str, Any]:
        kind = f"prefmix.bench.contestants.implementations:{kind}"
        return {**common, "kind": kind, "model": model, **more}

    mixture = _mixture([model] * num_policies, base=model, has_prompts=True)
    # The smallest block: a step recomputes the tokens in the last, unfinished block.
    cached = {**common["options"], "enable_prefix_caching": True, "block_size": 32}
    return {
        ONE_POLICY: one("VllmEngine"),
        PROMPTS: one("VllmEngine", mixture=mixture),
        OUTSIDE: one(
            "PromptsOutside",
            options=cached,
            top_logprobs=top_logprobs,
            kv_cache_bytes=num_policies * common["kv_cache_bytes"],
        ),
    }


def _mixture(
    models: Sequence[str], *, base: str | None = None, has_prompts: bool = False
) -> dict[str, Any]:
    policies = (Policy(name=f"p{index}", model=model) for index, model in enumerate(models))
    spec = MixtureSpec(policies=tuple(policies), base=base, has_prompts=has_prompts)
    return spec.to_dict()

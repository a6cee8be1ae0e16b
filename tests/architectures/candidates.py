"""The architectures that both vLLM and transformers have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from architectures.variants import VARIANTS

TOLERANCE_NATS = 1e-4
"""The largest error of a log-probability that counts as exact."""

POPULAR = (
    "Llama Qwen2 Qwen3 Mistral Gemma2 Gemma3 Gemma Phi3 Phi GPT2LMHeadModel GPTNeoX OPT Falcon "
    "Bloom Mixtral Qwen3Moe Qwen2Moe GptOss DeepseekV3 DeepseekV2 GPTJ StableLm Starcoder2 "
    "GPTBigCode Olmo Olmo2 Olmo3 Olmoe Cohere Cohere2 Granite GraniteMoe Glm Glm4 Glm4Moe Nemotron "
    "SmolLM3 Ernie4_5 Ernie4_5_Moe Exaone4 SeedOss Apertus HunYuanDenseV1 Llama4 Gemma3n Gemma4 "
    "Lfm2 Jamba Mamba Mamba2 Zamba2 FalconH1 NemotronH Qwen3Next Qwen3_5 MiniCPM3 Dbrx"
)
"""The beginnings of the names of classes that are tried first, in this order."""

_TEXT_TYPES = ("gpt2", "llama4_text", "qwen3_5_text", "qwen3_5_moe_text", "qwen4_exp_text")
"""Model types that stand for their architecture where it has several."""


@dataclass(frozen=True)
class Candidate:
    """One architecture, or one of the forms that it has."""

    architecture: str
    """Name of the class in transformers."""
    model_type: str
    served_as: str
    """Name of vLLM's class."""
    variant: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Entries of the config that make the variant."""

    @property
    def name(self) -> str:
        """The architecture and its variant."""
        return f"{self.architecture} ({self.variant})" if self.variant else self.architecture


def candidates() -> list[Candidate]:
    """All text-generation architectures that both packages have, the popular ones first."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as OURS
    from vllm.model_executor.models.registry import (
        _TEXT_GENERATION_MODELS,
        _TRANSFORMERS_SUPPORTED_MODELS,
    )

    served = {**_TEXT_GENERATION_MODELS, **_TRANSFORMERS_SUPPORTED_MODELS}
    by_case = {name.lower(): name for name in served}
    model_types: dict[str, str] = {}
    for model_type, architecture in OURS.items():
        if architecture not in model_types or model_type in _TEXT_TYPES:
            model_types[architecture] = model_type
    found = []
    for architecture, model_type in model_types.items():
        known = by_case.get(architecture.lower())
        if known is None:
            continue
        for variant, settings in VARIANTS.get(architecture, {"": {}}).items():
            served_as = served[known][1]
            found.append(Candidate(architecture, model_type, served_as, variant, settings))
    return sorted(found, key=_place)


def _place(candidate: Candidate) -> tuple[int, str]:
    stem, first = candidate.architecture.removesuffix("ForCausalLM"), POPULAR.split()
    return (first.index(stem) if stem in first else len(first), candidate.name.lower())

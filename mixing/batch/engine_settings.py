"""Facts about the mixture in the engine's configuration: its spec, and if skipping is allowed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefmix.mixing.spec import CONFIG_KEY, MixtureSpec

if TYPE_CHECKING:
    from vllm.config import VllmConfig

SCHEDULER_PATH = "prefmix.mixing.engine.scheduler.mixture_scheduler"
"""Import path of the scheduler that keeps cache blocks of different sets of members apart."""


def spec_of(vllm_config: VllmConfig) -> MixtureSpec:
    """The mixture that an engine serves, read from its model config."""
    return MixtureSpec.from_dict(getattr(vllm_config.model_config.hf_config, CONFIG_KEY))


def can_skip(vllm_config: VllmConfig) -> bool:
    """True if members without weight may be skipped: their cache blocks are kept apart."""
    return vllm_config.scheduler_config.scheduler_cls == SCHEDULER_PATH

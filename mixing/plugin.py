"""vLLM's way in: `register` runs in every vLLM process (entry point group vllm.general_plugins)."""

from __future__ import annotations

import os

from mixing.spec import ARCHITECTURE


def register() -> None:
    """Makes the composite model and its start-up checks known to vLLM. May run repeatedly."""
    from vllm.model_executor.models import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP
    from vllm.platforms import current_platform

    from mixing.admission import MixtureConfig

    MODELS_CONFIG_MAP[ARCHITECTURE] = MixtureConfig
    if ARCHITECTURE not in ModelRegistry.get_supported_archs():
        ModelRegistry.register_model(ARCHITECTURE, f"mixing.model:{ARCHITECTURE}")
    if current_platform.is_cpu():
        # vLLM 0.32 writes ahead-of-time artefacts on CPU that it can never load again.
        os.environ.setdefault("VLLM_USE_AOT_COMPILE", "0")

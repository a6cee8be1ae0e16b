"""vLLM's way in: `register` runs in every vLLM process (entry point group vllm.general_plugins)."""

from __future__ import annotations

import os

from prefmix.mixing.spec import ARCHITECTURE, TRUNK_ARCHITECTURE

_MODULES = {
    ARCHITECTURE: "prefmix.mixing.models.full_checkpoints",
    TRUNK_ARCHITECTURE: "prefmix.mixing.models.shared_trunk",
}


def register() -> None:
    """Makes the composite models and their start-up checks known to vLLM. May run repeatedly."""
    from vllm.model_executor.models import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP
    from vllm.platforms import current_platform

    from prefmix.mixing.engine.admission import MixtureConfig
    from prefmix.mixing.workarounds.parent_watch import end_with_parent

    end_with_parent()
    for architecture, module in _MODULES.items():
        MODELS_CONFIG_MAP[architecture] = MixtureConfig
        if architecture not in ModelRegistry.get_supported_archs():
            ModelRegistry.register_model(architecture, f"{module}:{architecture}")
    if current_platform.is_cpu():
        # vLLM 0.32 writes ahead-of-time artefacts on CPU that it can never load again.
        os.environ.setdefault("VLLM_USE_AOT_COMPILE", "0")
        from prefmix.mixing.workarounds.cpu_polling import sleep_while_polling

        sleep_while_polling()

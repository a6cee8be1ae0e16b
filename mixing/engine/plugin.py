"""The plugin that vLLM loads in every process (entry point group vllm.general_plugins)."""

from __future__ import annotations

import sys

from prefmix.mixing.spec import ARCHITECTURE, TRUNK_ARCHITECTURE

_MODULES = {
    ARCHITECTURE: "prefmix.mixing.models.full_checkpoints",
    TRUNK_ARCHITECTURE: "prefmix.mixing.models.shared_trunk",
}


def register() -> None:
    """Registers the composite models and their start-up checks with vLLM. May run repeatedly."""
    from vllm.model_executor.models import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP

    from prefmix.mixing.engine import pulse, self_check
    from prefmix.mixing.engine.config_hook import MixtureConfig
    from prefmix.mixing.slots import commands
    from prefmix.mixing.workarounds import apply_in_process

    apply_in_process()
    if "vllm.v1.engine.core" in sys.modules:  # a process that runs an engine, or asks one
        self_check.install()
        pulse.install()
        commands.install()
    for architecture, module in _MODULES.items():
        MODELS_CONFIG_MAP[architecture] = MixtureConfig
        if architecture not in ModelRegistry.get_supported_archs():
            ModelRegistry.register_model(architecture, f"{module}:{architecture}")

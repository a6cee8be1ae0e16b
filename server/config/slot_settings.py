"""Settings of the slots for policies that come while the server runs."""

from __future__ import annotations

from dataclasses import replace

from prefmix.mixing.spec import MixtureSpec
from prefmix.server.config.errors import ConfigError

MAX_ADAPTER_RANK = 16
"""Default of the largest rank that a slot has room for."""


def with_slots(
    spec: MixtureSpec, *, adapter_slots: int, max_adapter_rank: int, policies_dir: str | None
) -> MixtureSpec:
    """The mixture as the engine gets it: with the slots of a configuration.

    Raises: ConfigError for slots that no engine can have, or nothing could fill.
    """
    if not adapter_slots:
        if policies_dir is not None:
            raise ConfigError(
                "policies_dir is given, but there are no slots for what it holds; add "
                "--adapter-slots N, or leave it out"
            )
        return spec
    if spec.base is None:
        raise ConfigError(
            "adapter_slots hold adapters of a base, and these policies are full checkpoints; serve "
            "a base and adapters (--base, --adapter), or leave --adapter-slots out"
        )
    if spec.has_prompts:
        raise ConfigError(
            "adapter_slots and prompts of the policies' own cannot be had together yet; leave one "
            "of them out"
        )
    if policies_dir is None:
        raise ConfigError("adapter_slots need --policies-dir FOLDER, where adapters lie; add it")
    return replace(spec, adapter_slots=adapter_slots, max_adapter_rank=max_adapter_rank)

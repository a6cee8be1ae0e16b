"""Settings of the slots for policies that come while the server runs."""

from __future__ import annotations

from dataclasses import replace

from prefmix.mixing.name_list import listed
from prefmix.mixing.spec import MixtureSpec
from prefmix.server.config.errors import ConfigError
from prefmix.weights.store.added import AddedPolicies

MAX_ADAPTER_RANK = 16
"""Default of the largest rank that a slot has room for."""


def with_slots(
    spec: MixtureSpec,
    *,
    adapter_slots: int,
    slots_without_kv: int,
    max_adapter_rank: int,
    slot_prompts: bool,
    policies_dir: str | None,
    policies_manifest: str | None = None,
) -> MixtureSpec:
    """The mixture as the engine gets it: with the slots of a configuration.

    Args: slot_prompts: true for slots whose policies may have prompts of their own.
    Raises: ConfigError for slots that no engine can have, or nothing could fill.
    """
    if slots_without_kv > adapter_slots:
        raise ConfigError(
            f"adapter_slots_without_kv is {slots_without_kv}, but counts among the adapter_slots, "
            f"which are {adapter_slots}; give --adapter-slots {slots_without_kv} or more"
        )
    if not adapter_slots:
        if policies_dir is not None:
            raise ConfigError(
                "policies_dir is given, but there are no slots for what it holds; add "
                "--adapter-slots N, or leave it out"
            )
        if policies_manifest is not None:
            raise ConfigError(
                "policies_manifest is given, but there are no slots for the policies that it "
                "names; add --adapter-slots N, or leave it out"
            )
        return spec
    if spec.base is None:
        raise ConfigError(
            "adapter_slots hold adapters of a base, and these policies are full checkpoints; serve "
            "a base and adapters (--base, --adapter), or leave --adapter-slots out"
        )
    slot_prompts = slot_prompts and slots_without_kv < adapter_slots  # a prompt needs a KV cache
    if policies_dir is None and not slot_prompts:
        raise ConfigError("adapter_slots need --policies-dir FOLDER, where adapters lie; add it")
    return replace(
        spec,
        adapter_slots=adapter_slots,
        slots_without_kv=slots_without_kv,
        max_adapter_rank=max_adapter_rank,
        has_prompts=spec.has_prompts or slot_prompts,
    )


def prompts_refusal(added: AddedPolicies, engine: MixtureSpec) -> str | None:
    """A phrase about an engine that cannot give added policies their prompts; None if it can."""
    names = [name for name, each in added.items() if each.system is not None]
    if not names or (engine.has_prompts and engine.mixing == "logits"):
        return None
    why = "mixing is parameters, which is one model that reads one prompt; start it with logits"
    if not engine.has_prompts:
        why = "this configuration takes none; start it without --no-slot-prompts"
    return f"added policies with prompts of their own ({listed(names)}), and {why}"

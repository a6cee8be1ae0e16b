"""Runs the hooks by which vLLM lets a model's architecture change the engine's configuration.

vLLM runs them for the architecture that it serves, which is a mixture's own. So each member's hook
runs here, on a copy of the configuration. What it changes is a wish: an engine has one setting for
all members, so wishes that cannot hold for all are refused.

Source: vllm.model_executor.models.config.MODELS_CONFIG_MAP (vLLM 0.32).
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from prefmix.mixing.checkpoints.compatibility import CompatibilityError
from prefmix.mixing.spec import MixtureSpec

if TYPE_CHECKING:
    from vllm.config import ModelConfig, VllmConfig

_HARMLESS_FOR_OTHERS = (
    "attention_config.backend",
    "attention_config.flash_attn_version",
    "compilation_config.",
)
"""Settings under which a model without the wish computes the same: kernels, graphs."""

Wishes = dict[str, dict[str, Any]]
"""Setting, as `part.field` -> member -> the value that its hook sets."""


def run_model_hook(spec: MixtureSpec, model_config: ModelConfig) -> None:
    """Runs the first checkpoint's hook on the model config that it gives the engine, such as the
    kind of its quantisation. Those of others run on their own (prefmix.mixing.models.loading)."""
    from prefmix.mixing.models.loading import hook_of, member_hf_config

    hook = hook_of(member_hf_config(spec.checkpoints[0], model_config).architectures)
    if hook is not None:
        hook.verify_and_update_model_config(model_config)


def run_engine_hooks(spec: MixtureSpec, vllm_config: VllmConfig) -> None:
    """Runs every checkpoint's hook, and sets what they wish on the engine's configuration.

    Raises: CompatibilityError naming a setting that two members need otherwise, or that only some
      need.
    """
    from prefmix.mixing.models.loading import hook_of, member_vllm_config

    wishes: Wishes = {}
    for index, member in enumerate(spec.checkpoints):
        trial = member_vllm_config(vllm_config, member, index=index)
        hook = hook_of(trial.model_config.architectures)
        if hook is None:
            continue
        for name, part in _parts(trial):
            setattr(trial, name, copy.deepcopy(part))
        before = {name: copy.deepcopy(vars(part)) for name, part in _parts(trial)}
        hook.verify_and_update_config(trial)
        for setting, value in _changes(before, trial):
            wishes.setdefault(setting, {})[member.name] = value
    names = [member.name for member in spec.checkpoints]
    for setting, values in wishes.items():
        _check_wish(setting, values, names)
        part, _, field = setting.partition(".")
        setattr(getattr(vllm_config, part), field, next(iter(values.values())))


def _check_wish(setting: str, values: dict[str, Any], names: list[str]) -> None:
    name, value = next(iter(values.items()))
    flag = setting.replace("_", "-")
    if setting.startswith("model_config."):
        raise CompatibilityError(
            f"policy {name!r} is of an architecture for which vLLM changes {setting}, which it "
            "cannot do for one policy of a mixture; serve it alone"
        )
    other = next((each for each in values if not _is_equal(values[each], value)), None)
    if other is not None:
        raise CompatibilityError(
            f"policies {name!r} and {other!r} need different engine settings: vLLM sets {setting} "
            f"to {value!r:.80} for the one and to {values[other]!r:.80} for the other; choose one "
            f"for both by vLLM's flag for {flag}"
        )
    without = next((each for each in names if each not in values), None)
    if without is not None and not setting.startswith(_HARMLESS_FOR_OTHERS):
        raise CompatibilityError(
            f"vLLM sets {setting} to {value!r:.80} for policy {name!r} and not for {without!r}, "
            f"but one engine has one setting; choose it for both by vLLM's flag for {flag}"
        )


def _parts(vllm_config: VllmConfig) -> Iterator[tuple[str, Any]]:
    """(name, part) of the configuration's parts that a hook may change."""
    for field in dataclasses.fields(vllm_config):
        part = getattr(vllm_config, field.name)
        if dataclasses.is_dataclass(part) and not isinstance(part, type):
            yield field.name, part


def _changes(before: dict[str, dict[str, Any]], after: VllmConfig) -> Iterator[tuple[str, Any]]:
    """(`part.field`, new value) of each setting that has changed."""
    for name, part in _parts(after):
        old = before.get(name, {})
        for field, value in vars(part).items():
            if not _is_equal(old.get(field), value):
                yield f"{name}.{field}", value


def _is_equal(one: Any, other: Any) -> bool:
    to_dict = getattr(one, "to_dict", None)
    if callable(to_dict) and type(one) is type(other):  # configs of transformers
        return bool(to_dict() == other.to_dict())
    return type(one) is type(other) and bool(one == other)

"""Configs, names and checkpoint sources with which vLLM builds and loads each member.

Source of the interfaces: vllm.config.VllmConfig, vllm.model_executor.model_loader (vLLM 0.32).
"""

from __future__ import annotations

import copy
import functools
import inspect
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from vllm.config import ModelConfig, VllmConfig
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader
from vllm.model_executor.model_loader.utils import initialize_model
from vllm.model_executor.models.config import MODELS_CONFIG_MAP, VerifyAndUpdateConfig
from vllm.transformers_utils.config import get_config, get_hf_text_config

from prefmix.mixing.parameters.unfilled import built, lacking, mark
from prefmix.mixing.spec import CONFIG_KEY, OVERRIDDEN_KEYS, MixtureSpec, Policy

_MEMBER_NAME = re.compile(r"members\.p(\d+)\.(.*)", re.DOTALL)


class MemberLoadError(ValueError):
    """Parameters that do not fit the model that the member's config describes."""


def build_member(vllm_config: VllmConfig, member: Policy, *, index: int) -> Any:
    """Builds a member's model, whose layers have names of their own.

    Raises: MemberLoadError for a model class that gives its layers the same names in each member.
    """
    try:
        return built(lambda: initialize_model(vllm_config, prefix=member_prefix(index)))
    except ValueError as error:
        if "Duplicate layer name" not in str(error):
            raise
        architectures = ", ".join(vllm_config.model_config.architectures)
        raise MemberLoadError(
            f"policy {member.name!r}: one engine holds one model of {architectures}, whose experts "
            "vLLM registers without a policy's prefix; serve adapters of it on a shared trunk"
        ) from error


def load_member(
    model: Any, member: Policy, tensors: Iterable[tuple[str, torch.Tensor]]
) -> set[str]:
    """Loads a member's tensors.

    Args:
      model: vLLM's model of this member, from `built`.
      member: the member, for messages.
      tensors: (name in the checkpoint, tensor) pairs.
    Returns: the names of the parameters that were set.
    Raises: MemberLoadError naming the member and the tensor, or what the files lack.
    """
    names = ["none yet"]

    def noted() -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in tensors:
            names.append(name)
            yield name, tensor

    mark(model)
    try:
        loaded: set[str] = model.load_weights(noted())
    except Exception as error:  # of vLLM's loaders, whose assertions do not say what is wrong
        why = " ".join(str(error).split()) or type(error).__name__
        raise MemberLoadError(
            f"policy {member.name!r}: the tensor {names[-1]} of {member.model} cannot be loaded "
            f"({why:.300}); its config.json must belong to its parameters"
        ) from error
    if missing := lacking(model, names):
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise MemberLoadError(
            f"policy {member.name!r}: the files of {member.model} lack {', '.join(missing[:3])}"
            f"{more}, so vLLM would compute with whatever its memory held; copy the whole "
            "checkpoint there, or save it again"
        )
    return loaded


def member_prefix(index: int) -> str:
    """Prefix of the names of a member's modules and tensors in the composite model."""
    return f"members.p{index}"


def split_member_name(name: str) -> tuple[int, str]:
    """A tensor's member and its name in the checkpoint; a bare name belongs to the first member."""
    match = _MEMBER_NAME.fullmatch(name)
    return (int(match[1]), match[2]) if match else (0, name)


def member_hf_config(member: Policy, model_config: ModelConfig) -> Any:
    """The member's own Hugging Face config, read and overridden as vLLM does with a model's."""
    given = model_config.hf_overrides
    assert isinstance(given, dict), "they hold the mixture"
    # The engine's own config is the first member's, with the overrides of that one alone.
    first = MixtureSpec.from_dict(given[CONFIG_KEY]).checkpoints[0].hf_overrides
    shared = {key: given[key] for key in given.keys() - OVERRIDDEN_KEYS - first.keys()}
    overrides = {**shared, **member.hf_overrides}
    nested = {key: value for key, value in overrides.items() if isinstance(value, dict)}
    hf_config = get_config(
        member.model,
        trust_remote_code=model_config.trust_remote_code,
        revision=member.revision,
        config_format=model_config.config_format,
        hf_overrides_kw={key: value for key, value in overrides.items() if key not in nested},
        token=model_config.hf_token,
    )
    model_config._apply_dict_overrides(hf_config, nested)
    return hf_config


def member_vllm_config(vllm_config: VllmConfig, member: Policy, *, index: int) -> VllmConfig:
    """The engine's config with one member's own model config.

    Attention layers read `sliding_window` from the cache config, so that is copied too: otherwise
    every member would get the first one's window.
    """
    hf_config = member_hf_config(member, vllm_config.model_config)
    config = copy.copy(vllm_config)
    config.cache_config = copy.copy(vllm_config.cache_config)
    config.cache_config.sliding_window = uniform_sliding_window(hf_config)
    config = config.with_hf_config(hf_config)
    # Sizes are read from the text config, which with_hf_config leaves as the first member's.
    text_config = get_hf_text_config(config.model_config.hf_config)
    config.model_config.hf_text_config = text_config
    # As vLLM reads a model's own: a window of no tokens is none, and no other member's is.
    if getattr(text_config, "sliding_window", None) == 0:
        text_config.sliding_window = None
    config.model_config.disable_sliding_window = False
    config.model_config.model_arch_config = config.model_config.get_model_arch_config()
    hook = hook_of(config.model_config.architectures)
    if hook is not None:
        hook.verify_and_update_model_config(config.model_config)
    if index:
        config.model_config.model = member.model
        config.model_config.revision = member.revision
    # A head of its own in the files counts more than a config that calls it the embeddings.
    config.model_config.word_embeddings_untied_by_checkpoint = False
    if config.load_config.load_format != "dummy":
        config.model_config.maybe_untie_word_embeddings()
    if config.quant_config is not None:
        config.quant_config = member_quant_config(config.quant_config, index=index)
    return config


def hook_of(architectures: Iterable[str] | None) -> type[VerifyAndUpdateConfig] | None:
    """vLLM's hook for changes of the configuration that a model of some architecture needs."""
    found = (MODELS_CONFIG_MAP.get(architecture) for architecture in architectures or ())
    return next((hook for hook in found if hook is not None), None)


def member_quant_config(quant_config: QuantizationConfig, *, index: int) -> QuantizationConfig:
    """The quantisation, which knows a member's layers by the names of its checkpoint.

    A checkpoint names layers that stay unquantised, or that have a scheme of their own. Under the
    prefix of a member no such name would match, and the layer would be read as quantised.
    """
    own = copy.deepcopy(quant_config)  # a model's class writes its own names into it, too
    prefix = f"{member_prefix(index)}."
    for each in (own, own.online_quantization_config):  # what a user's flag adds to the file's
        if each is not None:
            _call_by_own_names(each, prefix)
    return own


def _call_by_own_names(config: Any, prefix: str) -> None:
    """Makes every method of a config take the names of a member's layers without its prefix."""

    def own_name(value: Any) -> Any:
        return value.removeprefix(prefix) if isinstance(value, str) else value

    def with_own_names(method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            return method(*map(own_name, args), **{k: own_name(v) for k, v in kwargs.items()})

        return call

    for name in dir(type(config)):
        is_method = inspect.isfunction(inspect.getattr_static(config, name))
        if is_method and not (name.startswith("__") and name.endswith("__")):
            setattr(config, name, with_own_names(getattr(config, name)))


def uniform_sliding_window(hf_config: Any) -> int | None:
    """The attention window of a model whose layers all have one; None if any layer attends in full.

    The rule of vllm.engine.arg_utils.EngineArgs.create_engine_config: models that alternate set
    the window layer by layer.
    """
    text_config = get_hf_text_config(hf_config)
    layer_types = getattr(text_config, "layer_types", None)
    if layer_types is not None and any(kind != "sliding_attention" for kind in layer_types):
        return None
    return getattr(text_config, "sliding_window", None) or None


def secondary_sources(spec: MixtureSpec) -> list[DefaultModelLoader.Source]:
    """The checkpoints of all members except the first, which vLLM loads by itself."""
    return [
        DefaultModelLoader.Source(member.model, member.revision, prefix=f"{member_prefix(index)}.")
        for index, member in enumerate(spec.members)
        if index
    ]

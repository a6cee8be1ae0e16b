"""Checks of a mixture's members against the engine that is to run them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from vllm.config import ModelConfig, VllmConfig
from vllm.config.model import _check_valid_dtype
from vllm.logger import init_logger
from vllm.model_executor.models import ModelRegistry
from vllm.model_executor.models.registry import _MULTIMODAL_MODELS

from prefmix.mixing.checkpoints.compatibility import CompatibilityError, check_members
from prefmix.mixing.checkpoints.text_files import check_tokenizer
from prefmix.mixing.models.loading import member_vllm_config
from prefmix.mixing.spec import MixtureSpec, Policy
from prefmix.mixing.vocabulary import CommonVocabulary

logger = init_logger(f"vllm.{__name__}")


def check_engine_members(spec: MixtureSpec, vllm_config: VllmConfig) -> None:
    """Checks the members against the engine, and sets the maximal length that all of them allow
    and the vocabulary that all of them have.

    Raises: CompatibilityError for models that vLLM runs in another way than plain text models.
    """
    model_config = vllm_config.model_config
    checked = check_members(spec, trust_remote_code=model_config.trust_remote_code)
    for warning in checked.warnings:
        logger.warning_once("%s", warning)
    check_tokenizer(
        spec,
        Policy(
            name="tokenizer", model=model_config.tokenizer, revision=model_config.tokenizer_revision
        ),
        trust_remote_code=model_config.trust_remote_code,
    )
    wanted = model_config.original_max_model_len
    first = spec.checkpoints[0]
    own_quantization = _quantization(model_config.hf_config)
    vocabulary = checked.vocabulary
    configs: list[ModelConfig] = []
    for index, member in enumerate(spec.checkpoints):
        with _named(member):
            config = member_vllm_config(vllm_config, member, index=index).model_config
            _check_plain_text_model(member, config, on_trunk=spec.base is not None)
        _check_latent_attention(first, member, config, vllm_config)
        _check_head_sizes(member, config, vllm_config)
        configs.append(config)
        if config.is_moe and vllm_config.parallel_config.data_parallel_size > 1:
            raise CompatibilityError(
                f"policy {member.name!r} has experts, in which data-parallel ranks wait for each "
                "other, but each rank runs what its own requests need; drop --data-parallel-size "
                "and start one 'prefmix serve' per rank"
            )
        if _quantization(config.hf_config) != own_quantization:
            raise CompatibilityError(
                f"policies {first.name!r} and {member.name!r} are quantised differently "
                f"({own_quantization}; {_quantization(config.hf_config)}); one engine runs one "
                "quantisation, convert one of them"
            )
        with _named(member):
            _check_valid_dtype(config.hf_config.model_type, model_config.dtype)
            limit = config.get_and_verify_max_len(
                None if wanted is None else model_config.max_model_len
            )
        model_config.max_model_len = min(model_config.max_model_len, limit)
        vocabulary = vocabulary.up_to(config.get_vocab_size())
        own_dtype, first_dtype = (_saved_dtype(each.hf_config) for each in (config, model_config))
        if own_dtype != first_dtype:
            logger.warning_once(
                "policies %r and %r were saved in %s and %s; all run in %s, choose another with "
                "--dtype",
                *(first.name, member.name, first_dtype, own_dtype),
                str(model_config.dtype).removeprefix("torch."),
            )
    set_vocabulary(model_config, vocabulary)
    _set_traits(model_config, configs)


@contextmanager
def _named(member: Policy) -> Iterator[None]:
    """Adds the member's name to vLLM's refusals, and cuts its list of all architectures."""
    try:
        yield
    except CompatibilityError:
        raise
    except ValueError as error:
        why = " ".join(str(error).split()).partition(" Supported architectures:")[0]
        raise CompatibilityError(
            f"policy {member.name!r} cannot be run by vLLM with these flags: {why:.300}"
        ) from error


def _set_traits(model_config: ModelConfig, configs: Sequence[ModelConfig]) -> None:
    """Gives the engine what any member has, where vLLM looks at the engine's own model alone."""
    # The group of ranks that share experts is made for a model that has some.
    num_experts = max(each.get_num_experts() for each in configs)
    model_config.model_arch_config.num_experts = num_experts
    # A GPU's kernels of attention are chosen by it, once for all layers.
    caps = (getattr(each.hf_text_config, "attn_logit_softcapping", None) for each in configs)
    if (cap := next(filter(None, caps), None)) is not None:
        model_config.hf_text_config.attn_logit_softcapping = cap


def set_vocabulary(model_config: ModelConfig, vocabulary: CommonVocabulary) -> None:
    """Gives the engine the members' common vocabulary, and logits as wide as the shortest one.

    vLLM then refuses ids beyond it wherever it compares them with the model's vocabulary.
    """
    vocabulary.write_into(model_config.hf_config)
    model_config.hf_text_config.vocab_size = vocabulary.num_rows
    model_config.model_arch_config = model_config.get_model_arch_config()


def _saved_dtype(hf_config: Any) -> str:
    """The number format of a checkpoint, of which `--dtype auto` takes the first one's."""
    found = getattr(hf_config, "dtype", None) or getattr(hf_config, "torch_dtype", None)
    return str(found).removeprefix("torch.")


def _quantization(hf_config: Any) -> str:
    settings = getattr(hf_config, "quantization_config", None)
    if settings is None:
        return "none"
    return json.dumps(
        settings if isinstance(settings, dict) else settings.to_dict(), sort_keys=True
    )


def _check_plain_text_model(member: Policy, config: Any, *, on_trunk: bool) -> None:
    for is_refused, kind in (
        (config.architectures[0] in _MULTIMODAL_MODELS, "multimodal"),
        (getattr(config.hf_config, "is_encoder_decoder", False), "an encoder-decoder model"),
    ):
        if is_refused:  # before vLLM looks at the class, which may need packages of its own
            raise _no_plain_text_model(member, kind, config.architectures[0])
    info, architecture = ModelRegistry.inspect_model_cls(config.architectures, config)
    for is_refused, kind in (
        (not info.is_text_generation_model, "no text-generation model"),
        (info.supports_multimodal, "multimodal"),
        (info.is_hybrid or info.is_attention_free, "a state-space or hybrid model"),
        (
            config.use_mla and _is_sparse(config.hf_text_config),
            "a model with sparse latent attention",
        ),
        (config.rswa_window is not None, "a model with a window for all layers of an engine"),
    ):
        if is_refused:
            raise _no_plain_text_model(member, kind, architecture)
    text_config = config.hf_text_config
    if on_trunk and config.use_mla:
        raise CompatibilityError(
            f"policy {member.name!r} has multi-head latent attention ({architecture}), whose "
            "projections become part of the attention of one policy; merge the adapters into it "
            "(peft: merge_and_unload) and serve full checkpoints with --policy"
        )
    if not getattr(text_config, "attention_chunk_size", None):
        return
    if on_trunk:
        raise CompatibilityError(
            f"policy {member.name!r} attends in chunks ({architecture}), which cut up the requests "
            "that a shared trunk joins; merge the adapters into it (peft: merge_and_unload) and "
            "serve full checkpoints with --policy"
        )
    if "full_attention" not in (getattr(text_config, "layer_types", None) or ()):
        raise CompatibilityError(
            f"policy {member.name!r} attends in chunks in every layer ({architecture}), so no "
            "layer says which request a token belongs to; a mixture takes models of which some "
            "layers attend to the whole text"
        )


def _no_plain_text_model(member: Policy, kind: str, architecture: str) -> CompatibilityError:
    return CompatibilityError(
        f"policy {member.name!r} is {kind} ({architecture}); a mixture takes decoder-only text "
        "models whose layers attend, to the whole text, a sliding window or chunks"
    )


def _is_sparse(text_config: Any) -> bool:
    """True for attention to chosen tokens, which has caches of another kind beside the usual."""
    return any(hasattr(text_config, each) for each in ("index_topk", "compress_ratios"))


_LATENT_SIZES = (
    "num_attention_heads",
    "kv_lora_rank",
    "qk_nope_head_dim",
    "qk_rope_head_dim",
    "v_head_dim",
)


def _check_latent_attention(
    first: Policy, member: Policy, config: ModelConfig, vllm_config: VllmConfig
) -> None:
    """Refuses latent attention beside another kind, or of other sizes: an engine has one size of
    blocks, and one preparation of a step, for all layers of this kind."""
    ours, theirs = (
        {name: getattr(each.hf_text_config, name, None) for name in _LATENT_SIZES}
        if each.use_mla
        else None
        for each in (vllm_config.model_config, config)
    )
    if ours != theirs:
        words = [
            "plain attention"
            if sizes is None
            else ", ".join(f"{name} {size}" for name, size in sizes.items())
            for sizes in (ours, theirs)
        ]
        raise CompatibilityError(
            f"policies {first.name!r} and {member.name!r} attend in different ways ({words[0]}; "
            f"{words[1]}), and one engine runs one size of multi-head latent attention, in all "
            "policies or in none; serve policies of one family"
        )


def _check_head_sizes(member: Policy, config: ModelConfig, vllm_config: VllmConfig) -> None:
    """Refuses heads that a CPU's attention cannot compute: vLLM finds it out at the first token."""
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    backend = _attention_backend(config, vllm_config)
    if vllm_config.model_config.dtype not in backend.supported_dtypes:
        raise CompatibilityError(
            f"policy {member.name!r} has multi-head latent attention, which this CPU's AMX "
            "instructions compute in bfloat16 alone; give --dtype bfloat16, or --attention-backend "
            "CPU_MLA"
        )
    allowed = backend.get_supported_head_sizes()
    sizes = _head_sizes(config)
    if wrong := sorted(sizes - set(allowed)):
        raise CompatibilityError(
            f"policy {member.name!r} has heads of {wrong[0]} numbers, and attention on a CPU takes "
            f"{', '.join(map(str, allowed))}; serve it on a GPU, or another model"
        )


def _attention_backend(config: ModelConfig, vllm_config: VllmConfig) -> Any:
    """The class of a model's attention on a CPU, as vLLM's platform chooses it."""
    from torch.cpu import _is_amx_tile_supported
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend
    from vllm.v1.attention.backends.mla.amx_mla import AMXMLABackend
    from vllm.v1.attention.backends.mla.cpu_mla import CPUMLABackend
    from vllm.v1.attention.backends.registry import AttentionBackendEnum

    if not config.use_mla:
        return CPUAttentionBackend
    is_asked = vllm_config.attention_config.backend == AttentionBackendEnum.CPU_MLA
    return AMXMLABackend if _is_amx_tile_supported() and not is_asked else CPUMLABackend


def _head_sizes(config: ModelConfig) -> set[int]:
    """The sizes of a model's heads, in all of its layers."""
    arch = config.model_arch_config
    return {int(arch[layer].head_size) for layer in range(arch.total_num_hidden_layers)}

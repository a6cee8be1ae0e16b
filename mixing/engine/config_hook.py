"""Checks and completes the configuration of an engine that is to serve a mixture.

`MixtureConfig` is vLLM's per-architecture config hook. It runs once, in the front process, before
the engine starts. It refuses options under which per-request weights would be lost or wrong.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

# VerifyAndUpdateConfig's own module is light; vLLM loads it before any model.
from vllm.model_executor.models.config import VerifyAndUpdateConfig

from prefmix.mixing.engine.logits_processor import processor_path
from prefmix.mixing.engine.request_limits import REQUESTS_MODULE, check_all_requests
from prefmix.mixing.spec import CONFIG_KEY, MixtureSpec, SpecError

if TYPE_CHECKING:
    from vllm.config import VllmConfig

WORKER_EXTENSION = "prefmix.mixing.engine.worker_extension.MixtureWorker"
"""Import path of the RPC methods of workers, used unless the user has a worker extension."""


class UnsupportedEngineError(ValueError):
    """An engine option under which per-request weights would be lost or wrong."""


def refuse_unsupported(vllm_config: VllmConfig, spec: MixtureSpec) -> None:
    """Raises UnsupportedEngineError for the first option that cannot carry weights."""
    from vllm.platforms import current_platform
    from vllm.utils import torch_utils

    model_config, parallel = vllm_config.model_config, vllm_config.parallel_config
    compiles = not model_config.enforce_eager
    refused = [
        (
            model_config.runner_type == "pooling",
            "pooling runs no mixture; drop --runner pooling",
        ),
        (
            vllm_config.speculative_config is not None,
            "speculative decoding drafts for one model, not for a mixture; drop its flags",
        ),
        (
            model_config.enable_prompt_embeds,
            "prompt embeddings have one policy's width; drop --enable-prompt-embeds",
        ),
        (
            vllm_config.lora_config is not None,
            "vLLM's LoRA gives a request one adapter of one model; drop --enable-lora",
        ),
        (
            parallel.use_ubatching,
            "micro-batching splits a step without its weights; drop --enable-dbo and --ubatch-size",
        ),
        (
            parallel.pipeline_parallel_size > 1,
            "pipeline parallelism is not supported by a mixture; use --tensor-parallel-size",
        ),
        (
            parallel.prefill_context_parallel_size > 1 or parallel.decode_context_parallel_size > 1,
            "context parallelism is not supported by a mixture; use --tensor-parallel-size",
        ),
        (
            vllm_config.cache_config.kv_sharing_fast_prefill,
            "fast prefill gives some layers other tokens than the step has; drop "
            "--kv-sharing-fast-prefill",
        ),
        (
            spec.base is not None
            and current_platform.is_cpu()
            and (
                vllm_config.kv_transfer_config is not None
                or vllm_config.cache_config.kv_offloading_size is not None
            ),
            "on a CPU the policies of a shared trunk have one KV cache a layer, which no connector "
            "knows; drop --kv-transfer-config and --kv-offloading-size, or serve full checkpoints "
            "with --policy",
        ),
        (
            not vllm_config.use_v2_model_runner and not current_platform.is_cpu(),
            "on this device a mixture needs vLLM's V2 model runner; unset "
            "VLLM_USE_V2_MODEL_RUNNER, and install Triton if it is missing",
        ),
        (
            compiles and not torch_utils._USE_LAYERNAME,
            "compiled policies of one shape would share one set of layers without vLLM's layer "
            "names; unset VLLM_USE_LAYERNAME (torch >= 2.11) or add --enforce-eager",
        ),
    ]
    for is_refused, reason in refused:
        if is_refused:
            raise UnsupportedEngineError(reason)


class MixtureConfig(VerifyAndUpdateConfig):
    """Checks and completes the config of an engine that serves a mixture."""

    @staticmethod
    def verify_and_update_config(vllm_config: VllmConfig) -> None:
        """Refuses what cannot work, then sets admission check, scheduler, maximal length and worker
        extension."""
        from prefmix.mixing.engine.member_checks import check_engine_members

        data = getattr(vllm_config.model_config.hf_config, CONFIG_KEY, None)
        if data is None:
            raise SpecError(
                f"the model config names no policies: start with `prefmix serve`, or give vLLM "
                f"--hf-overrides with the key {CONFIG_KEY!r} (see prefmix.mixing.spec.hf_overrides)"
            )
        spec = MixtureSpec.from_dict(data)
        refuse_unsupported(vllm_config, spec)
        check_engine_members(spec, vllm_config)
        model_config = vllm_config.model_config
        processors = list(model_config.logits_processors or [])
        model_config.logits_processors = [*processors, processor_path(vllm_config, spec)]
        isolate_skipped_policies(vllm_config)
        # This process makes requests. The logits processor is loaded during the first one only,
        # which would go unchecked.
        importlib.import_module(REQUESTS_MODULE)
        check_all_requests()
        if not vllm_config.parallel_config.worker_extension_cls:
            vllm_config.parallel_config.worker_extension_cls = WORKER_EXTENSION


def isolate_skipped_policies(vllm_config: VllmConfig) -> None:
    """Sets the scheduler that keeps cache blocks of different sets of policies apart."""
    from prefmix.mixing.engine import scheduler

    vllm_config.scheduler_config.scheduler_cls = scheduler.choose(vllm_config)

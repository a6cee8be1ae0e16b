"""What is refused, and where: engines that cannot mix at start, requests that cannot at admission.

`MixtureConfig` is vLLM's per-architecture config hook; it runs once in the front process before
the engine starts. The admission check rides on vLLM's logits-processor interface, the one place
every route's sampling parameters pass in the front process (`validate_params`); under V1 the same
class follows the batch's rows for the engine (`update_state`).
"""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING, Any

from prefmix.mixing import wire
from prefmix.mixing.simplex import check_weights
from prefmix.mixing.spec import CONFIG_KEY, MixtureSpec, SpecError

if TYPE_CHECKING:
    import torch
    from vllm.config import VllmConfig
    from vllm.sampling_params import SamplingParams

# VerifyAndUpdateConfig's own module is light; vLLM loads it before any model.
from vllm.model_executor.models.config import VerifyAndUpdateConfig

WORKER_EXTENSION = "prefmix.mixing.engine.worker_extension.MixtureWorker"
"""What the front process may ask of the engine's workers; a user's own extension goes before."""


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
            and vllm_config.kv_transfer_config is not None,
            "on a CPU the policies of a shared trunk have one KV cache a layer, which no connector "
            "knows; drop --kv-transfer-config, or serve full checkpoints with --policy",
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
        """Refuses what cannot work, then adds admission, cache isolation and the common length."""
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
        model_config.logits_processors = [*processors, _processor_path(vllm_config, spec)]
        isolate_skipped_policies(vllm_config)
        if not vllm_config.parallel_config.worker_extension_cls:
            vllm_config.parallel_config.worker_extension_cls = WORKER_EXTENSION


def isolate_skipped_policies(vllm_config: VllmConfig) -> None:
    """Has the scheduler keep apart cache blocks that were filled by different sets of policies."""
    from prefmix.mixing.engine import scheduler

    vllm_config.scheduler_config.scheduler_cls = scheduler.choose(vllm_config)


# --- the admission check ------------------------------------------------------------------------

_PROCESSOR_NAME = re.compile(r"(V1|V2)_(simplex|affine)_(\d+)")


def _processor_path(vllm_config: VllmConfig, spec: MixtureSpec) -> str:
    runner = "V2" if vllm_config.use_v2_model_runner else "V1"
    return f"{__name__}:{runner}_{spec.weight_space}_{spec.num_members}"


def __getattr__(name: str) -> Any:
    """Makes the processor class that a path of `_processor_path` names.

    vLLM loads these classes by path in processes that may never see our config hook and calls
    `validate_params` on the class, without any config: so the class's name carries what it needs.
    """
    match = _PROCESSOR_NAME.fullmatch(name)
    if match is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _processor_class(match[1], match[2], int(match[3]))


@functools.cache
def _processor_class(runner: str, weight_space: Any, num_members: int) -> type:
    def validate_params(cls: type, sampling_params: SamplingParams) -> None:
        """Refuses a request's weights before the engine sees them; vLLM answers HTTP 400."""
        weights = wire.from_extra_args(sampling_params.extra_args)
        if weights is not None:
            check_weights(weights, num_members=num_members, weight_space=weight_space)

    base = _v1_base() if runner == "V1" else _v2_base()
    return type(
        f"{runner}_{weight_space}_{num_members}",
        (base,),
        {"__module__": __name__, "validate_params": classmethod(validate_params)},
    )


def _v1_base() -> type:
    from vllm.v1.sample.logits_processor import LogitsProcessor, MoveDirectionality

    from prefmix.mixing.batch.weights_v1 import apply_batch_update, table_of_engine

    class RowTracker(LogitsProcessor):
        """Touches no logits; keeps the engine's weight table in step with the batch."""

        def __init__(self, vllm_config: VllmConfig, device: torch.device, _is_pin_memory: bool):
            self.table = table_of_engine(vllm_config, device)

        def is_argmax_invariant(self) -> bool:
            return True

        def apply(self, logits: torch.Tensor) -> torch.Tensor:
            return logits

        def update_state(self, batch_update: Any) -> None:
            if batch_update is None:
                return
            apply_batch_update(
                self.table,
                batch_size=batch_update.batch_size,
                added=[(row, params.extra_args) for row, params, _, _ in batch_update.added],
                moved=[
                    (source, target, direction is MoveDirectionality.SWAP)
                    for source, target, direction in batch_update.moved
                ],
            )

    return RowTracker


def _v2_base() -> type:
    from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor

    class AdmissionOnly(LogitsProcessor):
        """Touches no logits; MixtureModelState holds the weights."""

        def add_request(self, req_idx: int, sampling_params: SamplingParams) -> bool:
            return False

        def apply(self, logits: torch.Tensor, ctx: Any) -> torch.Tensor:
            return logits

    return AdmissionOnly

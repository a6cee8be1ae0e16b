"""Checks and completes the configuration of an engine that is to serve a mixture.

`MixtureConfig` is vLLM's per-architecture config hook. It runs once, in the front process, before
the engine starts. It refuses options under which per-request weights would be lost or wrong.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

# VerifyAndUpdateConfig's own module is light; vLLM loads it before any model.
from vllm.model_executor.models.config import VerifyAndUpdateConfig

from prefmix.mixing.batch.engine_settings import can_skip
from prefmix.mixing.checkpoints.safe_files import cached_folder
from prefmix.mixing.checkpoints.whole_files import native_files
from prefmix.mixing.engine.logits_processor import UNSALTED, processor_path
from prefmix.mixing.engine.request_limits import REQUESTS_MODULE, check_all_requests
from prefmix.mixing.prompts.hidden_heads import hide_heads
from prefmix.mixing.spec import (
    ARCHITECTURE,
    CONFIG_KEY,
    TRUNK_ARCHITECTURE,
    MixtureSpec,
    SpecError,
)

if TYPE_CHECKING:
    from vllm.config import ModelConfig, VllmConfig

WORKER_EXTENSION = "prefmix.mixing.engine.worker_extension.MixtureWorker"
"""Import path of the RPC methods of workers, used unless the user has a worker extension."""


class UnsupportedEngineError(ValueError):
    """An engine option under which per-request weights would be lost or wrong."""


def refuse_unsupported(vllm_config: VllmConfig, spec: MixtureSpec) -> None:
    """Raises UnsupportedEngineError for the first option that cannot carry weights."""
    from vllm.config import CompilationMode
    from vllm.platforms import current_platform
    from vllm.triton_utils import HAS_TRITON
    from vllm.utils import torch_utils

    model_config, parallel = vllm_config.model_config, vllm_config.parallel_config
    compiles = not model_config.enforce_eager
    refused = [
        (
            not (current_platform.is_cpu() or current_platform.is_cuda()),
            f"no mixture has been tried on {current_platform.device_name or 'this device'}; use "
            "CPUs or NVIDIA GPUs",
        ),
        (
            model_config.runner_type != "generate" or model_config.convert_type != "none",
            "pooling and drafting run no mixture; drop --runner and --convert",
        ),
        (
            not model_config.logprobs_mode.endswith("logprobs"),
            "the logits of a mixture have no zero point, so only log-probabilities are answered; "
            "drop --logprobs-mode, or give raw_logprobs or processed_logprobs",
        ),
        (
            bool({ARCHITECTURE, TRUNK_ARCHITECTURE} & model_config.model_class_overrides.keys()),
            "another class in the mixture's place knows no weights; name the architectures of "
            "policies in --model-class-overrides",
        ),
        (
            not _reads_several(vllm_config.load_config.load_format),
            f"vLLM's loader for --load-format {vllm_config.load_config.load_format} reads one "
            "checkpoint, and a mixture has several sources; drop the flag",
        ),
        (
            spec.base is not None
            and bool(vllm_config.compilation_config.pass_config.fuse_allreduce_rms),
            "vLLM's fused all-reduce has room for the tokens of one policy, and a shared trunk has "
            "those of all; drop fuse_allreduce_rms from --compilation-config",
        ),
        (
            spec.base is not None and vllm_config.load_config.load_format == "dummy",
            "--load-format dummy reads no base, so nothing says where the adapters belong; drop it",
        ),
        (
            spec.base is not None and _quantises_while_loading(model_config),
            "vLLM quantises a base while it loads it, before anything says where the adapters "
            "belong; drop --quantization, give a base that is quantised already, or serve full "
            "checkpoints with --policy",
        ),
        (
            vllm_config.compilation_config.mode == CompilationMode.STOCK_TORCH_COMPILE,
            "torch would compile the choice of policies with them, for one step and for ever; drop "
            "--compilation-config.mode 1",
        ),
        (
            not _has_worker_methods(parallel.worker_extension_cls),
            f"the class of --worker-extension-cls must be derived from {WORKER_EXTENSION}, whose "
            "methods prefmix calls; derive it, or drop the flag",
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
            vllm_config.use_v2_model_runner and not HAS_TRITON,
            "vLLM's V2 model runner, which draws watermarks, needs Triton, which this machine "
            "lacks; drop --watermark-config, and unset VLLM_USE_V2_MODEL_RUNNER",
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


def refuse_prompts(vllm_config: VllmConfig) -> None:
    """Refuses engines that cannot give the policies prompts of their own.

    Raises: UnsupportedEngineError.
    """
    if vllm_config.model_config.uses_mrope:
        raise UnsupportedEngineError(
            "this model gives a token several positions, and policies with prompts of their own "
            "have one each; leave the prompts out (--no-slot-prompts)"
        )
    if not can_skip(vllm_config):
        raise UnsupportedEngineError(
            "another scheduler, a KV connector or expert parallelism does not know the cache "
            "blocks of policies with prompts of their own; start without, or leave the prompts "
            "out (--no-slot-prompts)"
        )
    if vllm_config.kv_events_config is not None:
        raise UnsupportedEngineError(
            "KV events name cache blocks by one prompt, and the policies have prompts of their "
            "own; drop --kv-events-config, or leave the prompts out (--no-slot-prompts)"
        )


def _quantises_while_loading(model_config: ModelConfig) -> bool:
    """True if linear layers of a checkpoint in floating point become quantised ones."""
    from vllm.config.quantization import resolve_quantization_config

    wanted = resolve_quantization_config(
        model_config.quantization, model_config.quantization_config
    )
    if wanted is not None:
        return bool(wanted.linear or wanted.targets)
    # Methods of checkpoints, of which vLLM has a way for plain ones too.
    is_plain = model_config.model_arch_config.quantization_config is None
    return is_plain and model_config.quantization not in (None, "experts_int8")


def _reads_several(load_format: str) -> bool:
    """True for formats of vLLM's default loader, which alone reads several checkpoints, or of
    none."""
    from vllm.model_executor import model_loader

    loader = model_loader._LOAD_FORMAT_TO_MODEL_LOADER.get(load_format)
    readers = (model_loader.DefaultModelLoader, model_loader.DummyModelLoader)
    return loader is not None and issubclass(loader, readers)


def _has_worker_methods(path: str) -> bool:
    """True if a worker extension has prefmix's methods; without one it is prefmix's own."""
    from vllm.utils.import_utils import resolve_obj_by_qualname

    from prefmix.mixing.engine.worker_extension import MixtureWorker

    return not path or issubclass(resolve_obj_by_qualname(path), MixtureWorker)


class MixtureConfig(VerifyAndUpdateConfig):
    """Checks and completes the config of an engine that serves a mixture."""

    @staticmethod
    def verify_and_update_model_config(model_config: ModelConfig) -> None:
        """Runs the hook of the first checkpoint, from which the engine reads its quantisation."""
        from prefmix.mixing.engine.member_hooks import run_model_hook

        data = getattr(model_config.hf_config, CONFIG_KEY, None)
        if data is not None:  # without, verify_and_update_config says so
            run_model_hook(MixtureSpec.from_dict(data), model_config)

    @staticmethod
    def verify_and_update_config(vllm_config: VllmConfig) -> None:
        """Refuses what cannot work, then sets admission check, scheduler, maximal length and worker
        extension."""
        from prefmix.mixing.engine import self_check
        from prefmix.mixing.engine.member_checks import check_engine_members
        from prefmix.mixing.engine.member_hooks import run_engine_hooks

        self_check.install()  # the engine may run in this process
        data = getattr(vllm_config.model_config.hf_config, CONFIG_KEY, None)
        if data is None:
            raise SpecError(
                f"the model config names no policies: start with `prefmix serve`, or give vLLM "
                f"--hf-overrides with the key {CONFIG_KEY!r} (see prefmix.mixing.spec.hf_overrides)"
            )
        spec = MixtureSpec.from_dict(data)
        refuse_unsupported(vllm_config, spec)
        check_engine_members(spec, vllm_config)
        run_engine_hooks(spec, vllm_config)
        read_transformers_files(spec, vllm_config)
        isolate_skipped_policies(vllm_config)
        if spec.base is not None:
            # On by default under tensor parallelism on some GPUs; refuse_unsupported says why not.
            vllm_config.compilation_config.pass_config.fuse_allreduce_rms = False
        if spec.mixing == "parameters" and not can_skip(vllm_config):
            raise UnsupportedEngineError(UNSALTED)
        if spec.adapter_slots and not can_skip(vllm_config):
            raise UnsupportedEngineError(
                "another scheduler, a KV connector or expert parallelism does not know which "
                "adapter of a slot has computed a cache block; start without, or drop "
                "--adapter-slots"
            )
        if spec.has_prompts:
            refuse_prompts(vllm_config)
            hide_heads()
        model_config = vllm_config.model_config
        processors = list(model_config.logits_processors or [])
        model_config.logits_processors = [*processors, processor_path(vllm_config, spec)]
        # This process makes requests. The logits processor is loaded during the first one only,
        # which would go unchecked.
        importlib.import_module(REQUESTS_MODULE)
        check_all_requests()
        if not vllm_config.parallel_config.worker_extension_cls:
            vllm_config.parallel_config.worker_extension_cls = WORKER_EXTENSION


def read_transformers_files(spec: MixtureSpec, vllm_config: VllmConfig) -> None:
    """Makes vLLM read the parameters that transformers reads.

    Beside them some folders have a copy in Mistral's own format, which vLLM would choose.
    """
    folders = (cached_folder(each.model, each.revision) for each in spec.checkpoints)
    if vllm_config.load_config.load_format == "auto" and any(
        folder is not None and native_files(folder) for folder in folders
    ):
        vllm_config.load_config.load_format = "hf"


def isolate_skipped_policies(vllm_config: VllmConfig) -> None:
    """Sets the scheduler that keeps cache blocks of different sets of policies apart."""
    from prefmix.mixing.engine import scheduler

    vllm_config.scheduler_config.scheduler_cls = scheduler.choose(vllm_config)

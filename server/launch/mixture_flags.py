"""The meaning of each of vLLM's flags for a mixture: every flag stands in one of these lists.

A flag of a later vLLM is refused until somebody has read what it does and put it here; the same
holds for what code it can load (prefmix.server.launch.safe_flags). `docs/engine-flags.md` is made
of these lists by `tests/support/pages/flags_page.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prefmix.server.config.errors import CommandError

_NO_ROUTE = "the routes that it is for are not served"
_GRPC = "requests over gRPC could not name their weights"
_ASLEEP = "the routes that put an engine to sleep are not served"
_EXPERTS = "moves experts between devices by the use that one model makes of them"
_ROUTED = "the experts of a token are those of several policies"

REFUSED = {
    "grpc": _GRPC,
    "grpc_port": _GRPC,
    "data_parallel_multi_port_external_lb": (
        "its servers would be started without prefmix; start one 'prefmix serve' per rank with "
        "--data-parallel-rank"
    ),
    "lora_modules": (
        "vLLM's LoRA gives a request one adapter of one model; serve adapters with --base and "
        "--adapter"
    ),
    "pooler_config": "pooling runs no mixture",
    "diffusion_config": "a mixture draws one token after the other",
    "disable_sliding_window": (
        "vLLM reads the window of the first policy alone; --max-model-len up to the smallest "
        "window does the same"
    ),
    "engram_config": "it places one model's own memory",
    "hf_config_path": (
        "each policy is read with the config.json beside its parameters; change settings by "
        "--hf-overrides"
    ),
    "skip_tokenizer_init": "requests and answers of a mixture are texts",
    "enable_return_routed_experts": _ROUTED,
    "aux_output_config": _ROUTED,
    "return_sampling_mask": (
        "vLLM records what a row was drawn from only without processors of logits, one of which "
        "checks a mixture's weights"
    ),
    "enable_eplb": _EXPERTS,
    "enable_elastic_ep": _EXPERTS,
    "enable_ep_weight_filter": "chooses the experts that it reads by one model's number of them",
    "enable_fault_tolerance": "recovers ranks that exchange experts, which a mixture has not",
    "enable_batch_sharded_sampling": "a row is mixed in one place",
    "enable_mfu_metrics": "counts the operations of one model, and a mixture runs several",
    "enable_sleep_mode": _ASLEEP,
    "sleep_mode_offload_cudagraph": _ASLEEP,
    "sleep_preserve_parameter_names": _ASLEEP,
    "enable_nccl_comm_suspend": _ASLEEP,
    "profiler_config": "the routes that start a profile are not served",
    "enable_tokenizer_info_endpoint": _NO_ROUTE,
    "enable_scale_out": _NO_ROUTE,
    "tokens_only": _NO_ROUTE,
    "cohere_format": _NO_ROUTE,
    "cohere_is_reasoning_model": _NO_ROUTE,
    "anthropic_disabled_thinking_effort": _NO_ROUTE,
}
"""vLLM's flags that a mixture cannot serve, and why; only their defaults are taken."""

_TRANSFORMERS = (
    "vLLM would look for the mixture itself in that library; models that vLLM does not have run by "
    "it without the flag"
)
TAKEN_VALUES = {"model_impl": (("auto", "vllm"), _TRANSFORMERS)}
"""Flag -> (the values that are taken, the reason why others are not)."""

LIMITED = {
    "compilation_config": "`mode` 1 is refused: torch would compile the choice of policies too",
    "convert": "only `none`: pooling runs no mixture",
    "data_parallel_size": "not with experts: ranks would wait for each other",
    "decode_context_parallel_size": "only 1; use `--tensor-parallel-size`",
    "disable_hybrid_kv_cache_manager": "vLLM refuses it for windows of different sizes",
    "enable_dbo": "refused: a step is not split without its weights",
    "enable_lora": "refused; serve adapters with `--base` and `--adapter`",
    "enable_prompt_embeds": "refused: embeddings have one policy's width",
    "hf_overrides": "changes every policy; the keys that make the mixture are refused",
    "kv_offloading_size": "not for a shared trunk on a CPU, whose policies share their caches",
    "kv_sharing_fast_prefill": "refused: some layers would have other tokens than the step",
    "kv_transfer_config": "not for a shared trunk on a CPU, whose policies share their caches",
    "load_format": (
        "formats of safetensors that vLLM's own loader reads (prefmix reads several checkpoints); "
        "`dummy` not for a shared trunk"
    ),
    "logprobs_mode": "only log-probabilities: the logits of a mixture have no zero point",
    "model_class_overrides": "classes of the policies; not of the mixture itself",
    "pipeline_parallel_size": "only 1; use `--tensor-parallel-size`",
    "prefill_context_parallel_size": "only 1; use `--tensor-parallel-size`",
    "quantization": "quantising while loading is not for a shared trunk",
    "quantization_config": "quantising while loading is not for a shared trunk",
    "runner": "only `generate`: pooling runs no mixture",
    "spec_method": "refused: speculative decoding drafts for one model",
    "spec_model": "refused: speculative decoding drafts for one model",
    "spec_tokens": "refused: speculative decoding drafts for one model",
    "speculative_config": "refused: speculative decoding drafts for one model",
    "tokenizer": "its tokens must be the policies' own",
    "tokenizer_revision": "its tokens must be the policies' own",
    "ubatch_size": "refused: a step is not split without its weights",
    "watermark_config": "needs vLLM's V2 model runner, and so a GPU",
    "worker_extension_cls": "must be derived from prefmix's `MixtureWorker`",
    **{name: f"`{'`, `'.join(values)}` only" for name, (values, _) in TAKEN_VALUES.items()},
}
"""Flags of which some values, or some layouts, are refused before the engine starts."""

_IDLE = """
allowed_local_media_path allowed_media_domains cp_kv_cache_interleave_size
data_parallel_supervisor_port dbo_decode_token_threshold dbo_prefill_token_threshold
dcp_comm_backend dcp_kv_cache_interleave_size dcp_q_replicate default_mm_loras
disable_cascade_attn disable_chunked_mm_input disable_nccl_for_dp_synchronization
dp_supervisor_probe_failure_threshold dp_supervisor_probe_interval_s
dp_supervisor_probe_timeout_s dp_sync_interval ec_manager_config ec_transfer_config
elastic_ep_max_dp_size enable_flash_late_interaction enable_hc_sp
enable_mamba_cache_stochastic_rounding enable_mamba_shared_prefix_checkpoint
enable_mixed_moe_lora_format enable_mm_embeds enable_moe_shared_loras
enable_tower_connector_lora eplb_config fault_tolerance_config fully_sharded_loras
gdn_prefill_backend interleave_mm_strings io_processor_plugin kda_decode_backend
kda_prefill_backend language_model_only limit_mm_per_prompt lora_dtype lora_target_modules
mamba_backend mamba_block_size mamba_cache_dtype mamba_cache_mode mamba_cache_philox_rounds
mamba_ssm_cache_dtype mamba_ssu_algorithm max_cpu_loras max_lora_cls_labels max_lora_rank
max_loras media_io_kwargs mm_device_do_normalize mm_encoder_attn_backend mm_encoder_attn_dtype
mm_encoder_fp8_scale_path mm_encoder_fp8_scale_save_margin mm_encoder_fp8_scale_save_path
mm_encoder_only mm_encoder_tp_mode mm_hasher_algorithm mm_ipc_gpu_memory_gb
mm_processor_cache_gb mm_processor_cache_type mm_processor_device mm_processor_kwargs
mm_shm_cache_max_object_size_mb mm_tensor_ipc per_request_spec_decode_metrics
prefill_schedule_interval replayssm_buffer_len skip_mm_profiling specialize_active_lora
swa_bounded_replay trust_request_mm_kwargs use_replayssm video_pruning_method video_pruning_rate
weight_transfer_config
"""

IDLE = frozenset(_IDLE.split())
"""Flags of what no mixture has (images, state-space layers, vLLM's LoRA, drafts, ranks that
exchange experts), so that no answer depends on them."""

_HONOURED = """
additional_config aggregate_engine_logging all2all_backend allow_credentials
allow_deprecated_quantization allowed_headers allowed_methods allowed_origins api_key
api_server_count async_scheduling attention_backend attention_config block_size chat_template
chat_template_content_format code_revision collect_detailed_traces config_format
cpu_distributed_timeout_seconds cpu_offload_gb cpu_offload_params cudagraph_capture_sizes
cudagraph_metrics custom_histogram_buckets data_parallel_address data_parallel_backend
data_parallel_external_lb data_parallel_hybrid_lb data_parallel_rank data_parallel_rpc_port
data_parallel_size_local data_parallel_start_rank default_chat_template_kwargs device_ids
disable_access_log_for_endpoints disable_custom_all_reduce disable_fastapi_docs
disable_log_stats disable_uvicorn_access_log distributed_executor_backend
distributed_timeout_seconds download_dir dtype enable_auto_tool_choice enable_chunked_prefill
enable_cumem_allocator enable_expert_parallel enable_flashinfer_autotune
enable_force_include_usage enable_layerwise_nvtx_tracing enable_log_deltas enable_log_outputs
enable_log_requests enable_logging_iteration_details enable_offline_docs
enable_per_request_metrics enable_prefix_caching enable_prompt_tokens_details
enable_request_id_headers enable_server_load_tracking enable_shm_tensor_arena enable_ssl_refresh
enable_trace_replay enforce_eager exclude_tools_when_tool_choice_none expert_placement_strategy
fail_on_environ_validation fingerprint_mode fingerprint_value generation_config
gpu_memory_utilization h11_max_header_count h11_max_incomplete_event_size headless hf_token
ignore_patterns ir_op_priority jit_monitor_mode jit_monitor_verbose kernel_config kv_cache_dtype
kv_cache_dtype_skip_layers kv_cache_memory_bytes kv_cache_metrics kv_cache_metrics_sample
kv_events_config kv_offloading_backend linear_backend log_config_file log_error_stack log_level
logging_config logits_processors long_prefill_token_threshold
long_prefill_token_threshold_adaptive master_addr master_port max_cudagraph_capture_size
max_log_len max_logprobs max_model_len max_num_active_seqs max_num_batched_tokens
max_num_queued_tokens max_num_scheduled_tokens max_num_seqs max_parallel_loading_workers
middleware model_loader_extra_config moe_backend nnodes node_rank
num_gpu_blocks_override numa_bind numa_bind_cpus numa_bind_nodes offload_backend
offload_group_size offload_num_in_group offload_params offload_prefetch_step optimization_level
otlp_traces_endpoint override_generation_config performance_mode prefix_cache_retention_interval
prefix_caching_hash_algo prefix_match_unit pt_load_map_location
ray_workers_use_nsight reasoning_config reasoning_parser reasoning_parser_plugin
renderer_num_workers response_role return_tokens_as_token_ids root_path
safetensors_load_strategy safetensors_prefetch_block_size safetensors_prefetch_num_threads
scheduler_cls scheduler_reserve_full_isl scheduling_policy seed show_hidden_metrics_for_version
sparse_indexer_topk_backend sse_keep_alive_interval ssl_ca_certs ssl_cert_reqs ssl_certfile
ssl_ciphers ssl_keyfile stream_interval structured_outputs_config tensor_parallel_size
tokenizer_mode tool_call_parser tool_parser_plugin tool_server tool_strict_level
trust_remote_code trust_request_chat_template uds use_fp64_gumbel use_tqdm_on_load
uvicorn_log_level watermark worker_cls
"""

HONOURED = frozenset(_HONOURED.split())
"""Flags that do for a mixture what they do for a model: none of their values makes an answer other
than the mixture's."""


def check_mixture_flags(given: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Refuses flags that a mixture cannot serve.

    Args:
      given: values by flag, in snake case.
      defaults: vLLM's values of flags that were not given.
    Raises: CommandError naming the flag and the reason.
    """
    for name, value in given.items():
        if value is None or value == defaults.get(name):
            continue
        flag = "--" + name.replace("_", "-")
        if name in REFUSED:
            raise CommandError(
                f"vLLM's flag {flag} is not accepted: {REFUSED[name]}; leave it out", exit_code=2
            )
        values, reason = TAKEN_VALUES.get(name, ((value,), ""))
        if value not in values:
            raise CommandError(
                f"vLLM's flag {flag} is {value!r:.40}, which is not accepted: {reason}; give "
                f"{' or '.join(values)}, or leave it out",
                exit_code=2,
            )

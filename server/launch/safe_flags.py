"""vLLM's flags that load no code, whatever their value: a list by name, from vLLM 0.32.

A flag that a later vLLM adds is refused until somebody has read what it does and put it here or
among the unsafe ones (prefmix.server.launch.engine_flags). A mixture refuses some of these flags
for other reasons.
"""

from __future__ import annotations

_FLAGS = """
aggregate_engine_logging all2all_backend allow_credentials allow_deprecated_quantization
allowed_headers allowed_methods allowed_origins api_key api_server_count async_scheduling
attention_backend block_size chat_template chat_template_content_format collect_detailed_traces
config_format convert cp_kv_cache_interleave_size cpu_distributed_timeout_seconds cpu_offload_gb
cpu_offload_params cudagraph_capture_sizes cudagraph_metrics custom_histogram_buckets
data_parallel_backend data_parallel_external_lb data_parallel_hybrid_lb data_parallel_rank
data_parallel_rpc_port data_parallel_size data_parallel_size_local data_parallel_start_rank
data_parallel_supervisor_port dbo_decode_token_threshold dbo_prefill_token_threshold
dcp_comm_backend dcp_kv_cache_interleave_size dcp_q_replicate decode_context_parallel_size
default_chat_template_kwargs default_mm_loras device_ids disable_access_log_for_endpoints
disable_cascade_attn disable_chunked_mm_input disable_custom_all_reduce disable_fastapi_docs
disable_hybrid_kv_cache_manager disable_log_stats disable_nccl_for_dp_synchronization
disable_uvicorn_access_log distributed_timeout_seconds download_dir
dp_supervisor_probe_failure_threshold dp_supervisor_probe_interval_s
dp_supervisor_probe_timeout_s dp_sync_interval dtype elastic_ep_max_dp_size
enable_auto_tool_choice enable_chunked_prefill enable_cumem_allocator enable_dbo
enable_expert_parallel enable_flash_late_interaction enable_flashinfer_autotune
enable_force_include_usage enable_hc_sp enable_layerwise_nvtx_tracing enable_log_deltas
enable_log_outputs enable_log_requests enable_logging_iteration_details enable_lora
enable_mamba_cache_stochastic_rounding enable_mamba_shared_prefix_checkpoint
enable_mixed_moe_lora_format enable_mm_embeds enable_moe_shared_loras enable_offline_docs
enable_per_request_metrics enable_prefix_caching enable_prompt_embeds
enable_prompt_tokens_details enable_request_id_headers enable_server_load_tracking
enable_shm_tensor_arena enable_ssl_refresh enable_tower_connector_lora enable_trace_replay
enforce_eager exclude_tools_when_tool_choice_none expert_placement_strategy
fail_on_environ_validation fingerprint_mode fingerprint_value fully_sharded_loras
gdn_prefill_backend generation_config gpu_memory_utilization h11_max_header_count
h11_max_incomplete_event_size headless hf_token ignore_patterns interleave_mm_strings
jit_monitor_mode jit_monitor_verbose kda_decode_backend kda_prefill_backend kv_cache_dtype
kv_cache_dtype_skip_layers kv_cache_memory_bytes kv_cache_metrics kv_cache_metrics_sample
kv_offloading_backend kv_offloading_size kv_sharing_fast_prefill language_model_only
limit_mm_per_prompt linear_backend log_error_stack log_level logprobs_mode
long_prefill_token_threshold long_prefill_token_threshold_adaptive lora_dtype
lora_target_modules mamba_backend mamba_block_size mamba_cache_dtype mamba_cache_mode
mamba_cache_philox_rounds mamba_ssm_cache_dtype mamba_ssu_algorithm master_port max_cpu_loras
max_cudagraph_capture_size max_log_len max_logprobs max_lora_cls_labels max_lora_rank max_loras
max_model_len max_num_active_seqs max_num_batched_tokens max_num_queued_tokens
max_num_scheduled_tokens max_num_seqs max_parallel_loading_workers media_io_kwargs
mm_device_do_normalize mm_encoder_attn_backend mm_encoder_attn_dtype mm_encoder_fp8_scale_path
mm_encoder_fp8_scale_save_margin mm_encoder_fp8_scale_save_path mm_encoder_only
mm_encoder_tp_mode mm_hasher_algorithm mm_ipc_gpu_memory_gb mm_processor_cache_gb
mm_processor_cache_type mm_processor_device mm_shm_cache_max_object_size_mb mm_tensor_ipc
model_impl model_loader_extra_config moe_backend nnodes node_rank num_gpu_blocks_override
numa_bind numa_bind_cpus numa_bind_nodes offload_backend offload_group_size offload_num_in_group
offload_params offload_prefetch_step optimization_level otlp_traces_endpoint
override_generation_config per_request_spec_decode_metrics performance_mode
pipeline_parallel_size prefill_context_parallel_size prefill_schedule_interval
prefix_cache_retention_interval prefix_caching_hash_algo prefix_match_unit pt_load_map_location
quantization quantization_config ray_workers_use_nsight reasoning_parser renderer_num_workers
replayssm_buffer_len response_role return_tokens_as_token_ids root_path
runner safetensors_load_strategy safetensors_prefetch_block_size
safetensors_prefetch_num_threads scheduler_reserve_full_isl scheduling_policy seed
show_hidden_metrics_for_version skip_mm_profiling sparse_indexer_topk_backend spec_method
spec_model spec_tokens specialize_active_lora speculative_config sse_keep_alive_interval
ssl_ca_certs ssl_cert_reqs ssl_certfile ssl_ciphers ssl_keyfile stream_interval
swa_bounded_replay tensor_parallel_size tokenizer tokenizer_mode tokenizer_revision
tool_call_parser tool_strict_level ubatch_size uds use_fp64_gumbel use_replayssm
use_tqdm_on_load uvicorn_log_level video_pruning_method video_pruning_rate watermark
watermark_config
"""

_FIELDS = {
    "attention_config": """
        backend minimax_m3_msa_decode_backend backend_per_kind flash_attn_version
        flash_attn_max_num_splits_for_cuda_graph tokenspeed_mla_min_split_kv
        tq_max_kv_splits_for_cuda_graph use_trtllm_attention disable_flashinfer_q_quantization
        mla_prefill_backend use_prefill_query_quantization indexer_kv_dtype
        indexer_sparse_logits hisparse_config use_non_causal sparse_mla_force_mqa
        sparse_mla_prefill_workspace_factor flex_attn_block_m flex_attn_block_n
        flex_attn_q_block_size flex_attn_kv_block_size
    """,
    "compilation_config": """
        mode compile_cache_save_format custom_ops ir_enable_torch_wrap splitting_ops
        compile_mm_encoder cudagraph_mm_encoder encoder_cudagraph_token_budgets
        encoder_cudagraph_max_vision_items_per_batch encoder_cudagraph_max_frames_per_batch
        cudagraph_decoder_replay decoder_replay_cudagraph_capture_sizes
        decoder_replay_trim_threshold compile_sizes compile_ranges_endpoints cudagraph_mode
        cudagraph_num_of_warmups cudagraph_capture_sizes cudagraph_copy_inputs
        cudagraph_specialize_lora use_inductor_graph_partition pass_config
        max_cudagraph_capture_size dynamic_shapes_config fast_moe_cold_start
    """,
    "ec_manager_config": "",
    "ec_transfer_config": """
        ec_connector engine_id ec_buffer_device ec_buffer_size ec_role ec_ip ec_port
    """,
    "eplb_config": """
        window_size step_interval num_redundant_experts log_balancedness
        log_balancedness_interval use_async policy communicator enable_migration_batching
    """,
    "fault_tolerance_config": "engine_recovery_timeout_sec",
    "ir_op_priority": "rms_norm fused_add_rms_norm gelu_and_mul_sparse",
    "kernel_config": """
        ir_op_priority enable_flashinfer_autotune enable_rocm_segmented_attn_autotune
        enable_cutedsl_warmup enable_jit_warmup moe_backend sparse_indexer_topk_backend
        linear_backend linear_backend_per_quant
    """,
    "kv_events_config": """
        enable_kv_cache_events publisher endpoint replay_endpoint buffer_steps hwm
        max_queue_size topic
    """,
    "kv_transfer_config": """
        kv_connector engine_id kv_buffer_device kv_role kv_port enable_permute_local_kv
        kv_load_failure_policy
    """,
    "logging_config": "log_level formatter configure_logging",
    "reasoning_config": "reasoning_parser reasoning_start_str reasoning_end_str",
    "structured_outputs_config": """
        backend disable_any_whitespace disable_additional_properties reasoning_parser
        enable_in_reasoning
    """,
}

SAFE_FLAGS = frozenset(_FLAGS.split())
"""Flags of which no value loads code."""

SAFE_FIELDS = {flag: frozenset(fields.split()) for flag, fields in _FIELDS.items()}
"""Flags that hold several settings -> the settings of which no value loads code."""

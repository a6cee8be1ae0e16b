"""Workarounds for defects of vLLM 0.32, one file each; each file says when it can be deleted.

`apply_in_process` and `apply_in_worker` put them in place. `zero_kv_blocks` is also used by the
scheduler and the worker extension (prefmix.mixing.engine).
"""

from __future__ import annotations

from typing import Any


def apply_in_process() -> None:
    """Applies what every process of vLLM needs, whatever model it serves. May run repeatedly."""
    from vllm.platforms import current_platform

    from prefmix.mixing.workarounds.parent_watch import watch_parent, watch_parent_of_coordinator
    from prefmix.mixing.workarounds.process_tree import kill_past_ended_children
    from prefmix.mixing.workarounds.run_record import keep_record

    watch_parent()
    watch_parent_of_coordinator()
    keep_record()
    kill_past_ended_children()
    if current_platform.is_cpu():
        from prefmix.mixing.workarounds.cpu_compile_cache import turn_off_aot_compile
        from prefmix.mixing.workarounds.cpu_polling import sleep_while_polling

        turn_off_aot_compile()
        sleep_while_polling()


def apply_in_worker(vllm_config: Any) -> None:
    """Applies what a worker of a mixture needs before its model is built. May run repeatedly."""
    from prefmix.mixing.workarounds.zero_kv_blocks import zero_new_blocks

    zero_new_blocks()
    is_cpu = vllm_config.device_config.device.type == "cpu"
    if is_cpu:
        from prefmix.mixing.workarounds.cpu_amx import permit_amx_tiles
        from prefmix.mixing.workarounds.cpu_rotary import rotate_heads_by_torch
        from prefmix.mixing.workarounds.cpu_uncompiled import run_uncompiled_on_errors

        permit_amx_tiles()
        rotate_heads_by_torch()
        run_uncompiled_on_errors()
    else:
        from prefmix.mixing.workarounds.triton_head_sizes import take_sizes_of_layers

        take_sizes_of_layers()
    if is_cpu and not vllm_config.use_v2_model_runner:
        from prefmix.mixing.workarounds.cpu_seeds import rewind_cpu_generators

        rewind_cpu_generators()

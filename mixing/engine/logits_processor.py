"""The logits processor of a mixture: checks each request's weights and way of mixing before the
engine sees it.

The check rides on vLLM's logits-processor interface, the one place in the front process that the
sampling parameters of every route pass (`validate_params`). Under V1 the same class also follows
the batch's rows for the engine (`update_state`).
"""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING, Any

from prefmix.mixing import wire
from prefmix.mixing.batch.engine_settings import can_skip
from prefmix.mixing.engine.request_limits import check_all_requests
from prefmix.mixing.simplex import check_weights
from prefmix.mixing.spec import MixtureSpec
from prefmix.mixing.ways_to_mix import MixingError, check_mixing

if TYPE_CHECKING:
    import torch
    from vllm.config import VllmConfig
    from vllm.sampling_params import SamplingParams

UNSALTED = (
    "this engine cannot mix parameters: with another scheduler, a KV connector or expert "
    "parallelism, requests of other weights would read the cache blocks; mix logits, or start it "
    "without"
)
"""The refusal of an engine without prefmix's scheduler."""

WITHOUT_KV = (
    "adapters in slots without a KV cache have no logits to mix; mix parameters, or give others "
    "the weight"
)
"""The refusal of weight for a member that has no KV cache where logits are mixed."""

_PROCESSOR_NAME = re.compile(
    r"(V1|V2)_(simplex|affine)_(\d+)_(\d+)_(logits|parameters)_(full|trunk|unsalted)"
)


def processor_path(vllm_config: VllmConfig, spec: MixtureSpec) -> str:
    """Import path of the processor class for an engine, as vLLM's `logits_processors` takes it."""
    runner = "V2" if vllm_config.use_v2_model_runner else "V1"
    trunk = "trunk" if can_skip(vllm_config) else "unsalted"
    layout = "full" if spec.base is None else trunk
    members = f"{spec.num_members}_{spec.num_kv_members}"
    return f"{__name__}:{runner}_{spec.weight_space}_{members}_{spec.mixing}_{layout}"


def __getattr__(name: str) -> Any:
    """Makes the processor class that `processor_path` names.

    vLLM loads the class by its path, also in processes that never run our config hook, and calls
    `validate_params` on the class without any config. So the class's name carries what it needs.
    """
    match = _PROCESSOR_NAME.fullmatch(name)
    if match is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _processor_class(match[1], match[2], int(match[3]), int(match[4]), match[5], match[6])


@functools.cache
def _processor_class(
    runner: str,
    weight_space: Any,
    num_members: int,
    num_kv_members: int,
    default_mixing: str,
    layout: str,
) -> type:
    def validate_params(cls: type, sampling_params: SamplingParams) -> None:
        """Refuses wrong requests before the engine sees them; vLLM answers with HTTP 400."""
        extra_args = sampling_params.extra_args
        weights = wire.from_extra_args(extra_args)
        mixing = wire.mixing_of(extra_args)
        if weights is not None:
            weights_M = check_weights(weights, num_members=num_members, weight_space=weight_space)
            if (mixing or default_mixing) == "logits" and any(weights_M[num_kv_members:]):
                raise MixingError(WITHOUT_KV)
        if mixing is not None:
            check_mixing(mixing, has_base=layout != "full")
        if mixing == "parameters" and layout == "unsalted":
            raise MixingError(UNSALTED)

    check_all_requests()  # vLLM loads this class wherever it makes requests
    base = _v1_base() if runner == "V1" else _v2_base()
    return type(
        f"{runner}_{weight_space}_{num_members}_{num_kv_members}_{default_mixing}_{layout}",
        (base,),
        {"__module__": __name__, "validate_params": classmethod(validate_params)},
    )


def _v1_base() -> type:
    from vllm.v1.sample.logits_processor import LogitsProcessor, MoveDirectionality

    from prefmix.mixing.batch.weights_v1 import apply_batch_update, table_of_engine

    class RowTracker(LogitsProcessor):
        """Updates the engine's weight table as the batch changes. Leaves logits as they are."""

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
        """Leaves logits as they are. MixtureModelState holds the weights."""

        def add_request(self, req_idx: int, sampling_params: SamplingParams) -> bool:
            return False

        def apply(self, logits: torch.Tensor, ctx: Any) -> torch.Tensor:
            return logits

    return AdmissionOnly

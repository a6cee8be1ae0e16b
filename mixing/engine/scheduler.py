"""The scheduler: keeps cache blocks of different policies apart, and ends broken requests.

A policy without weight in a whole step does not run, so its part of that step's KV blocks is never
written. If a request that needs the policy found such a block in the prefix cache, its answer would
be silently wrong. So requests only share blocks with requests that give weight to the same members:
the set of members becomes part of the cache salt, which vLLM mixes into the hash of a prompt's
first block and thereby into all later hashes. Blocks of a request that mixes parameters are those
of its own model: its exact weights take the set's place. The scheduler does this, because every
request enters the engine here, whatever its route or client.

A request from whose row no token can be drawn (prefmix.mixing.batch.broken_rows) ends with an
error; the others continue. Its cached blocks are dropped, in case their numbers are spoiled too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from vllm.config import VllmConfig
from vllm.logger import init_logger
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus

from prefmix.mixing import wire
from prefmix.mixing.batch.broken_rows import names_of
from prefmix.mixing.batch.engine_settings import SCHEDULER_PATH, spec_of
from prefmix.mixing.batch.request_mixing import RequestMixing
from prefmix.mixing.engine import pulse, self_check
from prefmix.mixing.engine.grammar_limits import lower_priority
from prefmix.mixing.prompts.cached_blocks import LaggingBlocks
from prefmix.mixing.slots import commands
from prefmix.mixing.spec import MixtureSpec
from prefmix.mixing.start_stages import ENGINE_RUNS, announce
from prefmix.mixing.workarounds.zero_kv_blocks import zero_new_blocks

logger = init_logger(f"vllm.{__name__}")


def salt_for(
    spec: MixtureSpec,
    request: RequestMixing,
    user_salt: str | None,
    generations: Mapping[int, int] | None = None,
) -> str | None:
    """The cache salt of a request: what has computed its blocks, then the user's own salt.

    That is the set of active members as a hexadecimal number, or the float32 weights of mixed
    parameters behind a letter that no such number begins with. Before it stand the heads of the
    policies' own prompts, if there are any, behind another such letter, and before all the
    generations of the slots with weight: blocks of an adapter that has left a slot are not found
    again. Injective, so that no user's salt reaches the blocks of others. Requests that use every
    member and have no salt keep vLLM's plain hashes.

    Args:
      generations: by member, a number of a slot's content that no earlier content had; 0 for slots
        that it leaves out.
    """
    active = [slot for slot in spec.slot_members if request.weights_M[slot] != 0]
    if generations is not None and active:
        numbers = ".".join(str(generations.get(slot, 0)) for slot in active)
        return f"s{numbers}/{salt_for(spec, request, user_salt) or ''}"
    if request.heads is not None:
        own = salt_for(spec, replace(request, heads=None), user_salt)
        return f"h{request.heads.digest()}/{own or ''}"
    weights_M = request.weights_M
    if request.mixes_parameters:
        scales = np.asarray([weights_M[each] for each in spec.adapter_members], dtype=np.float32)
        return f"p{scales.tobytes().hex()}/{user_salt or ''}"
    mask = sum(1 << index for index, weight in enumerate(weights_M) if weight != 0)
    if user_salt is None and mask == (1 << spec.num_kv_members) - 1:
        return None
    return f"{mask:x}/{user_salt or ''}"


class MixtureScheduler(Scheduler):
    """Salts each request that enters the engine, and ends requests whose rows are broken."""

    def __init__(self, *, vllm_config: VllmConfig, **kwargs: Any) -> None:
        zero_new_blocks()
        super().__init__(vllm_config=vllm_config, **kwargs)
        self.mixture = spec_of(vllm_config)
        self.slot_generations: dict[int, int] = {}
        """By the member of a slot, the number of its content; see `salt_for`."""
        self.slot_keys: dict[int, str] = {}
        """By slot, what its content is called by whoever put it there."""
        self._lagging = LaggingBlocks(self) if self.mixture.has_prompts else None
        lower_priority(self.structured_output_manager)

    def add_request(self, request: Request) -> None:
        mixing = self._mixing_of(request)
        salt = salt_for(self.mixture, mixing, request.cache_salt, self.slot_generations)
        if self._lagging is not None and mixing.heads is not None:
            self._lagging.name(request, mixing.heads)
        if salt != request.cache_salt:
            request.cache_salt = salt
            request.block_hashes.clear()
            request.update_block_hashes()
        super().add_request(request)

    def num_requests_of(self, member: int) -> int:
        """Number of requests in the engine that give a member weight."""
        every = self.requests.values()
        return sum(self._mixing_of(each).weights_M[member] != 0 for each in every)

    def update_from_output(
        self, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput
    ) -> dict[int, EngineCoreOutputs]:
        codes = model_runner_output.num_nans_in_logits
        if not codes or not any(codes.values()):
            return super().update_from_output(scheduler_output, model_runner_output)
        broken = self._remove_tokens(codes, model_runner_output)
        model_runner_output.num_nans_in_logits = None
        outputs = super().update_from_output(scheduler_output, model_runner_output)
        self._end(broken, outputs)
        return outputs

    def _remove_tokens(self, codes: Mapping[str, int], output: ModelRunnerOutput) -> dict[str, int]:
        """Removes what was computed for requests with broken rows; returns the codes by request."""
        broken = {}
        for req_id, code in codes.items():
            tokens = output.sampled_token_ids[output.req_id_to_index[req_id]]
            if code and tokens:  # chunks of a prompt draw none
                broken[req_id] = code
                tokens.clear()
                # vLLM asserts that an output without tokens has no log-probabilities of a prompt.
                output.prompt_logprobs_dict.pop(req_id, None)
                output.prompt_token_id_logprobs_dict.pop(req_id, None)
        return broken

    def _end(self, broken: Mapping[str, int], outputs: dict[int, EngineCoreOutputs]) -> None:
        """Ends requests with an error that names the policy, and drops what they have cached."""
        for req_id in broken:
            if req_id in self.requests:
                blocks = self.kv_cache_manager.get_block_ids(req_id)
                self.kv_cache_manager.evict_blocks({block for group in blocks for block in group})
        for request in self.finish_requests(broken, RequestStatus.FINISHED_ERROR):
            code = broken[request.request_id]
            policies = names_of(code, self._mixing_of(request), self.mixture)
            outputs.setdefault(request.client_index, EngineCoreOutputs()).outputs.append(
                EngineCoreOutput(
                    request_id=request.request_id,
                    new_token_ids=[],
                    finish_reason=request.get_finished_reason(),
                    stop_reason=wire.to_stop_reason(policies),
                    events=request.take_events(),
                    trace_headers=request.trace_headers,
                )
            )

    def _mixing_of(self, request: Request) -> RequestMixing:
        sampling_params = request.sampling_params
        extra_args = None if sampling_params is None else sampling_params.extra_args
        return RequestMixing.of_request(extra_args, self.mixture)


class AsyncMixtureScheduler(MixtureScheduler, AsyncScheduler):
    """MixtureScheduler for engines that schedule a step ahead."""


def mixture_scheduler(*, vllm_config: VllmConfig, **kwargs: Any) -> Scheduler:
    """Builds the variant for the engine's scheduling mode, which is known only when it starts."""
    # This is the process that runs the engine.
    self_check.install()
    pulse.install()
    commands.install()
    is_async = vllm_config.scheduler_config.async_scheduling
    scheduler_class = AsyncMixtureScheduler if is_async else MixtureScheduler
    scheduler = scheduler_class(vllm_config=vllm_config, **kwargs)
    announce(ENGINE_RUNS, "connecting the engine")  # vLLM makes the scheduler last
    return scheduler


def choose(vllm_config: VllmConfig) -> str | type | None:
    """The engine's `scheduler_cls`: ours, unless another setting makes skipping policies wrong."""
    chosen = vllm_config.scheduler_config.scheduler_cls
    reasons = [
        (chosen not in (None, SCHEDULER_PATH), "a custom scheduler was asked for"),
        (vllm_config.kv_transfer_config is not None, "a KV connector shares cache blocks"),
        # Ranks that exchange experts must all run the same members.
        (vllm_config.parallel_config.enable_expert_parallel, "expert parallelism is on"),
    ]
    for prevents, reason in reasons:
        if prevents:
            logger.info("Policies without weight are not skipped: %s.", reason)
            return chosen
    return SCHEDULER_PATH

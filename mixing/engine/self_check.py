"""A check of the engine before its first request: a few tokens of each policy and of the mixture,
in each way to mix that the engine has.

It runs where the engine's scheduler and workers are driven, in vLLM's EngineCore, by the same steps
as a client's requests. So an attention kernel that is missing, a policy that computes NaN, or an
adapter that is lost ends the start and not the first request. Its outputs go nowhere: no metric,
no log and no cached block is left of it. Statistics are measured on the way, which compiles their
kernels.

Shapes: M members, F figures of a token (prefmix.mixing.batch.statistics).
"""

from __future__ import annotations

import contextlib
import logging
import re
import time
from collections.abc import Iterator, Sequence
from typing import Any

from prefmix.mixing import wire
from prefmix.mixing.batch.engine_settings import can_skip, spec_of
from prefmix.mixing.engine.figure_checks import (
    SelfCheckError,
    check_agreement,
    check_parameters,
    is_sound,
)
from prefmix.mixing.spec import MixtureSpec
from prefmix.mixing.start_stages import SELF_CHECK, announce
from prefmix.mixing.ways_to_mix import Mixing

_RESULT = "_prefmix_self_check_result"
_NAME = "prefmix-self-check"
_NUM_PROMPT_TOKENS = 4
_NUM_TOKENS = 2
_MAX_STEPS = 1000

_TOLERANCE_NATS = {"float32": 0.05}
_TOLERANCE_ROUNDED_NATS = 2.0
"""Largest difference of a token's log-probability between a policy alone and beside others, in
number formats of fewer bits: what is computed wrongly is wrong by several nats."""


class _StepError(Exception):
    """A step of the engine that raised; the text is the cause."""


def install() -> None:
    """Gives the check to vLLM's EngineCore. Call where vLLM's engine has been imported."""
    from vllm.v1.engine.core import EngineCore

    setattr(EngineCore, wire.SELF_CHECK_METHOD, run)


def run(core: Any) -> dict[str, Any]:
    """Checks an engine, once: a later call gets the first one's result.

    Args: core: vLLM's EngineCore, which has had no request yet.
    Returns: {"failure": a sentence, or None; "tokens": how many were drawn; "seconds"}; with slots
      also "slots_with_kv" and "slots_without_kv", their numbers, "slot_bytes", the parameters of
      one on a rank, and "slot_kv_bytes", the cache of a token of one that has a cache.
    """
    found: dict[str, Any] | None = getattr(core, _RESULT, None)
    if found is None:
        announce(SELF_CHECK, "checking the engine")
        start = time.perf_counter()
        failure, num_tokens = None, 0
        core.collective_rpc("prefmix_expect_compilation", args=(True,))
        try:
            num_tokens = _check(core, spec_of(core.vllm_config))
        except SelfCheckError as error:
            failure = str(error)
        core.collective_rpc("prefmix_expect_compilation", args=(False,))
        seconds = time.perf_counter() - start
        found = {"failure": failure, "tokens": num_tokens, "seconds": seconds}
        found |= _slot_cost(core) if failure is None else {}
        setattr(core, _RESULT, found)
    return found


def _slot_cost(core: Any) -> dict[str, int]:
    spec = spec_of(core.vllm_config)
    if not spec.adapter_slots:
        return {}
    sizes = core.collective_rpc("prefmix_sizes")[0]
    first = spec.slot_members[0]
    return {
        "slots_with_kv": spec.adapter_slots - spec.slots_without_kv,
        "slots_without_kv": spec.slots_without_kv,
        "slot_bytes": sizes["parameters"][first],
        "slot_kv_bytes": sizes["kv_per_token"][first],
    }


def _check(core: Any, spec: MixtureSpec) -> int:
    """Returns the number of tokens drawn. Raises: SelfCheckError."""
    for method, args in (("prefmix_check_rows", ()), ("prefmix_start_statistics", (0,))):
        core.collective_rpc(method, args=args)
    for sentences in core.collective_rpc("prefmix_check_adapters"):
        if sentences:
            raise SelfCheckError(sentences[0])
    sizes = core.collective_rpc("prefmix_num_tokens")
    prompt, token, num_tokens = _texts(core.vllm_config, vocab_size=min(sizes))
    num_alone = spec.num_kv_members
    mixtures = _mixtures(
        spec, mixes_parameters=bool(spec.adapter_members) and can_skip(core.vllm_config)
    )
    rows, errors = [], []
    for weights_M, mixing in mixtures:
        names = [name for name, weight in zip(spec.member_names, weights_M, strict=True) if weight]
        try:
            rows.append(_figures(core, names, weights_M, mixing, prompt, token, num_tokens))
        except _StepError as error:
            errors.append((names, str(error)))
            if len(names) > 1 or core.batch_queue is not None:
                break  # with steps scheduled ahead, nothing can be asked after one that failed
            _forget_request(core)
        if len(errors) + len(rows) == num_alone and errors:
            break
    if errors:
        # A step prepares all policies' attention, so one of them can be the end of all.
        names, cause = errors[0]
        is_one = rows and len(names) == 1
        who = f"policy {names[0]!r}" if is_one else f"the mixture of {', '.join(spec.member_names)}"
        raise SelfCheckError(
            f"{who} cannot draw a token on this machine: {cause:.300}; leave the policy out that "
            "it concerns, or choose other vLLM flags"
        )
    core.scheduler.reset_prefix_cache()
    dtype = str(core.vllm_config.model_config.dtype).removeprefix("torch.")
    tolerance = _TOLERANCE_NATS.get(dtype, _TOLERANCE_ROUNDED_NATS)
    alone, others = rows[:num_alone], zip(rows[num_alone:], mixtures[num_alone:], strict=True)
    for figures, (weights_M, mixing) in others:
        if mixing == "logits":
            check_agreement(spec, alone, figures, tolerance=tolerance)
        elif 1.0 in weights_M:
            last = _last_adapter(spec)
            # An empty slot is the base, as the first member is where there are only slots.
            same = last if last < num_alone else 0
            check_parameters(spec.member_names[last], alone[same], figures, tolerance=tolerance)
    return sum(map(len, rows))


def _mixtures(spec: MixtureSpec, *, mixes_parameters: bool) -> list[tuple[list[float], Mixing]]:
    """(weights, way to mix) of the answers that are drawn: each member that has a KV cache alone,
    all of them together; by parameters all members together, then the last adapter alone."""
    count, num_alone = spec.num_members, spec.num_kv_members
    one_hot = [[float(member == other) for other in range(count)] for member in range(count)]
    found: list[tuple[list[float], Mixing]] = [
        (weights_M, "logits") for weights_M in one_hot[:num_alone]
    ]
    if num_alone > 1:
        together = [1.0 / num_alone] * num_alone
        found.append(([*together, *[0.0] * spec.slots_without_kv], "logits"))
    if count > 1 and mixes_parameters:
        found += [
            ([1.0 / count] * count, "parameters"),
            (one_hot[_last_adapter(spec)], "parameters"),
        ]
    return found


def _last_adapter(spec: MixtureSpec) -> int:
    """The member of the last adapter; a slot if there are only slots."""
    return spec.adapter_members[len(spec.adapters) - 1]


def _texts(vllm_config: Any, *, vocab_size: int) -> tuple[list[int], int, int]:
    """(prompt, the token that every answer repeats, the number of tokens of an answer).

    The tokens are far from the ends of the vocabulary, where special tokens are.
    """
    longest = vllm_config.model_config.max_model_len
    num_tokens = max(1, min(_NUM_TOKENS, longest - 1))
    length = max(1, min(_NUM_PROMPT_TOKENS, longest - num_tokens))
    prompt = [(index + 1) * vocab_size // 8 for index in range(length)]
    return prompt, 5 * vocab_size // 8, num_tokens


def _figures(
    core: Any,
    names: Sequence[str],
    weights_M: list[float],
    mixing: Mixing,
    prompt: list[int],
    token: int,
    num_tokens: int,
) -> list[list[float]]:
    """F figures of each token of one answer.

    Raises: SelfCheckError naming the policies; _StepError for a step that raised.
    """
    from vllm import SamplingParams
    from vllm.v1.engine import EngineCoreRequest

    who = f"policy {names[0]!r}" if len(names) == 1 else f"the mixture of {', '.join(names)}"
    params = SamplingParams(
        max_tokens=num_tokens,
        temperature=0.0,
        seed=0,  # draws nothing from the engine's own generators
        ignore_eos=True,
        allowed_token_ids=[token],
        detokenize=False,
        extra_args={**wire.to_extra_args(weights_M, mixing), wire.MEASURE_KEY: _NAME},
    )
    request = EngineCoreRequest(
        request_id=_NAME,
        prompt_token_ids=prompt,
        mm_features=None,
        sampling_params=params,
        pooling_params=None,
        arrival_time=0.0,
        lora_request=None,
        cache_salt=None,
        data_parallel_rank=None,
    )
    try:
        with _no_dump():
            outputs = _answer(core, core.preprocess_add_request(request)[0])
    except SelfCheckError:
        raise
    except Exception as error:  # of kernels, devices and vLLM itself
        cause = " ".join(str(error).split()) or type(error).__name__
        # What vLLM's executor says about an error of its worker.
        inner = re.search(r"Worker failed with error '(.*)', please check", cause)
        raise _StepError(inner[1] if inner else cause) from error
    for output in outputs:
        if failed := wire.failed_policies(str(output.finish_reason), output.stop_reason):
            raise SelfCheckError(_not_finite(failed))
    taken = core.collective_rpc("prefmix_take_request", args=(_NAME,))
    rows: list[list[float]] = next((each[_NAME] for each in taken if each), [])
    if len(rows) != num_tokens:
        raise SelfCheckError(f"{who} drew {len(rows)} tokens where {num_tokens} were asked for")
    # Members without weight have NaN as their figures, as all have where parameters are mixed; -inf
    # is a token that a policy bans.
    measured_M = weights_M if mixing == "logits" else [0.0] * len(weights_M)
    if any(not is_sound(row, measured_M) for row in rows):
        raise SelfCheckError(_not_finite(names))
    return rows


def _forget_request(core: Any) -> None:
    """Drops the request whose step raised, and what that step left in the workers."""
    from vllm.v1.request import RequestStatus

    core.scheduler.finish_requests([_NAME], RequestStatus.FINISHED_ABORTED)
    core.collective_rpc("prefmix_forget_step")


def _answer(core: Any, request: Any) -> list[Any]:
    """Steps the engine until a request has ended; returns vLLM's outputs of it."""
    core.scheduler.add_request(request)
    found: list[Any] = []
    for _ in range(_MAX_STEPS):
        if not (core.scheduler.has_requests() or core.batch_queue):
            return found
        outputs, executed = core.step_fn()
        core.post_step(executed)
        for each in (outputs or {}).values():
            found += each.outputs
    raise SelfCheckError(f"the engine has not answered within {_MAX_STEPS} steps")


def _not_finite(names: Sequence[str]) -> str:
    who = f"policy {names[0]!r}" if len(names) == 1 else f"one of the policies {', '.join(names)}"
    return (
        f"{who} computes NaN or infinity where the logits of a token should be; check its "
        "checkpoint, or leave it out"
    )


@contextlib.contextmanager
def _no_dump() -> Iterator[None]:
    """Keeps vLLM from writing its whole configuration and the step when a step fails."""
    logger = logging.getLogger("vllm.logging_utils.dump_input")
    was_disabled, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = was_disabled

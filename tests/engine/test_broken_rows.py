"""A policy that computes NaN: its requests end with an error that names it, and no other's do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from prefmix.mixing import wire
from prefmix.mixing.spec import MixtureSpec, Policy
from prefmix.weights.engines.errors import EngineError
from prefmix.weights.engines.local import LocalEngine
from support.checkpoints.tiny_faults import with_nan_logit, with_nan_token, with_overflow
from support.engines import INTERPRETED, AdaptedBase, EngineFactory, metric, spec_of_folders

BAD_TOKEN = 77
SOUND = [(5, 6, 7), tuple(range(100, 140)), (9,) * 20, (200, 201)]
SPOILED = (5, 6, BAD_TOKEN, 7)


def generate(
    llm: Any, prompts: Sequence[tuple[int, ...]], weights: Sequence[Sequence[float]], **more: Any
) -> list[tuple[tuple[int, ...], str | None, tuple[str, ...]]]:
    """(tokens, finish reason, failed policies) of each prompt."""
    from vllm import SamplingParams

    options = {"max_tokens": 12, "temperature": 1.0, "seed": 3, "ignore_eos": True, **more}
    params = [SamplingParams(**options, extra_args=wire.to_extra_args(each)) for each in weights]
    outputs = llm.generate(
        [{"prompt_token_ids": list(prompt)} for prompt in prompts], params, use_tqdm=False
    )
    answers = [output.outputs[0] for output in outputs]
    return [
        (
            tuple(each.token_ids),
            each.finish_reason,
            wire.failed_policies(each.finish_reason, each.stop_reason),
        )
        for each in answers
    ]


@pytest.fixture(scope="module")
def spoiled(policies: list[Path], tmp_path_factory: pytest.TempPathFactory) -> MixtureSpec:
    """The second of three policies gives NaN for texts with BAD_TOKEN."""
    folder = tmp_path_factory.mktemp("spoiled") / "bad"
    return spec_of_folders(
        [policies[0], with_nan_token(folder, policies[1], token=BAD_TOKEN), policies[2]]
    )


def test_a_row_fails_alone_and_names_the_policy(
    own_engine: EngineFactory, spoiled: MixtureSpec
) -> None:
    """Other requests of the batch, with prompts in chunks, get the tokens of a batch without it."""
    llm = own_engine(spoiled, max_num_batched_tokens=32, max_num_seqs=16)
    even = (0.2, 0.3, 0.5)
    alone = generate(llm, SOUND, [even] * len(SOUND))
    without_bad = generate(llm, [SPOILED], [(0.5, 0.0, 0.5)])
    llm.collective_rpc("prefmix_check_rows")
    prompts = [SPOILED, *SOUND, (*SOUND[1], BAD_TOKEN, 5), SPOILED]
    weights = [even, *[even] * len(SOUND), even, (0.5, 0.0, 0.5)]
    for _ in range(2):  # the second time from the cache
        first, *others, long, unweighted = generate(llm, prompts, weights)
        assert first == long == ((), "error", ("bad",))
        assert others == alone
        assert [unweighted] == without_bad


def test_blocks_of_a_failed_request_spoil_nobody_who_gets_them_next(
    own_engine: EngineFactory, spoiled: MixtureSpec
) -> None:
    """The cache has few blocks, so that sound requests write into blocks that held NaN."""
    llm = own_engine(spoiled, num_gpu_blocks_override=9, max_model_len=64, block_size=32)
    even = (0.2, 0.3, 0.5)
    short = [prompt[:20] for prompt in SOUND]
    alone = generate(llm, short, [even] * len(short))
    llm.collective_rpc("prefmix_check_rows")
    for _ in range(4):
        failed = generate(llm, [(BAD_TOKEN,) * 40] * 4, [even] * 4)
        assert failed == [((), "error", ("bad",))] * 4
        assert generate(llm, short, [even] * len(short)) == alone
    # The policy also runs on texts that give it no weight, if others beside them do.
    beside = [(BAD_TOKEN,) * 40] * 3
    for _ in range(2):
        *unweighted, sound = generate(llm, [*beside, short[0]], [(0.5, 0.0, 0.5)] * 3 + [even])
        assert {reason for _, reason, _ in unweighted} == {"length"}
        assert sound == alone[0]
        assert generate(llm, short, [even] * len(short)) == alone
    assert metric(llm, "vllm:kv_cache_usage_perc") == 0


def test_a_spoiled_head_is_found_too(
    own_engine: EngineFactory, policies: list[Path], tmp_path: Path
) -> None:
    """Hidden states are sound, one logit is NaN, with greedy, plain and top-p sampling."""
    bad = with_nan_logit(tmp_path / "head", policies[1], token=11)
    llm = own_engine(spec_of_folders([policies[0], bad]))
    llm.collective_rpc("prefmix_check_rows")
    weights = [(0.5, 0.5), (1.0, 0.0), (0.0, 1.0)]
    expected = [("error", ("head",)), ("length", ()), ("error", ("head",))]
    ways = [{}, {"temperature": 0.0, "logprobs": 2}, {"prompt_logprobs": 1}, {"top_p": 0.9}]
    for sampling in ways[: 3 if INTERPRETED else 4]:  # Triton's interpreter knows no top_p
        ended = generate(llm, [SOUND[0]] * 3, weights, **sampling)
        assert [(reason, failed) for _, reason, failed in ended] == expected
    with pytest.raises(EngineError, match="policy 'head' computes NaN"):
        LocalEngine(llm)


def test_texts_that_spoil_a_policy_are_errors_in_this_process_too(
    own_engine: EngineFactory, spoiled: MixtureSpec
) -> None:
    engine = LocalEngine(own_engine(spoiled))
    with pytest.raises(EngineError, match="bad computed NaN"):
        engine.sample([SPOILED], (0.5, 0.5, 0.0), num_responses=2, max_tokens=3, seed=0)
    with pytest.raises(EngineError, match="bad computed NaN"):
        engine.score([(SPOILED[:2], (BAD_TOKEN, 6))], (0.0, 1.0, 0.0))


def test_an_adapter_that_overflows_is_named(
    own_engine: EngineFactory, adapted: AdaptedBase, tmp_path: Path
) -> None:
    bad = with_overflow(tmp_path / "bad", adapted.adapters[1])
    sound = adapted.spec()
    spec = MixtureSpec(
        policies=(sound.policies[0], Policy(name="bad", model=str(bad)), sound.policies[2]),
        base=sound.base,
    )
    llm = own_engine(spec)
    weights = [(0.5, 0.0, 0.5), (1.0, 0.0, 0.0)]
    alone = generate(llm, SOUND[:2], weights)
    llm.collective_rpc("prefmix_check_rows")
    *others, mixed, single = generate(
        llm, [*SOUND[:2], *SOUND[:2]], [*weights, (0.4, 0.2, 0.4), (0.0, 1.0, 0.0)]
    )
    assert others == alone
    assert mixed == single == ((), "error", ("bad",))

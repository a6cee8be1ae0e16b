"""A member runs the requests that give it weight and no others, in both layouts."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.model_executor.layers.attention import Attention

from prefmix.mixing.models.attention_metadata import Part, metadata_of
from prefmix.mixing.models.shared_trunk import passes_of
from prefmix.mixing.models.skipping import is_plain_attention
from prefmix.mixing.models.stacked_attention import join_caches
from prefmix.mixing.spec import MixtureSpec
from support.checkpoints.tiny_policies import VOCAB_SIZE
from support.engines import AdaptedBase, EngineFactory, model_of
from support.exactness import TOLERANCE_NATS, Job, Oracle, both_ways, generate, random_jobs


class Passes:
    """Records of each pass of a mixture: its tokens, and the rows that the members ran."""

    def __init__(self, llm: Any) -> None:
        self.sizes: list[tuple[int, int]] = []
        self._rows = 0
        model = model_of(llm)
        bodies = [model.trunk.base] if hasattr(model, "trunk") else model.members.values()
        self._hooks = [
            *(body.register_forward_hook(self._count, with_kwargs=True) for body in bodies),
            model.register_forward_hook(self._end, with_kwargs=True),
        ]

    def __enter__(self) -> Passes:
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _count(self, module: Any, args: Any, kwargs: Any, hidden: Any) -> None:
        self._rows += hidden.shape[0]

    def _end(self, module: Any, args: Any, kwargs: Any, out: Any) -> None:
        self.sizes.append((out.shape[0], self._rows))
        self._rows = 0


def one_hot_jobs(num_jobs: int, *, num_members: int) -> list[Job]:
    """The policies take turns; prompts and answers of different lengths, some in chunks."""
    return [
        Job(
            prompt=tuple(range(4, 14 + 9 * index)),
            weights=tuple(float(member == index % num_members) for member in range(num_members)),
            max_tokens=6 + index,
            seed=index,
        )
        for index in range(num_jobs)
    ]


def test_one_set_of_members_for_all_runs_no_others(
    engine: EngineFactory, mixture: tuple[MixtureSpec, list[Path]]
) -> None:
    llm = engine(mixture[0])
    for weights, members in (((0.0, 1.0, 0.0), 1), ((0.5, 0.0, 0.5), 2), ((0.2, 0.3, 0.5), 3)):
        with Passes(llm) as passes:
            generate(llm, [Job(prompt=(4, 5, 6), weights=weights)] * 3)
        assert passes.sizes
        assert all(rows == members * tokens for tokens, rows in passes.sizes), passes.sizes


def test_requests_for_one_policy_each_pay_for_that_policy(
    engine: EngineFactory, mixture: tuple[MixtureSpec, list[Path]]
) -> None:
    """The batch has different policies and prompts in chunks, then also requests that need more."""
    spec, folders = mixture
    llm = engine(spec, max_num_batched_tokens=64)
    oracle = Oracle(folders)
    one_hot = one_hot_jobs(9, num_members=3)
    with Passes(llm) as passes:
        assert oracle.worst_error(one_hot, generate(llm, one_hot)) < TOLERANCE_NATS
    assert all(rows == tokens for tokens, rows in passes.sizes), passes.sizes
    more = [Job(prompt=(7, 8, 9), weights=(0.5, 0.0, 0.5), max_tokens=30)]
    mixed = [*one_hot, *more]
    with Passes(llm) as passes:
        assert oracle.worst_error(mixed, generate(llm, mixed)) < TOLERANCE_NATS
    assert any(tokens < rows < 2 * tokens for tokens, rows in passes.sizes), passes.sizes


def test_prefixes_and_evictions_keep_to_what_each_member_ran(
    engine: EngineFactory, mixture: tuple[MixtureSpec, list[Path]]
) -> None:
    """The same prompts run under several weights, twice, in a cache too small for all of them."""
    spec, folders = mixture
    llm = engine(spec, max_num_batched_tokens=64, num_gpu_blocks_override=24)
    oracle = Oracle(folders)
    prompts = [job.prompt for job in random_jobs(4, num_members=3, vocab_size=VOCAB_SIZE, seed=5)]
    vectors = [(1.0, 0.0, 0.0), (0.0, 0.4, 0.6), (0.0, 0.0, 1.0), (0.2, 0.3, 0.5)]
    batch = [
        Job(prompt=prompt, weights=weights, max_tokens=12, seed=index)
        for index, weights in enumerate(vectors)
        for prompt in prompts
    ]
    for again in (batch, batch[::-1]):
        assert oracle.worst_error(again, generate(llm, again)) < TOLERANCE_NATS


def test_a_step_of_many_rows_takes_passes_of_few_members(
    engine: EngineFactory, adapted: AdaptedBase
) -> None:
    """Prompts fill a step in three of four members; no pass exceeds one policy's rows."""
    llm = engine(adapted.spec(reference=adapted.reference()), max_num_batched_tokens=64)
    sizes: list[int] = []
    hook = model_of(llm).trunk.base.register_forward_hook(
        lambda module, args, kwargs, hidden: sizes.append(hidden.shape[0]), with_kwargs=True
    )
    prompts = [tuple(range(3 + index, 43 + index)) for index in range(5)]
    batch = [Job(prompt=prompt, weights=(0.5, 0.3, 0.0, 0.2), max_tokens=4) for prompt in prompts]
    oracle = Oracle([*adapted.merged, adapted.base])
    assert oracle.worst_error(batch, generate(llm, batch)) < TOLERANCE_NATS
    hook.remove()
    assert max(sizes) == 64
    assert {3, 15} & set(sizes), "few rows go through together"


def test_passes_hold_as_many_members_as_fit() -> None:
    parts = {0: range(3), 2: range(3), 3: range(1), 5: range(9), 6: range(1)}
    assert passes_of(parts, max_rows=7) == [[0, 2, 3], [5], [6]]
    assert passes_of(parts, max_rows=1) == [[0], [2], [3], [5], [6]]
    assert passes_of({}, max_rows=7) == []


def test_attention_that_cuts_requests_itself_is_told_of_whole_steps() -> None:
    class OverChunks(Attention):
        pass

    plain, other = Attention.__new__(Attention), OverChunks.__new__(OverChunks)
    assert is_plain_attention([plain, object()])
    assert not is_plain_attention([plain, other])


def test_caches_join_only_where_they_lie_whole_blocks_apart() -> None:
    memory = torch.arange(3 * 5 * 2 * 4).view(3, 5, 2, 4)  # members, blocks, heads, the rest
    joined, first_blocks = join_caches([memory[1], memory[2], memory[0]])
    assert first_blocks == [5, 10, 0]
    assert torch.equal(joined[5 + 3], memory[1, 3])
    elsewhere = [memory[0], torch.zeros(5, 2, 4, dtype=torch.int64)]
    shifted = [memory[0], memory.view(-1)[41:81].view(5, 2, 4)]
    shorter = [memory[0], memory[1, :4]]
    for caches in (elsewhere, shifted, shorter):
        with pytest.raises(ValueError, match="whole blocks apart"):
            join_caches(caches)


@pytest.mark.parametrize("way", ["joined", "apart"])
def test_rows_of_a_trunk_find_their_adapter_however_it_is_held(
    own_engine: EngineFactory, adapted: AdaptedBase, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """Adapters are joined with the layers' matrices, or apart, as in quantised layers."""
    if way == "apart":
        monkeypatch.setattr(
            "prefmix.mixing.models.adapter_linears.join_factors", lambda *arguments: None
        )
    llm = own_engine(adapted.spec(reference=adapted.reference()), max_num_batched_tokens=64)
    oracle = Oracle([*adapted.merged, adapted.base])
    batch = one_hot_jobs(9, num_members=4)
    with Passes(llm) as passes:
        assert oracle.worst_error(batch, generate(llm, batch)) < TOLERANCE_NATS
    assert all(rows == tokens for tokens, rows in passes.sizes), passes.sizes
    mixed = both_ways(random_jobs(16, num_members=4, vocab_size=VOCAB_SIZE, seed=6))
    assert oracle.worst_error(mixed, generate(llm, mixed)) < TOLERANCE_NATS


def test_requests_of_several_members_stand_one_after_the_other_in_their_own_blocks() -> None:
    """Three requests of 2, 1 and 3 tokens: one member runs all, another only the outer two."""
    step = SimpleNamespace(
        query_start_loc=torch.tensor([0, 2, 3, 6], dtype=torch.int32),
        seq_lens=torch.tensor([2, 9, 35], dtype=torch.int32),
        block_table=torch.tensor([[1, 0], [2, 0], [3, 4]], dtype=torch.int32),
        slot_mapping=torch.tensor([32, 33, 72, 96, -1, 130]),
        num_actual_tokens=6,
        max_query_len=3,
        max_seq_len=35,
        causal=True,
    )
    builder = SimpleNamespace(
        kv_cache_spec=SimpleNamespace(block_size=32), build=lambda prefix, common: common
    )
    outer = torch.tensor([0, 1, 3, 4, 5])
    made = metadata_of([Part(step), Part(step, outer, first_block=10)], builder)
    assert made.query_start_loc.tolist() == [0, 2, 3, 6, 8, 11]
    assert made.seq_lens.tolist() == [2, 9, 35, 2, 35]
    assert made.block_table_tensor.tolist() == [[1, 0], [2, 0], [3, 4], [11, 10], [13, 14]]
    assert made.slot_mapping.tolist() == [32, 33, 72, 96, -1, 130, 352, 353, 416, -1, 450]
    assert (made.num_reqs, made.num_actual_tokens) == (5, 11)

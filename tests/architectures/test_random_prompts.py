"""Prompts of the policies' own under random traffic: conversations go on, are cut up and aborted.

Each case draws its cache, its steps and its conversations from a seed and sends 50 requests; every
token is compared with transformers. PREFMIX_PROMPTS_SEED=N draws others, and
PREFMIX_PROMPTS_REQUESTS=N sends more a case.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prefmix.mixing.spec import MixtureSpec, Policy
from support.checkpoints.tiny_adapters import save_adapter, save_merged
from support.checkpoints.tiny_policies import VOCAB_SIZE, save_policy
from support.engines import EngineFactory, metric, spec_of_folders
from support.exactness import Oracle
from support.prompts.drawn_conversations import (
    TOLERANCE_NATS,
    Draw,
    cache_of,
    largest_error,
    send,
)

MAX_MODEL_LEN = 256
FIRST_SEED = int(os.environ.get("PREFMIX_PROMPTS_SEED", "0"))
NUM_REQUESTS = int(os.environ.get("PREFMIX_PROMPTS_REQUESTS", "50"))
GEMMA = {"model_type": "gemma3_text", "tie_word_embeddings": True}


@dataclass(frozen=True)
class Case:
    """A mixture, and the settings that its engine draws from."""

    members: tuple[dict[str, Any], ...] = ({}, {}, {})
    """Per full checkpoint its settings, of a trunk those of the base alone."""
    adapted: tuple[bool, ...] = ()
    """Per policy of a trunk, true if it has an adapter."""
    weight_space: str = "simplex"
    num_groups: int = 1
    """Tables of blocks that each request has."""
    block_sizes: tuple[int, ...] = (32, 64, 96)


def _windows(*widths: int | None) -> tuple[dict[str, Any], ...]:
    return tuple(
        {} if width is None else {"model_type": "mistral", "sliding_window": width}
        for width in widths
    )


CASES = {
    "full": Case(),
    "full, affine": Case(weight_space="affine"),
    "trunk": Case(({},), adapted=(True, True, True)),
    "trunk of bases": Case(({},), adapted=(False, False, False)),
    "trunk, affine": Case(({},), adapted=(True, False, True), weight_space="affine"),
    "windows": Case(_windows(40, 40)),
    "windows, trunk": Case(_windows(23), adapted=(True, False)),
    "gemma": Case((GEMMA | {"sliding_window": 50}, GEMMA | {"sliding_window": 50}), num_groups=2),
    "gemma, trunk": Case((GEMMA | {"sliding_window": 33},), adapted=(False, True), num_groups=2),
    "mixed groups": Case(
        (*_windows(31, None), GEMMA | {"layers": 3, "sliding_window": 20}), num_groups=3
    ),
}


def mixture_of(case: Case, root: Path) -> tuple[MixtureSpec, list[Path]]:
    """The mixture of a case, and the full checkpoints that it must equal."""
    if not case.adapted:
        folders = [
            save_policy(root / f"p{seed}", seed=seed, **each)
            for seed, each in enumerate(case.members)
        ]
        return spec_of_folders(folders, weight_space=case.weight_space), folders
    base = save_policy(root / "base", seed=0, **case.members[0])
    policies, truth = [], []
    for seed, has_adapter in enumerate(case.adapted):
        model = base
        if has_adapter:
            # Large factors would make a model in which float32 itself errs by more.
            model = save_adapter(root / f"a{seed}", base, seed=seed, size=0.1)
        policies.append(Policy(name=f"a{seed}", model=str(model)))
        truth.append(save_merged(root / f"m{seed}", base, model) if has_adapter else base)
    space: Any = case.weight_space
    return MixtureSpec(policies=tuple(policies), base=str(base), weight_space=space), truth


@pytest.mark.parametrize(("number", "name"), enumerate(CASES))
def test_random_conversations_are_exact(
    own_engine: EngineFactory, tmp_path: Path, number: int, name: str
) -> None:
    case, seed = CASES[name], FIRST_SEED + number
    rng = np.random.default_rng(seed)
    spec, folders = mixture_of(case, tmp_path)
    block_size = int(rng.choice(case.block_sizes))
    blocks_a_request = -(-MAX_MODEL_LEN // block_size) * case.num_groups
    settings = {
        "max_num_batched_tokens": int(rng.integers(40, 200)),
        "max_num_seqs": int(rng.integers(6, 40)),
        "block_size": block_size,
        "num_gpu_blocks_override": int(blocks_a_request * rng.uniform(1.5, 6.0)),
        "max_model_len": MAX_MODEL_LEN,
        "enable_prefix_caching": True,
    }
    llm = own_engine(replace(spec, has_prompts=True), **settings)
    draw = Draw(
        seed,
        num_members=len(folders),
        vocab_size=VOCAB_SIZE,
        block_size=block_size,
        weight_space=case.weight_space,
        has_parameters=bool(case.adapted),
    )
    turns = send(llm, draw, num_requests=NUM_REQUESTS, in_flight=40, longest=MAX_MODEL_LEN)
    worst = largest_error(turns, Oracle(folders))
    hits = metric(llm, "vllm:prefix_cache_hits")
    preempted = metric(llm, "vllm:num_preemptions")
    aborted = sum(turn.was_aborted for turn in turns)
    how = f"PREFMIX_PROMPTS_SEED={FIRST_SEED}, case {name!r}: {settings}"
    print(f"{worst:.1e} nats, {hits:.0f} hits, {preempted:.0f} preempted, {aborted} aborted; {how}")
    assert worst < TOLERANCE_NATS, how
    assert cache_of(llm).usage == 0.0, how
    # of the longest blocks, prompts fill one or two, and conversations may share none
    assert hits > 0 or block_size > MAX_MODEL_LEN // 4, how

"""Adapters that come into slots of a running engine, are replaced and go."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from vllm import SamplingParams

from prefmix.mixing import wire
from prefmix.mixing.slots import commands
from prefmix.mixing.spec import MixtureSpec, Policy
from support.checkpoints.tiny_adapters import save_adapter
from support.checkpoints.tiny_policies import VOCAB_SIZE, save_policy
from support.engines import AdaptedBase, EngineFactory, metric, model_of
from support.exactness import TOLERANCE_NATS, Job, Oracle, both_ways, generate, random_jobs

MAX_RANK = 8
FIRST = 2
"""The member of the first slot, behind one adapter and the base itself."""


def spec(adapted: AdaptedBase) -> MixtureSpec:
    plain = Policy(name="plain", model=str(adapted.base))
    own = Policy(name="own", model=str(adapted.adapters[0]))
    return MixtureSpec(
        policies=(own, plain),
        base=str(adapted.base),
        adapter_slots=2,
        max_adapter_rank=MAX_RANK,
    )


@pytest.fixture
def llm(engine: EngineFactory, adapted: AdaptedBase) -> Any:
    """An engine with a member of its own, the base, and two empty slots."""
    found = engine(spec(adapted))
    for slot in (0, 1):
        assert tell(found, "empty", slot)["failure"] is None
    return found


def tell(llm: Any, verb: str, *values: Any) -> dict[str, Any]:
    return commands.run(llm.llm_engine.engine_core.engine_core, verb, list(values))


def read(llm: Any, folder: Path) -> str | None:
    """Reads an adapter as far as it can be; returns the refusal."""
    tell(llm, "read", "newcomer", str(folder))
    deadline = time.monotonic() + 60
    while not (found := tell(llm, "outcome"))["done"]:
        assert time.monotonic() < deadline, "the adapter is never read"
        time.sleep(0.01)
    return found["failure"]


def put(llm: Any, slot: int, folder: Path) -> None:
    assert read(llm, folder) is None
    assert tell(llm, "put", slot, folder.name)["failure"] is None
    assert tell(llm, "keys")["keys"][slot] == folder.name


def jobs(num_jobs: int, *, seed: int = 0) -> list[Job]:
    own = random_jobs(num_jobs, num_members=4, vocab_size=VOCAB_SIZE, seed=seed)
    return both_ways([replace(job, max_tokens=min(job.max_tokens, 12)) for job in own])


def truth(adapted: AdaptedBase, *slots: Path) -> Oracle:
    return Oracle([adapted.merged[0], adapted.base, *slots])


def test_answers_are_exact_before_and_after_each_change(llm: Any, adapted: AdaptedBase) -> None:
    """The same requests each time: blocks that another content of a slot has computed would be
    found by their prompts."""
    asked = jobs(16)
    base, rs, patterns = adapted.base, adapted.merged[1], adapted.merged[2]

    def worst(*slots: Path) -> float:
        return truth(adapted, *slots).worst_error(asked, generate(llm, asked))

    assert worst(base, base) < TOLERANCE_NATS
    put(llm, 1, adapted.adapters[1])
    assert worst(base, rs) < TOLERANCE_NATS
    put(llm, 0, adapted.adapters[1])
    put(llm, 1, adapted.adapters[2])  # in the place of one with other ranks and layers
    assert worst(rs, patterns) < TOLERANCE_NATS
    assert tell(llm, "empty", 0)["failure"] is None
    assert worst(base, patterns) < TOLERANCE_NATS
    put(llm, 1, adapted.adapters[0])
    assert worst(base, adapted.merged[0]) < TOLERANCE_NATS


def test_blocks_of_an_earlier_adapter_are_never_read_again(llm: Any, adapted: AdaptedBase) -> None:
    """Same slot, same name, same prompt, in both ways to mix; what did not change is found."""
    prompt = tuple(range(2, 202))
    alone = [
        Job(prompt=prompt, weights=(0.0, 0.0, 1.0, 0.0)),
        Job(prompt=prompt, weights=(0.5, 0.0, 0.5, 0.0), mixing="parameters"),
    ]
    without = [Job(prompt=prompt, weights=(0.5, 0.5, 0.0, 0.0))]
    for folder, merged in zip(adapted.adapters[1:], adapted.merged[1:], strict=True):
        put(llm, 0, folder)
        before = metric(llm, "vllm:prefix_cache_hits")
        found = generate(llm, alone)
        assert metric(llm, "vllm:prefix_cache_hits") == before
        assert truth(adapted, merged, adapted.base).worst_error(alone, found) < TOLERANCE_NATS
        generate(llm, alone)
        assert metric(llm, "vllm:prefix_cache_hits") > before  # of the same content they are read
    generate(llm, without)
    before = metric(llm, "vllm:prefix_cache_hits")
    put(llm, 0, adapted.adapters[0])
    generate(llm, without)
    assert metric(llm, "vllm:prefix_cache_hits") > before


def test_requests_under_way_are_as_if_nothing_had_changed(llm: Any, adapted: AdaptedBase) -> None:
    put(llm, 0, adapted.adapters[1])
    asked = [
        replace(job, weights=(*job.weights[:3], 0.0), max_tokens=24)
        for job in random_jobs(6, num_members=4, vocab_size=VOCAB_SIZE, seed=3)
    ]
    asked = [
        replace(job, weights=tuple(each / (sum(job.weights) or 1) for each in job.weights))
        for job in both_ways(asked)
        if sum(job.weights)
    ]
    engine = llm.llm_engine
    for index, job in enumerate(asked):
        params = SamplingParams(
            max_tokens=job.max_tokens,
            seed=job.seed,
            logprobs=0,
            ignore_eos=True,
            extra_args=wire.to_extra_args(job.weights, job.mixing),
        )
        engine.add_request(f"job-{index}", {"prompt_token_ids": list(job.prompt)}, params)
    done: dict[str, Any] = {}
    changes: list[Callable[[], Any]] = [
        lambda: put(llm, 1, adapted.adapters[2]),
        lambda: put(llm, 1, adapted.adapters[0]),
        lambda: tell(llm, "empty", 1),
    ]
    step = 0
    while engine.has_unfinished_requests():
        for output in engine.step():
            if output.finished:
                done[output.request_id] = output
        step += 1
        if step % 4 == 0 and changes:
            changes.pop(0)()
        if step == 5:
            refusal = tell(llm, "empty", 0)["failure"]
            assert "requests under way use slot 0; wait until they end" in refusal
    assert not changes
    outputs = [
        next(o for i, o in done.items() if i.startswith(f"job-{n}")) for n in range(len(asked))
    ]
    oracle = truth(adapted, adapted.merged[1], adapted.base)
    assert oracle.worst_error(asked, outputs) < TOLERANCE_NATS


def broken(kind: str, folder: Path, adapted: AdaptedBase) -> str:
    """Writes a broken adapter; returns words of the refusal."""
    file = folder / "adapter_model.safetensors"
    if kind == "rank":
        save_adapter(folder, adapted.base, seed=9, rank=MAX_RANK + 1)
        return f"with rank {MAX_RANK + 1}, and slots have room for rank {MAX_RANK}"
    if kind == "another base":
        other = save_policy(folder.parent / "wide", seed=5, hidden=128)
        save_adapter(folder, other, seed=1)
        return "it was trained on another model"
    if kind == "deeper base":
        other = save_policy(folder.parent / "deep", seed=5, layers=3)
        save_adapter(folder, other, seed=1)
        return "the base has no linear layer of that name that takes adapters"
    shutil.copytree(adapted.adapters[1], folder)
    if kind == "DoRA":
        config = json.loads((folder / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps({**config, "use_dora": True}))
        return "uses what a shared trunk cannot"
    if kind == "truncated":
        file.write_bytes(file.read_bytes()[:-100])
        return "cannot be read"
    if kind == "no safetensors":
        file.rename(folder / "adapter_model.bin")
        return "safe_serialization=True"
    tensors = load_file(file)
    if kind == "shapes":
        key = next(each for each in tensors if "lora_A" in each)
        tensors[key] = tensors[key][:, :-1].contiguous()
        words = "is for a layer of"
    else:
        next(tensors[key] for key in tensors if "lora_B" in key)[0, 0] = torch.nan
        words = "holds NaN or infinite numbers"
    save_file(tensors, file)
    return words


@pytest.mark.parametrize(
    "kind",
    [
        "rank",
        "another base",
        "deeper base",
        "DoRA",
        "truncated",
        "no safetensors",
        "shapes",
        "NaN",
    ],
)
def test_a_broken_adapter_changes_nothing_and_says_why(
    llm: Any, adapted: AdaptedBase, tmp_path: Path, kind: str
) -> None:
    put(llm, 0, adapted.adapters[1])
    held = [parameter.clone() for parameter in slot_parameters(llm)]
    words = broken(kind, tmp_path / "broken", adapted)
    refusal = read(llm, tmp_path / "broken")
    assert refusal is not None
    assert words in refusal
    assert "policy 'newcomer'" in refusal
    assert "\n" not in refusal
    # A put that comes all the same is refused, too.
    assert tell(llm, "put", 0, "broken")["failure"] == refusal
    assert tell(llm, "keys")["keys"] == ["rs", None]
    assert all(map(torch.equal, slot_parameters(llm), held))


def slot_parameters(llm: Any) -> Sequence[torch.Tensor]:
    names = ("adapters_a", "adapters_b")
    return [each for name, each in model_of(llm).named_parameters() if name.endswith(names)]


def test_the_size_of_a_slot_is_what_its_factors_take(llm: Any) -> None:
    model = model_of(llm)
    taken = sum(each[-1].numel() * each.element_size() for each in slot_parameters(llm))
    assert model.parameter_bytes()[FIRST : FIRST + 2] == [taken, taken]

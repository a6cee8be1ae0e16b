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
from vllm.exceptions import VLLMValidationError

from prefmix.mixing import wire
from prefmix.mixing.engine import self_check
from prefmix.mixing.slots import commands
from prefmix.mixing.spec import MixtureSpec, Policy
from support.checkpoints.tiny_adapters import save_adapter
from support.checkpoints.tiny_policies import VOCAB_SIZE, save_policy
from support.engines import (
    KV_CACHE_BYTES,
    AdaptedBase,
    EngineFactory,
    metric,
    model_of,
    worker_of,
)
from support.exactness import TOLERANCE_NATS, Job, Oracle, both_ways, generate, random_jobs

MAX_RANK = 8
FIRST = 2
"""The member of the first slot, behind one adapter and the base itself."""

NUM_SLOTS = 3
"""The last of them has no KV cache."""

NUM_MEMBERS = FIRST + NUM_SLOTS


def spec(adapted: AdaptedBase) -> MixtureSpec:
    plain = Policy(name="plain", model=str(adapted.base))
    own = Policy(name="own", model=str(adapted.adapters[0]))
    return MixtureSpec(
        policies=(own, plain),
        base=str(adapted.base),
        adapter_slots=NUM_SLOTS,
        max_adapter_rank=MAX_RANK,
        has_prompts=True,
        slots_without_kv=1,
    )


@pytest.fixture
def llm(engine: EngineFactory, adapted: AdaptedBase) -> Any:
    """An engine with a member of its own, the base, and three empty slots."""
    found = engine(spec(adapted), block_size=32)
    for slot in range(NUM_SLOTS):
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
    own = random_jobs(num_jobs, num_members=NUM_MEMBERS, vocab_size=VOCAB_SIZE, seed=seed)
    every = both_ways([replace(job, max_tokens=min(job.max_tokens, 12)) for job in own])
    return [job if job.mixing == "parameters" else of_others(job, FIRST + 2) for job in every]


def of_others(job: Job, *members: int) -> Job:
    """The same request, in which some members have no weight."""
    weights = [0.0 if member in members else w for member, w in enumerate(job.weights)]
    total = sum(weights)
    return replace(
        job, weights=tuple(each / total for each in weights) if total else (1.0, 0, 0, 0, 0)
    )


def truth(adapted: AdaptedBase, *slots: Path) -> Oracle:
    return Oracle([adapted.merged[0], adapted.base, *slots])


def test_answers_are_exact_before_and_after_each_change(llm: Any, adapted: AdaptedBase) -> None:
    """The same requests each time: blocks that another content of a slot has computed would be
    found by their prompts."""
    asked = jobs(16)
    base, rs, patterns = adapted.base, adapted.merged[1], adapted.merged[2]

    def worst(*slots: Path) -> float:
        return truth(adapted, *slots).worst_error(asked, generate(llm, asked))

    assert worst(base, base, base) < TOLERANCE_NATS
    put(llm, 1, adapted.adapters[1])
    assert worst(base, rs, base) < TOLERANCE_NATS
    put(llm, 0, adapted.adapters[1])
    put(llm, 1, adapted.adapters[2])  # in the place of one with other ranks and layers
    put(llm, 2, adapted.adapters[2])
    assert worst(rs, patterns, patterns) < TOLERANCE_NATS
    assert tell(llm, "empty", 0)["failure"] is None
    put(llm, 2, adapted.adapters[1])
    assert worst(base, patterns, rs) < TOLERANCE_NATS
    put(llm, 1, adapted.adapters[0])
    assert tell(llm, "empty", 2)["failure"] is None
    assert worst(base, adapted.merged[0], base) < TOLERANCE_NATS


def test_blocks_of_an_earlier_adapter_are_never_read_again(llm: Any, adapted: AdaptedBase) -> None:
    """Same slot, same name, same prompt, in both ways to mix; what did not change is found."""
    prompt = tuple(range(2, 202))
    alone = [
        Job(prompt=prompt, weights=(0.0, 0.0, 1.0, 0.0, 0.0)),
        Job(prompt=prompt, weights=(0.5, 0.0, 0.5, 0.0, 0.0), mixing="parameters"),
        Job(prompt=prompt, weights=(0.5, 0.0, 0.0, 0.0, 0.5), mixing="parameters"),
    ]
    without = [Job(prompt=prompt, weights=(0.5, 0.5, 0.0, 0.0, 0.0))]
    for folder, merged in zip(adapted.adapters[1:], adapted.merged[1:], strict=True):
        put(llm, 0, folder)
        put(llm, 2, folder)
        before = metric(llm, "vllm:prefix_cache_hits")
        found = generate(llm, alone)
        assert metric(llm, "vllm:prefix_cache_hits") == before
        oracle = truth(adapted, merged, adapted.base, merged)
        assert oracle.worst_error(alone, found) < TOLERANCE_NATS
        generate(llm, alone)
        assert metric(llm, "vllm:prefix_cache_hits") > before  # of the same content they are read
    generate(llm, without)
    before = metric(llm, "vllm:prefix_cache_hits")
    put(llm, 0, adapted.adapters[0])
    generate(llm, without)
    assert metric(llm, "vllm:prefix_cache_hits") > before


def test_what_was_kept_comes_back_into_a_slot(llm: Any, adapted: AdaptedBase) -> None:
    """Where a replacement fails after it has been put; blocks of neither are read for the other."""
    asked = jobs(8, seed=5)
    base, rs, patterns = adapted.base, adapted.merged[1], adapted.merged[2]

    def worst(*slots: Path) -> float:
        return truth(adapted, *slots).worst_error(asked, generate(llm, asked))

    put(llm, 0, adapted.adapters[1])
    held = [parameter.clone() for parameter in slot_parameters(llm)]
    assert worst(rs, base, base) < TOLERANCE_NATS
    for slot in range(NUM_SLOTS):
        assert tell(llm, "keep", slot)["failure"] is None
    for slot in range(NUM_SLOTS):
        put(llm, slot, adapted.adapters[2])
    assert worst(patterns, patterns, patterns) < TOLERANCE_NATS
    assert tell(llm, "restore", 0, "rs")["failure"] is None
    for slot in (1, 2):
        assert tell(llm, "restore", slot, None)["failure"] is None
    tell(llm, "drop")
    assert tell(llm, "keys")["keys"] == ["rs", None, None]
    assert all(map(torch.equal, slot_parameters(llm), held))
    assert worst(rs, base, base) < TOLERANCE_NATS


def test_requests_under_way_are_as_if_nothing_had_changed(llm: Any, adapted: AdaptedBase) -> None:
    put(llm, 0, adapted.adapters[1])
    asked = [
        of_others(replace(job, max_tokens=24), FIRST + 1, FIRST + 2)
        for job in both_ways(random_jobs(6, num_members=NUM_MEMBERS, vocab_size=VOCAB_SIZE, seed=3))
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
        lambda: put(llm, 2, adapted.adapters[2]),
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
            assert tell(llm, "keep", 0)["failure"] == refusal
    assert not changes
    outputs = [
        next(o for i, o in done.items() if i.startswith(f"job-{n}")) for n in range(len(asked))
    ]
    oracle = truth(adapted, adapted.merged[1], adapted.base, adapted.base)
    assert oracle.worst_error(asked, outputs) < TOLERANCE_NATS


def prompted(weights: tuple[float, ...], *own: tuple[int, ...], seed: int = 0) -> Job:
    """A request whose policies in the slots begin with these tokens, the others with none."""
    heads = tuple(
        each if weight else None for each, weight in zip(((), (), *own, ()), weights, strict=True)
    )
    longest = max((head for head in heads if head is not None), key=len)
    return Job(prompt=longest + TAIL, weights=weights, heads=heads, max_tokens=16, seed=seed)


def drawn(length: int, *, seed: int) -> tuple[int, ...]:
    return tuple(map(int, torch.randint(2, VOCAB_SIZE, (length,), generator=seeded(seed))))


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


KIND, BRIEF = drawn(37, seed=1), drawn(70, seed=2)
TAIL = drawn(130, seed=3)
"""Some blocks, so that requests find what others have cached."""


def test_prompts_in_slots_are_exact_before_and_after_each_change(
    llm: Any, adapted: AdaptedBase
) -> None:
    """A slot with no adapter is the base under whatever prompt a request brings; the same requests
    each time, so that blocks of another content would be found."""
    base, rs = adapted.base, adapted.merged[1]
    weights = [(0.0, 0.0, 1.0, 0.0, 0.0), (0.5, 0.0, 0.5, 0.0, 0.0), (0.2, 0.2, 0.3, 0.3, 0.0)]

    def worst(first: tuple[int, ...], second: tuple[int, ...], *slots: Path) -> float:
        asked = [prompted(each, first, second, seed=seed) for seed, each in enumerate(weights)]
        asked += [replace(prompted(weights[2], first, second), prompt=(*range(100),), heads=None)]
        oracle, before = truth(adapted, *slots, base), metric(llm, "vllm:prefix_cache_hits")
        found = max(oracle.worst_error(asked, generate(llm, asked)) for _ in range(2))
        assert metric(llm, "vllm:prefix_cache_hits") > before
        return found

    assert worst((), (), base, base) < TOLERANCE_NATS
    assert worst(KIND, (), base, base) < TOLERANCE_NATS
    assert worst(KIND, BRIEF, base, base) < TOLERANCE_NATS  # beside another prompt
    assert worst(BRIEF, KIND, base, base) < TOLERANCE_NATS  # both names with other prompts
    put(llm, 1, adapted.adapters[1])
    assert worst(KIND, BRIEF, base, rs) < TOLERANCE_NATS  # an adapter with a prompt
    put(llm, 0, adapted.adapters[1])
    assert worst(KIND, BRIEF, rs, rs) < TOLERANCE_NATS
    assert tell(llm, "empty", 0)["failure"] is None
    assert worst(KIND, BRIEF, base, rs) < TOLERANCE_NATS  # a prompt again where an adapter was
    assert worst((), (), base, rs) < TOLERANCE_NATS


def test_a_long_conversation_keeps_its_prompt_while_others_use_the_slot(
    llm: Any, adapted: AdaptedBase
) -> None:
    """Its policy's prompt is replaced three times; the old and the new ones meet in a step, and in
    the cache."""
    weights = (0.3, 0.0, 0.7, 0.0, 0.0)
    asked = [replace(prompted(weights, KIND, ()), max_tokens=48)]
    later = [prompted(weights, head, (), seed=7) for head in (BRIEF, (), KIND[1:])]
    asked += later
    engine, done = llm.llm_engine, {}

    def add(number: int) -> None:
        job = asked[number]
        params = SamplingParams(
            max_tokens=job.max_tokens,
            seed=job.seed,
            logprobs=0,
            ignore_eos=True,
            extra_args=wire.to_extra_args(
                job.weights, job.mixing, [None if h is None else list(h) for h in job.heads or ()]
            ),
        )
        engine.add_request(f"turn-{number}", {"prompt_token_ids": list(job.prompt)}, params)

    add(0)
    for step in range(1, 400):
        for output in engine.step():
            if output.finished:
                done[output.request_id.partition("-")[2].partition("-")[0]] = output
        if step in (4, 8, 12):
            assert "0" not in done, "the conversation is under way"
            add(step // 4)
        if not engine.has_unfinished_requests():
            break
    outputs = [done[str(number)] for number in range(len(asked))]
    oracle = truth(adapted, adapted.base, adapted.base, adapted.base)
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
    if kind == "no config":
        (folder / "adapter_config.json").unlink()
        return "no adapter_config.json"
    if kind == "alpha":
        config = json.loads((folder / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": 1e39}))
        return "some too large for torch.float32"
    if kind == "named twice":
        size = int.from_bytes(file.read_bytes()[:8], "little")
        header, rest = file.read_bytes()[8 : 8 + size].rstrip(), file.read_bytes()[8 + size :]
        first, *_, last = (key for key in json.loads(header) if key != "__metadata__")
        again = json.dumps({first: json.loads(header)[last]}).encode()
        header = header[:-1] + b"," + again[1:]
        file.write_bytes(len(header).to_bytes(8, "little") + header + rest)
        return "cannot be read"
    if kind == "long header":
        file.write_bytes((2**40).to_bytes(8, "little") + b"{}")
        return "header too large"
    if kind == "no safetensors":
        file.rename(folder / "adapter_model.bin")
        return "safe_serialization=True"
    tensors = load_file(file)
    if kind == "shapes":
        key = next(each for each in tensors if "lora_A" in each)
        tensors[key] = tensors[key][:, :-1].contiguous()
        words = "is for a layer of"
    elif kind == "lone factor":
        del tensors[next(each for each in tensors if "lora_B" in each)]
        words = "but not its other factor"
    elif kind == "embeddings":
        tensors["base_model.model.model.embed_tokens.weight"] = torch.zeros(4, 4)
        words = "share the base's embeddings"
    else:
        number = torch.nan if kind == "NaN" else torch.inf
        next(tensors[key] for key in tensors if "lora_B" in key)[0, 0] = number
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
        "lone factor",
        "embeddings",
        "NaN",
        "infinity",
        "alpha",
        "no config",
        "named twice",
        "long header",
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
    assert tell(llm, "keys")["keys"] == ["rs", None, None]
    assert all(map(torch.equal, slot_parameters(llm), held))


def test_an_adapter_whose_layers_overflow_is_in_no_slot(
    llm: Any, adapted: AdaptedBase, tmp_path: Path
) -> None:
    """Its numbers are finite, and so are its products with most inputs."""
    folder = tmp_path / "large"
    shutil.copytree(adapted.adapters[1], folder)
    file = folder / "adapter_model.safetensors"
    save_file({name: tensor * 1e18 for name, tensor in load_file(file).items()}, file)
    put(llm, 0, adapted.adapters[2])
    before = [parameter.clone() for parameter in slot_parameters(llm)]
    assert read(llm, folder) is None
    refusal = tell(llm, "put", 1, "large")["failure"]
    assert refusal.startswith("policy 'newcomer': its adapter computes NaN or infinity in the base")
    assert tell(llm, "keys")["keys"][:2] == ["patterns", None]
    assert all(map(torch.equal, slot_parameters(llm), before))


def test_an_adapter_that_changes_after_it_was_read_is_in_no_slot(
    llm: Any, adapted: AdaptedBase, tmp_path: Path
) -> None:
    folder = tmp_path / "changing"
    shutil.copytree(adapted.adapters[1], folder)
    put(llm, 0, adapted.adapters[2])
    empty = [parameter.clone() for parameter in slot_parameters(llm)]
    assert read(llm, folder) is None
    shutil.copytree(adapted.adapters[0], folder, dirs_exist_ok=True)
    refusal = tell(llm, "put", 1, "changing")["failure"]
    assert refusal.startswith("policy 'newcomer': the files in ")
    assert "have changed since they were checked" in refusal
    assert tell(llm, "keys")["keys"][:2] == ["patterns", None]
    assert all(map(torch.equal, slot_parameters(llm), empty))
    put(llm, 1, folder)


def slot_parameters(llm: Any) -> Sequence[torch.Tensor]:
    names = ("slots_a", "slots_b")
    return [each for name, each in model_of(llm).named_parameters() if name.endswith(names)]


def test_the_size_of_a_slot_is_what_its_factors_take(llm: Any) -> None:
    model = model_of(llm)
    taken = sum(each[-1].numel() * each.element_size() for each in slot_parameters(llm))
    assert model.parameter_bytes()[FIRST:NUM_MEMBERS] == [taken] * NUM_SLOTS


def test_slots_without_kv_cache_leave_the_cache_to_the_others(llm: Any) -> None:
    """vLLM makes as many blocks as if these slots were not there."""
    worker = worker_of(llm)
    *others, without = worker.prefmix_sizes()["kv_per_token"]
    assert without == 0
    assert others == [others[0]] * (NUM_MEMBERS - 1)
    cache = llm.llm_engine.vllm_config.cache_config
    block_bytes = cache.block_size * sum(others)
    assert cache.num_gpu_blocks == KV_CACHE_BYTES // block_bytes > 0
    assert cache.num_gpu_blocks > KV_CACHE_BYTES // (block_bytes + cache.block_size * others[0])


def test_weight_without_kv_cache_is_refused_where_logits_are_mixed(llm: Any) -> None:
    job = Job(prompt=(3, 4), weights=(0.5, 0.0, 0.0, 0.0, 0.5))
    with pytest.raises(VLLMValidationError, match="slots without a KV cache have no logits to mix"):
        generate(llm, [job])
    assert generate(llm, [replace(job, mixing="parameters")])


def test_the_check_of_the_engine_knows_slots_without_kv_cache(llm: Any) -> None:
    core = llm.llm_engine.engine_core.engine_core
    found = self_check.run(core)
    assert found["failure"] is None
    assert (found["slots_with_kv"], found["slots_without_kv"]) == (2, 1)
    assert found["slot_bytes"] > 0
    assert found["slot_kv_bytes"] > 0

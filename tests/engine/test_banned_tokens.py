"""A policy may give tokens no probability at all: they stay banned whatever its weight's sign."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from prefmix.mixing import wire
from prefmix.mixing.spec import MixtureSpec
from support.checkpoints.tiny_adapters import save_adapter, save_merged
from support.checkpoints.tiny_policies import VOCAB_SIZE, save_policy
from support.engines import AdaptedBase, EngineFactory, spec_of_folders
from support.exactness import TOLERANCE_NATS, Job, Oracle, generate

BANNED = [11, 12, 300]
WEIGHTS = [(1.0, 0.0), (0.0, 1.0), (0.25, 0.75), (2.5, -1.5), (-0.5, 1.5)]
PROMPT = (5, 9, 200, 31)


def save_banning(folder: Path, *, seed: int, banned: list[int]) -> Path:
    """A GPT-J, whose LM head has a bias, with -inf in it."""
    save_policy(folder, seed=seed, model_type="gptj", rotary_dim=16)
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.bias"][banned] = -torch.inf
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module", params=["full checkpoints", "shared trunk"])
def banning(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[MixtureSpec, list[Path]]:
    """A mixture of two, and the full checkpoints that it must equal."""
    root = tmp_path_factory.mktemp("banning")
    if request.param == "full checkpoints":
        one = save_banning(root / "one", seed=0, banned=BANNED)
        two = save_banning(root / "two", seed=1, banned=[])
        return spec_of_folders([one, two], weight_space="affine"), [one, two]
    base = save_banning(root / "base", seed=0, banned=BANNED)
    targets = ("q_proj", "fc_in")
    adapters = [save_adapter(root / name, base, seed=2, targets=targets) for name in "a"]
    merged = [save_merged(root / "merged", base, adapters[0]), base]
    served = AdaptedBase(base, adapters, merged)
    return served.spec(weight_space="affine", reference=served.reference()), merged


@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
def test_a_banned_token_has_no_probability_and_no_other_is_hurt(
    engine: EngineFactory, banning: tuple[MixtureSpec, list[Path]], weights: tuple[float, float]
) -> None:
    spec, folders = banning
    llm = engine(spec, max_logprobs=-1)
    [output] = generate(llm, [Job(prompt=PROMPT, weights=weights, max_tokens=4)], logprobs=-1)
    answer = output.outputs[0]
    assert answer.finish_reason == "length"
    logits_TMV = Oracle(folders).logits((*PROMPT, *answer.token_ids)).double()
    for step, returned in enumerate(answer.logprobs):
        members_MV = logits_TMV[len(PROMPT) - 1 + step]
        active = [index for index, weight in enumerate(weights) if weight]
        is_banned_V = torch.isneginf(members_MV[active]).any(dim=0)
        terms = [weights[index] * members_MV[index] for index in active]
        truth_V = torch.stack(terms).sum(0).masked_fill(is_banned_V, -torch.inf).log_softmax(0)
        served_V = torch.full((VOCAB_SIZE,), -torch.inf, dtype=torch.float64)
        for token, entry in returned.items():
            served_V[token] = entry.logprob
        assert torch.equal(torch.isneginf(served_V), is_banned_V)
        error_V = (served_V - truth_V)[~is_banned_V].abs()
        assert error_V.max() < 2 * TOLERANCE_NATS * np.abs(weights).sum()


@pytest.mark.parametrize("weights", WEIGHTS[2:], ids=str)
def test_statistics_leave_banned_tokens_out(
    engine: EngineFactory, banning: tuple[MixtureSpec, list[Path]], weights: tuple[float, float]
) -> None:
    from vllm import SamplingParams

    llm = engine(banning[0], max_logprobs=-1)
    llm.collective_rpc("prefmix_start_statistics", args=(0,))
    extra_args = {**wire.to_extra_args(list(weights)), wire.MEASURE_KEY: "key"}
    params = SamplingParams(max_tokens=5, seed=1, ignore_eos=True, extra_args=extra_args)
    llm.generate([{"prompt_token_ids": list(PROMPT)}], params, use_tqdm=False)
    [taken] = llm.collective_rpc("prefmix_take_request", args=("key",))
    [rows] = [np.array(each) for each in taken.values()]
    assert len(rows) == 5
    assert not np.isnan(rows).any()

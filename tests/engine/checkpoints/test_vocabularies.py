"""Members whose vocabularies differ are mixed over the tokens that they have in common.

Each layout has a token, `<pad>`, that one member's tokenizer alone has, and rows behind it; of the
full checkpoints the second has more rows than the first, and ties them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GenerationConfig

from prefmix.mixing import wire
from prefmix.mixing.spec import MixtureSpec
from prefmix.mixing.vocabulary import CommonVocabulary
from support.checkpoints.tiny_adapters import save_adapter, save_merged
from support.checkpoints.tiny_policies import VOCAB_SIZE, build_tokenizer, save_policy
from support.engines import AdaptedBase, EngineFactory, spec_of_folders
from support.exactness import TOLERANCE_NATS, Job, Oracle, generate, random_jobs

PAD = VOCAB_SIZE
"""The id that is another token, or none, to some member."""
ROWS = VOCAB_SIZE + 8
"""Rows of the shortest vocabulary."""
BEYOND = ROWS + 5
"""An end token without a row in some member."""
EVERY_TOKEN_NATS = 2 * TOLERANCE_NATS
"""The error of any token, the least likely included, a unit of weight; drawn ones err less."""


def with_pad() -> Any:
    tokenizer = build_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    return tokenizer


@pytest.fixture(scope="module", params=["full checkpoints", "shared trunk"])
def unlike(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[MixtureSpec, list[Path]]:
    """A mixture of two policies, and the full checkpoints that it must equal."""
    folder = tmp_path_factory.mktemp("unlike")
    if request.param == "shared trunk":
        base = save_policy(folder / "base", seed=0, vocab_size=ROWS)
        adapters = [save_adapter(folder / name, base, seed=1 + (name == "b")) for name in "ab"]
        with_pad().save_pretrained(adapters[1])
        merged = [save_merged(folder / f"{each.name}-merged", base, each) for each in adapters]
        spec = AdaptedBase(base, adapters, merged).spec(weight_space="affine")
        spec = MixtureSpec.from_dict(
            {**spec.to_dict(), "reference": {"name": "base", "model": str(base)}}
        )
        folders = [*merged, base]
    else:
        one = save_policy(folder / "one", seed=0, vocab_size=ROWS)
        two = save_policy(
            folder / "two",
            seed=1,
            vocab_size=ROWS + 16,
            tie_word_embeddings=True,
            tokenizer=with_pad(),
        )
        folders = [one, two]
        spec = spec_of_folders(folders, weight_space="affine")
    GenerationConfig(eos_token_id=[1, BEYOND]).save_pretrained(folders[-1])
    GenerationConfig(eos_token_id=[1, BEYOND]).save_pretrained(spec.checkpoints[0].model)
    return spec, folders


@pytest.fixture(scope="module")
def oracle(unlike: tuple[MixtureSpec, list[Path]]) -> Oracle:
    class OverCommonTokens(Oracle):
        def logprobs(self, tokens: Any, weights: Any, mixing: str = "logits") -> torch.Tensor:
            assert mixing == "logits"
            logits_TMV = self.logits(tokens).double()
            mixed_TV = torch.einsum("tmv,m->tv", logits_TMV, torch.tensor(weights).double())
            mixed_TV[:, PAD] = -torch.inf
            return mixed_TV.log_softmax(-1)

    return OverCommonTokens(unlike[1])


@pytest.fixture(scope="module")
def llm(engine: EngineFactory, unlike: tuple[MixtureSpec, list[Path]]) -> Any:
    return engine(unlike[0], max_logprobs=-1)


def all_weights(num_members: int) -> list[tuple[float, ...]]:
    """One-hot, inside the simplex and outside it."""
    rest = (0.0,) * (num_members - 2)
    return [(1.0, 0.0, *rest), (0.0, 1.0, *rest), (0.25, 0.75, *rest), (2.5, -1.5, *rest)]


def test_every_tokens_logprob_is_the_mixtures_over_common_tokens(
    llm: Any, oracle: Oracle, unlike: tuple[MixtureSpec, list[Path]]
) -> None:
    prompt = (5, 9, 200, 31)
    for weights in all_weights(unlike[0].num_members):
        job = Job(prompt=prompt, weights=weights, max_tokens=3)
        [output] = generate(llm, [job], logprobs=-1)
        tokens = output.outputs[0].token_ids
        truth_TV = oracle.logprobs((*prompt, *tokens), weights)[len(prompt) - 1 :]
        for step, returned in enumerate(output.outputs[0].logprobs):
            served_V = torch.full((ROWS,), -torch.inf, dtype=torch.float64)
            for token, entry in returned.items():
                served_V[token] = entry.logprob
            assert served_V[PAD] == -torch.inf
            is_common_V = torch.arange(ROWS) != PAD
            error_V = (served_V - truth_TV[step, :ROWS])[is_common_V].abs()
            assert error_V.max() < EVERY_TOKEN_NATS * np.abs(weights).sum()


def test_a_mixed_batch_is_exact(
    llm: Any, oracle: Oracle, unlike: tuple[MixtureSpec, list[Path]]
) -> None:
    batch = random_jobs(8, num_members=unlike[0].num_members, vocab_size=VOCAB_SIZE, seed=3)
    outputs = generate(llm, batch, prompt_logprobs=0)
    assert oracle.worst_error(batch, outputs) < TOLERANCE_NATS
    assert PAD not in {token for output in outputs for token in output.outputs[0].token_ids}


def test_statistics_are_over_common_tokens(
    llm: Any, oracle: Oracle, unlike: tuple[MixtureSpec, list[Path]]
) -> None:
    """Also outside the simplex, where a banned token times a negative weight is no number."""
    from vllm import SamplingParams

    llm.collective_rpc("prefmix_start_statistics", args=(0,))
    num_members = unlike[0].num_members
    weights = np.array(all_weights(num_members)[-1])
    extra_args = {**wire.to_extra_args(weights.tolist()), wire.MEASURE_KEY: "key"}
    params = SamplingParams(max_tokens=5, seed=1, ignore_eos=True, extra_args=extra_args)
    [output] = llm.generate([{"prompt_token_ids": [5, 6]}], params, use_tqdm=False)
    [taken] = llm.collective_rpc("prefmix_take_request", args=("key",))
    [figures] = [np.array(rows) for rows in taken.values()]
    tokens = output.outputs[0].token_ids
    for row, token in enumerate(tokens):
        before = (5, 6, *tokens[:row])
        members_MV = [oracle.logprobs(before, one_hot)[-1] for one_hot in np.eye(num_members)]
        mixed_V = oracle.logprobs(before, weights)[-1]
        is_common_V = torch.isfinite(mixed_V)
        for member in np.flatnonzero(weights):
            own_V = members_MV[member]
            kl = (mixed_V.exp() * (mixed_V - own_V))[is_common_V].sum()
            served = figures[row, 3 + member], figures[row, 3 + num_members + member]
            assert served == pytest.approx((kl.item(), own_V[token].item()), abs=1e-3)


def test_end_tokens_without_a_row_do_no_harm(
    llm: Any, unlike: tuple[MixtureSpec, list[Path]]
) -> None:
    """The model's own end tokens are masked until `min_tokens`, by their place in the logits."""
    from vllm import SamplingParams

    weights = wire.to_extra_args(all_weights(unlike[0].num_members)[2])
    params = SamplingParams(max_tokens=6, min_tokens=6, seed=0, extra_args=weights)
    [output] = llm.generate([{"prompt_token_ids": [7, 8]}], params, use_tqdm=False)
    assert len(output.outputs[0].token_ids) == 6


@pytest.mark.parametrize("token", [PAD, ROWS + 2])
@pytest.mark.parametrize("field", ["prompt", "logit_bias", "allowed_token_ids", "stop_token_ids"])
def test_tokens_that_not_all_have_are_refused(llm: Any, field: str, token: int) -> None:
    from vllm import SamplingParams
    from vllm.exceptions import VLLMValidationError

    prompt = [7, token] if field == "prompt" else [7]
    fields: Any = {} if field == "prompt" else {field: [token]}
    if field == "logit_bias":
        fields = {field: {token: 5.0}}
    with pytest.raises(VLLMValidationError, match=r"not all policies|out.of.vocab") as refused:
        llm.generate(
            [{"prompt_token_ids": prompt}], SamplingParams(max_tokens=1, **fields), use_tqdm=False
        )
    assert str(token) in str(refused.value) or "allowed_token_ids" in str(refused.value)


def test_the_engine_knows_its_vocabulary(llm: Any) -> None:
    config = llm.llm_engine.vllm_config.model_config
    vocabulary = CommonVocabulary.of_config(config.hf_config)
    assert vocabulary is not None
    assert (vocabulary.num_rows, vocabulary.differing) == (ROWS, {PAD})
    assert config.get_vocab_size() == ROWS


def test_the_longer_vocabulary_may_come_first(
    own_engine: EngineFactory, unlike: tuple[MixtureSpec, list[Path]], oracle: Oracle
) -> None:
    from vllm.exceptions import VLLMValidationError

    spec, folders = unlike
    if spec.base is not None:
        pytest.skip("the base is first")
    llm = own_engine(spec_of_folders(folders[::-1]))
    batch = random_jobs(4, num_members=2, vocab_size=VOCAB_SIZE, seed=4)
    turned = [
        Job(prompt=job.prompt, weights=job.weights[::-1], max_tokens=job.max_tokens, seed=job.seed)
        for job in batch
    ]
    assert oracle.worst_error(batch, generate(llm, turned)) < TOLERANCE_NATS
    with pytest.raises(VLLMValidationError, match="not all policies"):
        generate(llm, [Job(prompt=(7, PAD), weights=(0.5, 0.5))])

"""The demo policies as a world of simulations: responses drawn in transformers, without an engine.

What an engine measures while it samples is taken from the full distributions of every token. The
truths are means over a large sample with random numbers of its own, the same at all weights, so
that differences between weights are known much better than the KLs.

Shapes: N responses, T tokens, V vocabulary, K policies.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from prefmix.policies.demo import CHECKPOINTS, REWARDS
from prefmix.policies.demo.reviews.prompts import TRAINING_PROMPTS
from prefmix.policies.demo.training.tokenizer import chat_text
from prefmix.weights.fit.sequence_level.objective import Floats
from support.fit.tree_world import Sample

_BATCH_ROWS = 1024


class DemoWorld:
    """The policies of a folder of checkpoints, on the demo's training prompts."""

    def __init__(self, *, max_tokens: int, folder: Path = CHECKPOINTS) -> None:
        torch.set_num_threads(1)
        self.max_tokens, self.num_policies = max_tokens, len(REWARDS)
        self.policies = [
            AutoModelForCausalLM.from_pretrained(folder / name, dtype=torch.float32).eval()
            for name in REWARDS
        ]
        tokenizer = Tokenizer.from_file(str(folder / "reference" / "tokenizer.json"))
        texts = [chat_text(prompt) for prompt in TRAINING_PROMPTS]
        self.prompt_ids = [encoding.ids for encoding in tokenizer.encode_batch(texts)]
        self.num_prompts = len(texts)

    def sample(self, weights_K: Floats, prompt_N: np.ndarray, rng: np.random.Generator) -> Sample:
        """One response to each prompt of `prompt_N`."""
        generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
        by_length: dict[int, list[int]] = defaultdict(list)
        for row, prompt in enumerate(prompt_N):
            by_length[len(self.prompt_ids[prompt])].append(row)
        found = np.zeros((len(prompt_N), 3 + 2 * self.num_policies))
        for rows in by_length.values():
            for start in range(0, len(rows), _BATCH_ROWS):
                batch = rows[start : start + _BATCH_ROWS]
                ids_NT = torch.tensor([self.prompt_ids[prompt_N[row]] for row in batch])
                found[batch] = self._batch(weights_K, ids_NT, generator)
        return Sample(
            prompt_N=prompt_N,
            logprob_N=found[:, 0],
            policy_logprobs_NK=found[:, 3 : 3 + self.num_policies],
            kl_NK=found[:, 3 + self.num_policies :],
            entropy_N=found[:, 1],
            num_tokens_N=found[:, 2],
        )

    @torch.no_grad()
    def _batch(self, weights_K: Floats, ids_NT: Any, generator: torch.Generator) -> Floats:
        """(log p, entropy, tokens, log pi_k, KL_k) of one response to each row, [N, 3 + 2 K]."""
        eos = int(self.policies[0].config.eos_token_id)
        found = np.zeros((len(ids_NT), 3 + 2 * self.num_policies))
        weights = torch.tensor(weights_K, dtype=torch.float32)
        caches: list[Any] = [None] * self.num_policies
        active_N = np.arange(len(ids_NT))
        for _ in range(self.max_tokens):
            laws = []
            for k, policy in enumerate(self.policies):
                output = policy(ids_NT, past_key_values=caches[k], use_cache=True, logits_to_keep=1)
                caches[k] = output.past_key_values
                laws.append(output.logits[:, -1].float().log_softmax(-1))
            laws_NKV = torch.stack(laws, dim=1)
            mixed_NV = torch.einsum("k,nkv->nv", weights, laws_NKV).log_softmax(-1)
            p_NV = mixed_NV.exp()
            token_N1 = torch.multinomial(p_NV, 1, generator=generator)
            own_NK = laws_NKV.gather(2, token_N1[:, None].expand(-1, self.num_policies, 1))[..., 0]
            kl_NK = torch.einsum("nv,nkv->nk", p_NV, mixed_NV[:, None] - laws_NKV)
            columns = (
                mixed_NV.gather(1, token_N1),
                -(p_NV * mixed_NV).sum(-1, keepdim=True),
                torch.ones_like(token_N1),
                own_NK,
                kl_NK,
            )
            found[active_N] += torch.cat(columns, dim=1).double().numpy()
            going_N = (token_N1[:, 0] != eos).nonzero()[:, 0]
            if not len(going_N):
                break
            for cache in caches:
                cache.batch_select_indices(going_N)
            active_N, ids_NT = active_N[going_N.numpy()], token_N1[going_N]
        return found

    def kl_per_prompt(self, weights_K: Floats, *, each: int = 16, seed: int = 99) -> Floats:
        """KL(mixture || policy) of every prompt, measured on `each` responses, [P, K]."""
        prompt_N = np.repeat(np.arange(self.num_prompts), each)
        found = self.sample(weights_K, prompt_N, np.random.default_rng(seed))
        kl_PK: Floats = found.kl_NK.reshape(self.num_prompts, each, -1).mean(axis=1)
        return kl_PK

"""The demo policies as a world of simulations: responses drawn in transformers, without an engine.

What an engine measures while it samples is taken from the full distributions of every token.

Shapes: N responses, T tokens, V vocabulary, K policies.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from prefmix.policies.demo import CHECKPOINTS, REWARDS
from prefmix.policies.demo.reviews.prompts import TRAINING_PROMPTS
from prefmix.policies.demo.training.sampling import sample_responses
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
        self.tokenizer = Tokenizer.from_file(str(folder / "reference" / "tokenizer.json"))
        texts = [chat_text(prompt) for prompt in TRAINING_PROMPTS]
        self.prompt_ids = [encoding.ids for encoding in self.tokenizer.encode_batch(texts)]
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

    def kls_near(self, weights_WK: Floats, drawn_at_K: Floats, *, each: int, seed: int) -> Floats:
        """KL(mixture || policy) at several weights, from one sample near them, [W, K].

        The sample's responses are read by every policy, and count by their probability at the
        weights over that at `drawn_at_K`; so differences between weights have little noise.
        """
        contexts = [chat_text(prompt) for prompt in TRAINING_PROMPTS for _ in range(each)]
        drawn = sample_responses(
            self.policies, self.tokenizer, contexts, seed=seed, weights=drawn_at_K.tolist()
        )
        points = torch.tensor(np.vstack([drawn_at_K, weights_WK]), dtype=torch.float32)
        logprob_WN = np.zeros((len(points), len(drawn)))
        kl_WNK = np.zeros((len(points), len(drawn), self.num_policies))
        for row, response in enumerate(drawn):
            ids = response.ids[: self.max_tokens]
            laws_TKV = self._laws(response.context_ids, ids)
            for w, point in enumerate(points):
                mixed_TV = torch.einsum("k,tkv->tv", point, laws_TKV).log_softmax(-1)
                logprob_WN[w, row] = mixed_TV.gather(1, torch.tensor(ids)[:, None]).sum()
                gap_TKV = mixed_TV[:, None] - laws_TKV
                kl_WNK[w, row] = torch.einsum("tv,tkv->k", mixed_TV.exp(), gap_TKV).numpy()
        share_WN = np.exp(logprob_WN - logprob_WN[0])
        share_WN /= share_WN.sum(axis=1, keepdims=True)
        found: Floats = np.einsum("wn,wnk->wk", share_WN, kl_WNK)[1:]
        return found

    @torch.no_grad()
    def _laws(self, context_ids: Sequence[int], ids: Sequence[int]) -> Any:
        """log pi_k(token) at every token of a response, [T, K, V]."""
        whole = torch.tensor([[*context_ids, *ids[:-1]]])
        laws = [policy(whole).logits[0, -len(ids) :].float() for policy in self.policies]
        return torch.stack(laws, dim=1).log_softmax(-1)

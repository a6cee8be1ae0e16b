"""Worlds of token-level policies whose responses can be enumerated: every truth is exact.

A response is a path in a tree of contexts, `num_tokens` ways at each, `length` deep; token 0 ends
it. KLs of the mixture are sums over contexts, so that no sequence needs to be listed. The prompts
of a sample are drawn with replacement from a few dozen, over which the truths are means.

Shapes: P prompts, C contexts of one depth, V tokens, K policies, N sampled responses.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import linprog
from scipy.special import log_softmax

from prefmix.weights.fit.sequence_level.objective import Floats


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Sampled responses of the mixture, with what an engine measures while it samples."""

    prompt_N: np.ndarray
    logprob_N: Floats
    policy_logprobs_NK: Floats
    kl_NK: Floats
    """Sum over tokens of KL(mixture || policy) at the token."""
    entropy_N: Floats
    num_tokens_N: np.ndarray


class TreeWorld:
    """K policies and a reference (the last row), with logits of their own at every context."""

    def __init__(
        self,
        num_policies: int,
        *,
        seed: int,
        scale: float = 1.0,
        num_prompts: int = 32,
        num_tokens: int = 4,
        length: int = 5,
    ) -> None:
        rng = np.random.default_rng(seed)
        self.num_policies, self.num_prompts, self.length = num_policies, num_prompts, length
        self.num_tokens = num_tokens
        # What a policy wants everywhere, at each prompt, and at each context.
        taste_MV = rng.normal(size=(num_policies, 1, 1, num_tokens))
        own_P = rng.normal(size=(num_policies, num_prompts, 1, num_tokens))
        reach_M = scale * rng.uniform(0.6, 1.4, size=(num_policies, 1, 1, 1))
        self.logits = []
        for depth in range(length):
            shape = (num_prompts, num_tokens**depth, num_tokens)
            base = rng.normal(size=shape)
            own = rng.normal(size=(num_policies, *shape))
            policies = base + reach_M * (0.5 * taste_MV + 0.4 * own_P + 0.8 * own)
            level = np.concatenate([policies, base[None]])
            level[..., 0] -= 0.5 * (length - 1 - depth) / length
            level = log_softmax(level, axis=-1)
            if depth:
                ended = np.zeros((num_tokens**depth,), bool)
                for place in range(depth):
                    ended |= np.arange(num_tokens**depth) // num_tokens**place % num_tokens == 0
                level[:, :, ended] = np.where(np.arange(num_tokens) == 0, 0.0, -1e9)
            self.logits.append(level)

    def laws(self, weights_M: Floats) -> list[Floats]:
        """log p(token | prompt, context) of the mixture by depth, [P, C, V]."""
        return [
            log_softmax(np.tensordot(weights_M, level[: len(weights_M)], axes=1), axis=-1)
            for level in self.logits
        ]

    def kl(self, weights_K: Floats) -> Floats:
        """KL(mixture || policy), mean over prompts, [K]."""
        return self.kl_per_prompt(weights_K).mean(axis=0)

    def kl_per_prompt(self, weights_K: Floats) -> Floats:
        """KL(mixture || policy) of every prompt, [P, K]."""
        reach_PC = np.ones((self.num_prompts, 1))
        kl_PK = np.zeros((self.num_prompts, self.num_policies))
        for law_PCV, level in zip(self.laws(weights_K), self.logits, strict=True):
            p_PCV = np.exp(law_PCV) * reach_PC[:, :, None]
            for k in range(self.num_policies):
                kl_PK[:, k] += (p_PCV * (law_PCV - level[k])).sum(axis=(1, 2))
            reach_PC = p_PCV.reshape(self.num_prompts, -1)
        return kl_PK

    def jacobian(self, weights_K: Floats, *, step: float = 1e-5) -> Floats:
        """dKL_k / dw_j by central differences of the enumerated KLs, [K, K]."""
        columns = [
            (self.kl(weights_K + step * one_K) - self.kl(weights_K - step * one_K)) / (2 * step)
            for one_K in np.eye(self.num_policies)
        ]
        return np.stack(columns, axis=1)

    def sequences(self) -> Floats:
        """log pi_k(y) of every response of the world, [P, Y, K]."""
        log_MPY = np.zeros((self.num_policies, self.num_prompts, 1))
        for level in self.logits:
            longer = log_MPY[..., None] + level[: self.num_policies]
            log_MPY = longer.reshape(self.num_policies, self.num_prompts, -1)
        is_possible_Y = log_MPY[0, 0] > -1e8
        found: Floats = log_MPY[:, :, is_possible_Y].transpose(1, 2, 0)
        return found

    def least_largest_kl(self, *, starts: int = 6, seed: int = 0) -> tuple[Floats, float]:
        """(weights, value) at which the largest true KL is smallest, over several starts."""
        rng = np.random.default_rng(seed)
        best_K, best = np.full(self.num_policies, 1 / self.num_policies), np.inf
        for start in range(starts):
            w = (
                np.full(self.num_policies, 1 / self.num_policies)
                if start == 0
                else rng.dirichlet(np.full(self.num_policies, 2.0))
            )
            radius, kl = 0.3, self.kl(w)
            while radius > 1e-5:
                new = exact_step(w, kl, self.jacobian(w), radius)
                new_kl = self.kl(new)
                if new_kl.max() < kl.max() - 1e-9:
                    w, kl, radius = new, new_kl, min(0.3, 1.5 * radius)
                else:
                    radius /= 3
            if kl.max() < best:
                best_K, best = w, float(kl.max())
        return best_K, best

    def sample(self, weights_M: Floats, prompt_N: np.ndarray, rng: np.random.Generator) -> Sample:
        """One response to each prompt of `prompt_N`."""
        count = len(prompt_N)
        node = np.zeros(count, dtype=int)
        own = np.arange(count)
        logprob, entropy = np.zeros(count), np.zeros(count)
        policy, kl = np.zeros((count, self.num_policies)), np.zeros((count, self.num_policies))
        tokens = np.zeros(count, dtype=int)
        alive = np.ones(count, dtype=bool)
        for law_PCV, level in zip(self.laws(weights_M), self.logits, strict=True):
            law = law_PCV[prompt_N, node]
            z = level[: self.num_policies, prompt_N, node]
            token = (law + rng.gumbel(size=law.shape)).argmax(axis=1)
            p = np.exp(law)
            logprob += law[own, token]
            entropy -= (p * law).sum(axis=1)
            policy += z[:, own, token].T
            kl += (p * (law - z)).sum(axis=2).T
            tokens += alive
            alive &= token != 0
            node = node * self.num_tokens + token
        return Sample(
            prompt_N=prompt_N,
            logprob_N=logprob,
            policy_logprobs_NK=policy,
            kl_NK=kl,
            entropy_N=entropy,
            num_tokens_N=tokens,
        )


def exact_step(w: Floats, kl: Floats, jac: Floats, radius: float) -> Floats:
    """The step of a linear programme in a box, for the truths."""
    K = len(w)
    found = linprog(
        np.append(np.zeros(K), 1.0),
        A_ub=np.column_stack([jac, -np.ones(K)]),
        b_ub=jac @ w - kl,
        A_eq=np.append(np.ones(K), 0.0)[None],
        b_eq=[1.0],
        bounds=[(max(0, x - radius), min(1, x + radius)) for x in w] + [(None, None)],
    )
    assert found.success
    return found.x[:K] / found.x[:K].sum()

"""An engine whose distribution is known: policies that are Markov chains over a few tokens.

Every response has the same length, so all of them can be enumerated and the deployed mixture's KLs
computed exactly. Logits are the cubes of a policy's parameters, so that a mean of parameters is no
mixture of logits.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from scipy.special import log_softmax

from prefmix.mixing.spec import MixtureSpec, Policy
from prefmix.mixing.ways_to_mix import Mixing
from prefmix.weights.engines.engine import Figures, Response
from prefmix.weights.engines.member_prompts import Tokens
from prefmix.weights.engines.prompts import Prompt
from prefmix.weights.fit.sequence_level.objective import Floats

NUM_TOKENS, LENGTH = 4, 4


class ToyEngine:
    """K policies, then a reference; the token after t depends on t and the prompt's number."""

    def __init__(self, *, num_policies: int = 3, seed: int = 0, num_prompts: int = 24) -> None:
        rng = np.random.default_rng(seed)
        shape = (num_prompts, NUM_TOKENS + 1, NUM_TOKENS)
        base = rng.normal(size=shape)
        reach_K = np.linspace(0.6, 1.2, num_policies).reshape(-1, 1, 1, 1)
        own = rng.normal(size=(num_policies, *shape)) * reach_K
        self.logits_MPST = np.concatenate([base + own, base[None]])
        self.prompts = [
            Prompt(id=str(index), text=f"prompt {index}") for index in range(num_prompts)
        ]
        self.calls = {"sample": 0, "score": 0}
        names = [f"p{index}" for index in range(num_policies)]
        self.spec = MixtureSpec(
            policies=tuple(Policy(name=name, model=name) for name in names),
            reference=Policy(name="reference", model="reference"),
        )

    def tokenize(self, prompts: Sequence[Prompt]) -> list[Tokens]:
        """Each prompt becomes one token, its number."""
        return [(int(prompt.id),) for prompt in prompts]

    def sample(
        self,
        prompts: Sequence[Tokens],
        weights_M: Sequence[float],
        *,
        num_responses: int,
        max_tokens: int,
        seed: int,
        mixing: Mixing = "logits",
    ) -> list[list[Response]]:
        """Draws token by token from the token-level mixture."""
        self.calls["sample"] += 1
        rng = np.random.default_rng(seed)
        law_PST = self._law(weights_M, mixing)
        drawn = []
        for (prompt,) in prompts:
            tokens = np.zeros((num_responses, LENGTH), dtype=int)
            state = np.zeros(num_responses, dtype=int)
            for step in range(LENGTH):
                noise = rng.gumbel(size=(num_responses, NUM_TOKENS))
                tokens[:, step] = (law_PST[prompt, state] + noise).argmax(axis=1)
                state = tokens[:, step] + 1
            logprobs = self._logprobs(law_PST[prompt], tokens)
            figures: list[Figures | None] = [None] * num_responses
            if mixing == "logits":
                figures = [*self._figures(prompt, law_PST[prompt], tokens, weights_M)]
            drawn.append(
                [
                    Response(tokens=tuple(row), logprob=float(logprob), figures=measured)
                    for row, logprob, measured in zip(
                        tokens.tolist(), logprobs, figures, strict=True
                    )
                ]
            )
        return drawn

    def _figures(
        self, prompt: int, law_ST: Floats, tokens_NL: np.ndarray, weights_M: Sequence[float]
    ) -> list[Figures]:
        """The figures of responses to one prompt; NaN for members without weight."""
        states_NL = _states(tokens_NL)
        members_MST = log_softmax(self.logits_MPST[:, prompt], axis=-1)
        kl_MS = (np.exp(law_ST) * (law_ST - members_MST)).sum(axis=-1)
        entropy_S = -(np.exp(law_ST) * law_ST).sum(axis=-1)
        takes_part_M = np.append(weights_M, [0.0] * (len(members_MST) - len(weights_M))) > 0
        logprob_MN = np.stack([self._logprobs(law, tokens_NL) for law in members_MST])
        kl_MN = kl_MS[:, states_NL].sum(axis=2)
        kl_MN[~takes_part_M] = logprob_MN[~takes_part_M] = np.nan
        return [
            Figures(
                log_partition=0.0,
                entropy=float(entropy),
                kl_M=tuple(kl_M.tolist()),
                logprob_M=tuple(logprob_M.tolist()),
            )
            for entropy, kl_M, logprob_M in zip(
                entropy_S[states_NL].sum(axis=1), kl_MN.T, logprob_MN.T, strict=True
            )
        ]

    def score(
        self,
        pairs: Sequence[tuple[Tokens, Tokens]],
        weights_M: Sequence[float],
        *,
        mixing: Mixing = "logits",
    ) -> list[float]:
        """Exact log-probabilities under the token-level mixture."""
        self.calls["score"] += 1
        law_PST = self._law(weights_M, mixing)
        prompt_N = np.array([prompt for (prompt,), _ in pairs])
        tokens_NL = np.array([tokens for _, tokens in pairs])
        states_NL = _states(tokens_NL)
        scores: list[float] = law_PST[prompt_N[:, None], states_NL, tokens_NL].sum(axis=1).tolist()
        return scores

    def _law(self, weights_M: Sequence[float], mixing: Mixing = "logits") -> Floats:
        """log p(next token | prompt, state) of the mixture, [P, S, T]."""
        if mixing == "logits":
            logits_PST = np.tensordot(weights_M, self.logits_MPST, axes=1)
        else:
            logits_PST = np.tensordot(weights_M, np.cbrt(self.logits_MPST), axes=1) ** 3
        law_PST: Floats = log_softmax(logits_PST, axis=-1)
        return law_PST

    @staticmethod
    def _logprobs(law_ST: Floats, tokens_NL: np.ndarray) -> Floats:
        logprobs_N: Floats = law_ST[_states(tokens_NL), tokens_NL].sum(axis=1)
        return logprobs_N

    def deployed_kl(self, weights_K: Floats, mixing: Mixing = "logits") -> Floats:
        """Exact KL(token-level mixture || policy), mean over prompts, [K]."""
        sequences_NL = np.array(list(itertools.product(range(NUM_TOKENS), repeat=LENGTH)))
        mixture_PST = self._law([*weights_K, 0.0], mixing)
        policies = [self._law(row) for row in np.eye(len(weights_K) + 1)[:-1]]
        # [P, N] of the mixture and [P, N] of each policy, all prompts at once.
        states_NL = _states(sequences_NL)
        log_mix_PN = mixture_PST[:, states_NL, sequences_NL].sum(axis=2)
        log_policies = [law_PST[:, states_NL, sequences_NL].sum(axis=2) for law_PST in policies]
        kl_K: Floats = np.array(
            [
                (np.exp(log_mix_PN) * (log_mix_PN - log_PN)).sum(axis=1).mean()
                for log_PN in log_policies
            ]
        )
        return kl_K


def _states(tokens_NL: np.ndarray) -> np.ndarray:
    """The state before each token: 0, then the token before it and one."""
    return np.concatenate([np.zeros((len(tokens_NL), 1), int), tokens_NL[:, :-1] + 1], axis=1)

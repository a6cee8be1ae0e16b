"""Coverage of the intervals of a fit with `--mixing parameters`, in worlds that are enumerated.

    PYTHONPATH=tests python tests/bench/bench_fit_of_parameters.py [--worlds 200] [--policies 3]

The worlds are those of bench_fit_intervals.py, but a mixture is a mean of parameters: logits are
their cubes, so that it is no mixture of logits. KLs come from log ratios, and derivatives from
finite differences of scores, as in a fit on an engine. One thread, no engine.
"""

from __future__ import annotations

import argparse
import os
from collections import defaultdict

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
from scipy.special import log_softmax

from prefmix.bench.report import describe, surroundings
from prefmix.weights.engines.finite_differences import Differences
from prefmix.weights.fit.sequence_level.objective import Floats
from prefmix.weights.fit.token_level.deployed import measure_deployed
from prefmix.weights.fit.token_level.on_policy import Measured, OnPolicyFit
from prefmix.weights.store.text_tables import aligned
from support.fit.coverage import coverage_rows, holds, largest_fall
from support.fit.tree_world import TreeWorld

ROUNDS, ROUND_PROMPTS, RESPONSES, PROMPTS = 6, 32, 16, 64


class MeanOfParameters(TreeWorld):
    """Policies whose logits are the cubes of parameters, and the mean of these as their mixture."""

    def laws(self, weights_M: Floats) -> list[Floats]:
        parameters = (np.cbrt(level[: len(weights_M)]) for level in self.logits)
        return [
            log_softmax(np.tensordot(weights_M, each, axes=1) ** 3, axis=-1) for each in parameters
        ]

    def measured(
        self, weights_K: Floats, prompt_N: np.ndarray, rng: np.random.Generator
    ) -> tuple[Floats, Floats, Floats]:
        """(log p [N], log pi_k [N, K], derivatives [N, K]) of a response to each prompt."""
        near = Differences(weights_K)
        laws = [self.laws(point) for point in (weights_K, *near.points_SK)]
        node, own = np.zeros(len(prompt_N), dtype=int), np.arange(len(prompt_N))
        policy_NK = np.zeros((len(prompt_N), self.num_policies))
        scores_SN = np.zeros((len(laws), len(prompt_N)))
        for depth, level in enumerate(self.logits):
            law = laws[0][depth][prompt_N, node]
            token = (law + rng.gumbel(size=law.shape)).argmax(axis=1)
            policy_NK += level[: self.num_policies, prompt_N, node][:, own, token].T
            for score_N, each in zip(scores_SN, laws, strict=True):
                score_N += each[depth][prompt_N, node, token]
            node = node * self.num_tokens + token
        return scores_SN[0], policy_NK, near.scores(scores_SN[0], scores_SN[1:])


def draw(
    world: MeanOfParameters, weights_K: Floats, rng: np.random.Generator, *, prompts: int
) -> Measured:
    """Responses to prompts that are drawn from the world's."""
    chosen = np.repeat(rng.integers(world.num_prompts, size=prompts), RESPONSES)
    logprob_N, policy_NK, differences_NK = world.measured(weights_K, chosen, rng)
    return Measured(
        prompt_of_N=np.repeat(np.arange(prompts), RESPONSES),
        logprob_N=logprob_N,
        policy_logprobs_NK=policy_NK,
        kl_NK=np.full_like(policy_NK, np.nan),
        entropy_N=np.full_like(logprob_N, np.nan),
        differences_NK=differences_NK,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--worlds", type=int, default=200)
    parser.add_argument("--policies", type=int, default=3)
    args = parser.parse_args()
    print(describe(surroundings()), flush=True)
    hits: dict[tuple[str, str], list[bool]] = defaultdict(list)
    above, before = [], []
    for seed in range(args.worlds):
        rng = np.random.default_rng(seed)
        world = MeanOfParameters(
            args.policies,
            seed=20_000 + seed,
            scale=1.0 + 0.25 * (seed % 5),
            num_prompts=24,
            length=4,
        )
        best_K, least = world.least_largest_kl(starts=1)
        fit = OnPolicyFit(num_policies=args.policies)
        for _ in range(ROUNDS):
            fit.step(draw(world, fit.current_K, rng, prompts=ROUND_PROMPTS))
        above.append(float(world.kl(fit.weights_K).max() - least))
        before.append(float(world.kl(np.full(args.policies, 1 / args.policies)).max() - least))
        other_K = rng.dirichlet(np.full(args.policies, 4.0))
        for place, weights_K in (("best", best_K), ("fitted", fit.weights_K), ("other", other_K)):
            _check(world, place, weights_K, fit, hits, rng)
    rows = coverage_rows(hits)
    print(f"\nK = {args.policies}, {args.worlds} worlds\n")
    print(aligned([["interval", "weights", "coverage", "intervals"], *rows], num_left=2))
    print(
        f"\nLargest true KL above the best possible, nats: uniform weights {np.median(before):.3f},"
        f" fitted {np.median(above):.4f} (medians; 90 % of the fits below "
        f"{np.quantile(above, 0.9):.4f}), {ROUNDS} x {ROUND_PROMPTS} x {RESPONSES} responses"
    )


def _check(
    world: MeanOfParameters,
    place: str,
    weights_K: Floats,
    fit: OnPolicyFit,
    hits: dict[tuple[str, str], list[bool]],
    rng: np.random.Generator,
) -> None:
    """Notes of each interval if it holds the truth."""
    found = measure_deployed(
        draw(world, weights_K, rng, prompts=PROMPTS),
        weights_K,
        names=tuple(map(str, range(len(weights_K)))),
        min_weight=0.0,
        mean_tokens=1.0,
        multiplier_K=fit.multiplier_K,
    )
    kl_K = world.kl(weights_K)

    for interval, kl in zip(found.kl_interval.values(), kl_K, strict=True):
        hits["deployed KL", place].append(holds(interval, kl))
    hits["largest KL", place].append(holds(found.largest_interval, kl_K.max()))
    if found.fall_interval is not None:
        fall = largest_fall(kl_K, world.jacobian(weights_K), weights_K, fit.multiplier_K)
        hits["could fall by", place].append(holds(found.fall_interval, fall))


if __name__ == "__main__":
    main()

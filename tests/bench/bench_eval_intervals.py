"""Coverage of the 95 % intervals of `prefmix eval` and of the gains in `make fit-demo`.

    PYTHONPATH=tests:. python tests/bench/bench_eval_intervals.py [--worlds 200] [--policies 3 5]

A world has a reference, a policy for each objective, and a mixture in two ways: of logits and of
parameters. A reward is normal: a mean by row and objective, a part of the prompt that all rows
share, one of prompt and row, and one of the answer, so that all truths are known. *Equal*: the
mixtures gain equally in all objectives, as at the optimum of the smallest gain, or *unequal*. KLs
are those of the worlds of tests/support/fit/tree_world.py, from log ratios as in an evaluation, at
random weights. Every interval is taken from the evaluation's own tables. Smallest win rates of
unlike worlds are in bench_win_intervals.py. Prints a table, then a JSON line. One thread.
"""

from __future__ import annotations

import argparse
import json
import os
from collections import defaultdict

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
from scipy.stats import norm

from examples.gains import measure_gains
from prefmix.bench.report import describe, surroundings
from prefmix.weights.evaluation.both_ways import pairs
from prefmix.weights.evaluation.evaluation import Evaluation
from prefmix.weights.evaluation.weighting import Weighting
from prefmix.weights.fit.sequence_level.objective import Floats
from prefmix.weights.store.text_tables import aligned
from support.fit.coverage import coverage_rows, holds
from support.fit.tree_world import TreeWorld

PROMPTS, RESPONSES = 64, 8
SHARED, OWN, NOISE = 0.4, 0.2, 0.6
"""Standard deviations of a reward: of the prompt, of prompt and row, of the answer."""
Hits = dict[tuple[str, ...], list[bool]]


def true_means(rng: np.random.Generator, num_objectives: int, spread: float) -> Floats:
    """Mean rewards: the reference, the policies, the mixture of logits, that of parameters."""
    policies = rng.normal(-0.1, 0.15, size=(num_objectives, num_objectives))
    np.fill_diagonal(policies, rng.uniform(0.8, 1.4, num_objectives))
    gains = np.array([[0.4], [0.3]]) + spread * rng.normal(size=(2, num_objectives))
    mixtures = gains * np.diag(policies)
    return np.vstack([np.zeros(num_objectives), policies, mixtures])


def evaluation(
    rng: np.random.Generator, mean_RO: Floats, world: TreeWorld, weights_K: Floats
) -> Evaluation:
    """An evaluation of simulated answers."""
    num_rows, num_objectives = mean_RO.shape
    names = tuple(f"o{index}" for index in range(num_objectives))
    weights = dict(zip(names, weights_K.tolist(), strict=True))
    rows = [Weighting(name=name, weights={name: 1.0}) for name in ("reference", *names)]
    rows += [Weighting(name="mix", weights=weights)]
    rows += [Weighting(name="mix, parameters", weights=weights, mixing="parameters")]
    shared = rng.normal(0, SHARED, size=(1, PROMPTS, 1, num_objectives))
    own = rng.normal(0, OWN, size=(num_rows, PROMPTS, 1, num_objectives))
    noise = rng.normal(0, NOISE, size=(num_rows, PROMPTS, RESPONSES, num_objectives))
    prompt_N = np.repeat(rng.integers(world.num_prompts, size=PROMPTS), RESPONSES)
    drawn = world.sample(weights_K, prompt_N, rng)
    ratio_NK = drawn.logprob_N[:, None] - drawn.policy_logprobs_NK
    kl_RPM = np.zeros((num_rows, PROMPTS, num_objectives))
    kl_RPM[-2] = ratio_NK.reshape(PROMPTS, RESPONSES, -1).mean(axis=1)
    return Evaluation(
        rows=tuple(rows),
        objectives=names,
        members=names,
        rewards_RPJO=mean_RO[:, None, None] + shared + own + noise,
        kl_RPM=kl_RPM,
        tokens_R=np.ones(num_rows),
        reference="reference",
    )


def check(
    found: Evaluation, mean_RO: Floats, kl_K: Floats, place: str, num_objectives: str, hits: Hits
) -> None:
    """Notes of every interval of the mixture of logits if it holds the truth."""

    def note(what: str, interval: tuple[float, float], truth: float) -> None:
        hits[what, place, num_objectives].append(holds(interval, float(truth)))

    mix, other = len(mean_RO) - 2, len(mean_RO) - 1
    wins_RO = norm.cdf((mean_RO - mean_RO[0]) / np.sqrt(2 * (OWN**2 + NOISE**2)))
    gains_RO = mean_RO / np.diag(mean_RO[1:-2])
    row = found._row_dict(mix, found.rows[mix])
    for index in range(len(found.objectives)):
        note("eval: mean reward", row["reward_intervals"][index], mean_RO[mix, index])
        note("eval: win rate", row["win_rate_intervals"][index], wins_RO[mix, index])
        note("eval: KL", row["kl_intervals"][index], kl_K[index])
    note("eval: smallest win rate", row["smallest_win_rate_interval"], wins_RO[mix].min())
    (pair,) = pairs(found)
    for (_, *interval), truth in zip(pair.rewards, mean_RO[mix] - mean_RO[other], strict=True):
        note("eval: difference of rewards", interval, truth)
    note(
        "eval: difference of mean wins", pair.mean_wins[1:], (wins_RO[mix] - wins_RO[other]).mean()
    )
    lead = wins_RO[mix].min() - wins_RO[other].min()
    note("eval: difference of smallest wins", pair.smallest[1:], lead)
    gains = measure_gains(found)
    note("demo: smallest gain", gains.smallest_R[mix][1], gains_RO[mix].min())
    note("demo: mean gain", gains.mean_R[mix][1], gains_RO[mix].mean())
    lead = gains_RO[mix].min() - gains_RO[other].min()
    note("demo: difference of smallest gains", gains.lead(mix, other)[1], lead)
    lead = (gains_RO[mix] - gains_RO[other]).mean()
    note("demo: difference of mean gains", gains.mean_lead(mix, other)[1], lead)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--worlds", type=int, default=200)
    parser.add_argument("--policies", type=int, nargs="+", default=[3, 5])
    args = parser.parse_args()
    print(describe(surroundings()), flush=True)
    hits: Hits = defaultdict(list)
    for num_objectives in args.policies:
        for place, spread in (("equal", 0.0), ("unequal", 0.15)):
            for seed in range(args.worlds):
                rng = np.random.default_rng(seed)
                world = TreeWorld(num_objectives, seed=30_000 + seed, num_prompts=24, length=4)
                weights_K = rng.dirichlet(np.full(num_objectives, 4.0))
                mean_RO = true_means(rng, num_objectives, spread)
                found = evaluation(rng, mean_RO, world, weights_K)
                check(found, mean_RO, world.kl(weights_K), place, str(num_objectives), hits)
    rows = coverage_rows(hits)
    heading = ["interval", "gains", "K", "coverage", "intervals"]
    print(f"\n{args.worlds} worlds, {PROMPTS} prompts, {RESPONSES} answers\n")
    print(aligned([heading, *rows], num_left=2))
    print("\n" + json.dumps({"bench": "eval_intervals", **vars(args), "rows": rows}))


if __name__ == "__main__":
    main()

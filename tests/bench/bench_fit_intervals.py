"""Coverage of every 95 % interval that a fit prints, in worlds whose truths are enumerated.

    PYTHONPATH=tests python tests/bench/bench_fit_intervals.py [--worlds 200] [--policies 3 5]

A world is a set of token-level policies over trees of contexts (tests/support/fit/tree_world.py).
Each gives one sample of prompts with responses, and one interval of each kind, at the weights that
are best and at others; an interval should hold the truth in 93 to 99 % of the worlds. The second
table is the fit itself: how far the largest true KL lies above the best possible one, by the
number of responses. Prints both tables, then a JSON line. One thread, no engine.
"""

from __future__ import annotations

import argparse
import json
import os
from collections import defaultdict

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np

from prefmix.bench.report import describe, surroundings
from prefmix.weights.engines.progress import Progress
from prefmix.weights.fit.score_table import ScoreTable
from prefmix.weights.fit.sequence_level import objective
from prefmix.weights.fit.sequence_level.certificate import leads
from prefmix.weights.fit.sequence_level.mirror_descent import DescentSettings
from prefmix.weights.fit.sequence_level.objective import Floats, Responses
from prefmix.weights.fit.settings import FitSettings
from prefmix.weights.fit.table_fit import fit_table
from prefmix.weights.fit.token_level.deployed import measure_deployed
from prefmix.weights.fit.token_level.on_policy import Measured, OnPolicyFit
from prefmix.weights.store.text_tables import aligned
from support.fit.coverage import coverage_rows, holds, largest_fall, measured_of
from support.fit.toy_worlds import true_optimum
from support.fit.tree_world import TreeWorld

Hits = dict[tuple[str, str], list[bool]]
"""(interval, weights) -> for each interval made, whether it holds the truth."""

DESCENT = DescentSettings(num_steps=200, batch_prompts=128)
"""Whole batches, which need fewer steps."""
BUDGETS = ((6, 32, 2), (6, 32, 4), (6, 64, 4), (6, 64, 16), (12, 64, 16))
"""Rounds, prompts a round and responses a prompt of the fits; the last but one is the default."""


def world_of(num_policies: int, seed: int) -> TreeWorld:
    scale = 1.0 + 0.25 * (seed % 5)
    return TreeWorld(num_policies, seed=10_000 + seed, scale=scale, num_prompts=24, length=4)


def draw(
    world: TreeWorld, weights_M: Floats, rng: np.random.Generator, *, prompts: int, each: int
) -> tuple[Measured, ScoreTable]:
    """Responses to prompts that are drawn from the world's."""
    chosen = np.repeat(rng.integers(world.num_prompts, size=prompts), each)
    found = world.sample(weights_M, chosen, rng)
    prompt_of_N = np.repeat(np.arange(prompts), each)
    measured = measured_of(found, each)
    table = ScoreTable(
        names=tuple(f"p{k}" for k in range(world.num_policies)),
        prompt_ids_N=prompt_of_N,
        num_tokens_N=found.num_tokens_N,
        scores_NK=found.policy_logprobs_NK,
        proposal_N=found.logprob_N,
    )
    return measured, table


def fitted(world: TreeWorld, rng: np.random.Generator, budget: tuple[int, int, int]) -> OnPolicyFit:
    rounds, prompts, each = budget
    fit = OnPolicyFit(num_policies=world.num_policies)
    deck: list[int] = []
    for _ in range(rounds):
        while len(deck) < prompts:
            deck += rng.permutation(world.num_prompts).tolist()
        chosen, deck = np.repeat(deck[:prompts], each), deck[prompts:]
        found = world.sample(fit.current_K, chosen, rng)
        fit.step(measured_of(found, each))
    return fit


def check_deployed(
    world: TreeWorld,
    place: str,
    weights_K: Floats,
    fit: OnPolicyFit,
    hits: Hits,
    rng: np.random.Generator,
) -> None:
    """The intervals of the served mixture."""
    measured, table = draw(world, weights_K, rng, prompts=64, each=16)
    found = measure_deployed(
        measured,
        weights_K,
        names=table.names,
        min_weight=0.0,
        mean_tokens=1.0,
        multiplier_K=fit.multiplier_K,
    )
    kl_K, jacobian_KK = world.kl(weights_K), world.jacobian(weights_K)
    for interval, kl in zip(found.kl_interval.values(), kl_K, strict=True):
        hits["deployed KL", place].append(holds(interval, kl))
    hits["largest KL", place].append(holds(found.largest_interval, kl_K.max()))
    gap = float(kl_K.max() - weights_K @ kl_K)
    hits["deployed gap", place].append(holds(found.gap_interval, gap))
    hits["deployed gap, shifted percentiles", place].append(
        holds(shifted_percentiles(measured.kl_per_prompt(), weights_K), gap)
    )
    if found.fall_interval is not None:
        fall = largest_fall(kl_K, jacobian_KK, weights_K, fit.multiplier_K)
        hits["could fall by", place].append(holds(found.fall_interval, fall))


def check_sequences(
    world: TreeWorld,
    sampler: str,
    full: Responses,
    best_K: Floats,
    hits: Hits,
    rng: np.random.Generator,
) -> None:
    """The intervals of a sequence-level fit, and of given importances."""
    num_policies = world.num_policies
    proposal = np.eye(num_policies + 1)[-1]
    if sampler == "sequence":
        proposal = np.append(np.full(num_policies, 1 / num_policies), 0.0)
    _, table = draw(world, proposal, rng, prompts=128, each=16)
    quiet = Progress(quiet=True)
    result = fit_table(table, FitSettings(num_restarts=2, descent=DESCENT), progress=quiet)
    found = result.certificate
    assert found is not None
    assert found.weight_error is not None

    def gap_at(weights_K: Floats) -> float:
        kl_PK = objective.kl_per_prompt(full, weights_K)
        return float(leads(kl_PK, weights_K).mean(axis=0).max())

    hits[f"{sampler}: held-out gap", "best"].append(
        holds(found.gap_interval, gap_at(result.weights_K))
    )
    for weight, best, error in zip(
        result.weights_K, best_K, found.weight_error.values(), strict=True
    ):
        if error:
            half = 1.96 * error
            hits[f"{sampler}: weight", "best"].append(holds((weight - half, weight + half), best))
    other_K = rng.dirichlet(np.full(num_policies, 4.0))
    given = dict(zip(table.names, other_K.tolist(), strict=True))
    taken = fit_table(table, FitSettings(importances=given), progress=quiet).certificate
    assert taken is not None
    hits[f"{sampler}: gap of given weights", "other"].append(
        holds(taken.gap_interval, gap_at(other_K))
    )


def shifted_percentiles(kl_PK: Floats, weights_K: Floats) -> tuple[float, float]:
    """The interval that was printed before: percentiles of the largest, less their mean excess."""
    num_prompts = len(kl_PK)
    rng = np.random.default_rng(0)
    counts = rng.multinomial(num_prompts, np.full(num_prompts, 1 / num_prompts), 500)
    kl_BK, kl_K = counts @ kl_PK / num_prompts, kl_PK.mean(axis=0)
    gap_B = kl_BK.max(axis=1) - kl_BK @ weights_K
    gap = float(kl_K.max() - weights_K @ kl_K)
    low, high = np.quantile(gap_B, [0.025, 0.975]) - (gap_B.mean() - gap)
    return max(0.0, float(low)), max(0.0, float(high))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--worlds", type=int, default=200)
    parser.add_argument("--fits", type=int, default=40, help="worlds of the second table")
    parser.add_argument("--policies", type=int, nargs="+", default=[3, 5])
    args = parser.parse_args()
    print(describe(surroundings()), flush=True)
    answer = {}
    for num_policies in args.policies:
        hits: Hits = defaultdict(list)
        above: dict[tuple[int, int, int], list[float]] = defaultdict(list)
        for seed in range(args.worlds):
            rng = np.random.default_rng(seed)
            world = world_of(num_policies, seed)
            best_K, least = world.least_largest_kl(starts=1)
            fit = fitted(world, rng, (6, 32, 16))
            check_deployed(world, "best", best_K, fit, hits, rng)
            check_deployed(world, "fitted", fit.weights_K, fit, hits, rng)
            other_K = rng.dirichlet(np.full(num_policies, 4.0))
            check_deployed(world, "other", other_K, fit, hits, rng)
            sequences = world.sequences()
            full = Responses(log_ratios_PJK=sequences, log_mass_PJ=np.zeros(sequences.shape[:2]))
            sequence_K, _ = true_optimum(full)
            for sampler in ("sequence", "reference"):
                check_sequences(world, sampler, full, sequence_K, hits, rng)
            if seed < args.fits:
                for budget in BUDGETS:
                    reached = world.kl(fitted(world, rng, budget).weights_K).max()
                    above[budget].append(float(reached - least))
        rows = coverage_rows(hits)
        heading = ["interval", "weights", "coverage", "intervals"]
        print(f"\nK = {num_policies}, {args.worlds} worlds\n")
        print(aligned([heading, *rows], num_left=2), flush=True)
        fits = [
            [
                f"{budget[0]} x {budget[1]} x {budget[2]}",
                f"{np.prod(budget):,}",
                f"{np.median(values):.4f}",
                f"{np.mean(values):.4f}",
                f"{np.quantile(values, 0.9):.4f}",
            ]
            for budget, values in above.items()
        ]
        heading = ["rounds x prompts x responses", "responses", "median", "mean", "90 %"]
        print(f"\nLargest true KL above the best possible, nats, {args.fits} worlds\n")
        print(aligned([heading, *fits], num_left=1), flush=True)
        answer[num_policies] = {"coverage": rows, "fits": fits}
    print("\n" + json.dumps({"bench": "fit_intervals", **vars(args), **answer, **surroundings()}))


if __name__ == "__main__":
    main()

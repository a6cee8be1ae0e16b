"""Coverage of the 95 % intervals of a fit to rewards, and how near to the best it comes, in worlds
whose gains are enumerated.

    PYTHONPATH=tests python tests/bench/bench_reward_fit.py [--worlds 200] [--policies 3 5]

The worlds are those of bench_fit_intervals.py, with as many rewards as policies: reward k is a
bounded function of how much more policy k likes a response than the policies do on average. Each
world gives one sample of prompts with responses, and one interval of each kind, for the smallest
gain and for the mean, at the weights that are best and at others. Prints tables, then a JSON line.
One thread, no engine.
"""

from __future__ import annotations

import argparse
import json
import os
from collections import defaultdict

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np

from prefmix.bench.report import describe, surroundings
from prefmix.weights.fit.sequence_level.objective import Floats
from prefmix.weights.fit.token_level.minimax_step import minimax_step
from prefmix.weights.fit.token_level.on_policy import PooledSteps
from prefmix.weights.reward_fit.gains import Judged
from prefmix.weights.reward_fit.measured_gains import measure_gains
from prefmix.weights.store.text_tables import aligned
from support.fit.coverage import coverage_rows, holds, largest_fall, measured_of
from support.fit.tree_world import TreeWorld

Hits = dict[tuple[str, str, str], list[bool]]
"""(aim, interval, weights) -> for each interval made, whether it holds the truth."""

BUDGETS = ((6, 32, 2), (6, 32, 4), (6, 64, 4), (6, 64, 16), (12, 64, 16))
"""Rounds, prompts a round and responses a prompt; the last but one is the default."""


def gains_of(policy_logprobs: Floats) -> Floats:
    """Gains of responses from their log-probabilities under the policies, last axis."""
    found: Floats = np.tanh(policy_logprobs - policy_logprobs.mean(axis=-1, keepdims=True))
    return found


class RewardWorld:
    """A tree world, the gains of all its responses, and the true gains of any mixture."""

    def __init__(self, num_policies: int, seed: int) -> None:
        scale = 1.0 + 0.25 * (seed % 5)
        self.tree = TreeWorld(
            num_policies, seed=10_000 + seed, scale=scale, num_prompts=24, length=4
        )
        self.gains_PYO = gains_of(self.tree.sequences())

    def gains(self, weights_K: Floats) -> Floats:
        """True gains of the token-level mixture, [O]."""
        log_PY = np.zeros((self.tree.num_prompts, 1))
        for law_PCV, level in zip(self.tree.laws(weights_K), self.tree.logits, strict=True):
            # Beyond a response's end the mixture keeps what the policies have there.
            longer = log_PY[..., None] + np.where(level[0] < -1e8, -1e9, law_PCV)
            log_PY = longer.reshape(self.tree.num_prompts, -1)
        is_possible_Y = log_PY[0] > -1e8
        found: Floats = np.einsum(
            "py,pyo->o", np.exp(log_PY[:, is_possible_Y]), self.gains_PYO
        ) / len(log_PY)
        return found

    def slope(self, weights_K: Floats, *, step: float = 1e-5) -> Floats:
        """dG_o / dw_j by central differences, [O, K]."""
        columns = [
            (self.gains(weights_K + step * one_K) - self.gains(weights_K - step * one_K))
            / (2 * step)
            for one_K in np.eye(len(weights_K))
        ]
        return np.stack(columns, axis=1)

    def best(self, aims_AO: Floats) -> tuple[Floats, float]:
        """(weights, value) of a largest true aim, from equal weights."""
        num_policies = self.tree.num_policies
        w, radius = np.full(num_policies, 1 / num_policies), 0.3
        aim = float((aims_AO @ self.gains(w)).min())
        while radius > 1e-5:
            new, _ = minimax_step(
                w, -aims_AO @ self.gains(w), -aims_AO @ self.slope(w), radius=radius
            )
            new_aim = float((aims_AO @ self.gains(new)).min())
            if new_aim > aim + 1e-9:
                w, aim, radius = new, new_aim, min(0.3, 1.5 * radius)
            else:
                radius /= 3
        return w, aim

    def judged(
        self, weights_K: Floats, rng: np.random.Generator, *, prompts: int, each: int
    ) -> Judged:
        chosen = np.repeat(rng.integers(self.tree.num_prompts, size=prompts), each)
        found = self.tree.sample(weights_K, chosen, rng)
        gains_NO = gains_of(found.policy_logprobs_NK)
        return Judged(measured=measured_of(found, each), gains_NO=gains_NO)


def fitted(
    world: RewardWorld, aims_AO: Floats, rng: np.random.Generator, budget: tuple[int, int, int]
) -> PooledSteps:
    rounds, prompts, each = budget
    fit = PooledSteps(num_policies=world.tree.num_policies)
    for _ in range(rounds):
        judged = world.judged(fit.current_K, rng, prompts=prompts, each=each)
        slope_PAK = np.einsum("ao,pok->pak", aims_AO, judged.slope_per_prompt())
        fit.move(-judged.gain_per_prompt() @ aims_AO.T, -slope_PAK)
    return fit


def check(
    world: RewardWorld,
    aim: str,
    aims_AO: Floats,
    place: str,
    weights_K: Floats,
    fit: PooledSteps,
    hits: Hits,
    rng: np.random.Generator,
) -> None:
    """The intervals of the served mixture."""
    names = tuple(f"r{o}" for o in range(world.tree.num_policies))
    found = measure_gains(
        world.judged(weights_K, rng, prompts=64, each=16),
        weights_K,
        fit.multiplier_A,
        aims_AO=aims_AO,
        objectives=names,
        policies=names,
        min_weight=0.0,
        mean_tokens=1.0,
    )
    gain_O, slope_OK = world.gains(weights_K), world.slope(weights_K)
    aim_A = aims_AO @ gain_O
    for interval, gain in zip(found.gain_interval.values(), gain_O, strict=True):
        hits[aim, "gain", place].append(holds(interval, gain))
    hits[aim, "aim", place].append(holds(found.aim_interval, float(aim_A.min())))
    rise = largest_fall(-aim_A, -aims_AO @ slope_OK, weights_K, fit.multiplier_A)
    hits[aim, "could rise by", place].append(holds(found.rise_interval, rise))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--worlds", type=int, default=200)
    parser.add_argument("--fits", type=int, default=24, help="worlds of the second table")
    parser.add_argument("--policies", type=int, nargs="+", default=[3, 5])
    args = parser.parse_args()
    print(describe(surroundings()), flush=True)
    answer = {}
    for num_policies in args.policies:
        hits: Hits = defaultdict(list)
        below: dict[tuple[str, tuple[int, int, int]], list[float]] = defaultdict(list)
        mean_1O = np.full((1, num_policies), 1 / num_policies)
        for seed in range(args.worlds):
            rng = np.random.default_rng(seed)
            world = RewardWorld(num_policies, seed)
            for aim, aims_AO in (("smallest gain", np.eye(num_policies)), ("mean", mean_1O)):
                best_K, value = world.best(aims_AO)
                fit = fitted(world, aims_AO, rng, (6, 32, 16))
                other_K = rng.dirichlet(np.full(num_policies, 4.0))
                places = {"best": best_K, "fitted": fit.weights_K, "other": other_K}
                for place, weights_K in places.items():
                    check(world, aim, aims_AO, place, weights_K, fit, hits, rng)
                if seed < args.fits:
                    for budget in BUDGETS:
                        w = fitted(world, aims_AO, rng, budget).weights_K
                        reached = float((aims_AO @ world.gains(w)).min())
                        below[aim, budget].append(value - reached)
                    uniform = world.gains(np.full(num_policies, 1 / num_policies))
                    below[aim, (0, 0, 0)].append(value - float((aims_AO @ uniform).min()))
        rows = coverage_rows(hits)
        heading = ["objective", "interval", "weights", "coverage", "intervals"]
        print(f"\nK = {num_policies}, {args.worlds} worlds\n")
        print(aligned([heading, *rows], num_left=3), flush=True)
        fits = [
            [
                aim,
                "equal weights" if not any(budget) else " x ".join(map(str, budget)),
                f"{np.prod(budget):,}",
                f"{np.median(values):.4f}",
                f"{np.mean(values):.4f}",
                f"{np.quantile(values, 0.9):.4f}",
            ]
            for (aim, budget), values in sorted(below.items())
        ]
        heading = ["objective", "rounds x prompts x responses", "responses"]
        print(f"\nTrue aim below the best, in gains, {args.fits} worlds\n")
        print(aligned([[*heading, "median", "mean", "90 %"], *fits], num_left=2), flush=True)
        answer[num_policies] = {"coverage": rows, "fits": fits}
    print("\n" + json.dumps({"bench": "reward_fit", **vars(args), **answer, **surroundings()}))


if __name__ == "__main__":
    main()

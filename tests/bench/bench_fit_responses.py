"""Responses that an on-policy fit needs: damped Newton steps (before) and minimax steps (today).

    PYTHONPATH=tests python tests/bench/bench_fit_responses.py [--worlds 10] [--policies 3 5]
    PYTHONPATH=tests python tests/bench/bench_fit_responses.py --demo

A fit needs a budget if its largest true KL lies less than .05 nats above the least possible, in the
mean of several fits, with that budget and with all larger ones. The worlds are those of
tests/support/fit/tree_world.py with seeds of their own, which nothing was developed on, and truths
that are enumerated. With --demo it is the demo policies, drawn in transformers at 64 tokens; all
KLs are then measured on one sample of 1,536 responses, and the least is that of a grid in steps of
.01 about the answer from 6,144 responses. Prints a table, then a JSON line. One thread, no engine.
"""

from __future__ import annotations

import argparse
import json
import os

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np

from prefmix.bench.report import describe, surroundings
from prefmix.weights.fit.sequence_level.objective import Floats
from prefmix.weights.fit.token_level.on_policy import OnPolicyFit
from prefmix.weights.store.text_tables import aligned
from support.fit.coverage import measured_of
from support.fit.damped_newton import DampedNewton
from support.fit.demo_world import DemoWorld
from support.fit.tree_world import TreeWorld

WITHIN = 0.05
FIRST_WORLD = 70_000
"""Seed of the first world; others stand in the benches that the fit was developed on."""
Budget = tuple[int, int, int]
"""Rounds, prompts a round, responses a prompt."""
ROUNDS = {"before": 12, "today": 6}
"""The default number of rounds of either."""
ROUND_SIZES = ((8, 2), (16, 2), (32, 2), (32, 4), (64, 4), (64, 8), (64, 16), (64, 32), (64, 64))
FITS = {"before": DampedNewton, "today": OnPolicyFit}


def budgets(way: str) -> list[Budget]:
    return [(ROUNDS[way], *size) for size in ROUND_SIZES]


def fitted(world: TreeWorld | DemoWorld, way: str, budget: Budget, seed: int) -> Floats:
    """The answer of one fit."""
    rounds, prompts, each = budget
    rng = np.random.default_rng(seed)
    fit = FITS[way](num_policies=world.num_policies)
    deck: list[int] = []
    for _ in range(rounds):
        while len(deck) < prompts:
            deck += rng.permutation(world.num_prompts).tolist()
        chosen, deck = np.repeat(deck[:prompts], each), deck[prompts:]
        fit.step(measured_of(world.sample(fit.current_K, chosen, rng), each))
    return fit.weights_K


def needed(excess: dict[Budget, float]) -> int | None:
    """The fewest responses from which on the fits are good enough; None if none are."""
    sizes = sorted((int(np.prod(budget)), value) for budget, value in excess.items())
    enough = None
    for size, value in reversed(sizes):
        if value >= WITHIN:
            break
        enough = size
    return enough


def of_worlds(num_policies: int, num_worlds: int, num_fits: int) -> list[list[str]]:
    """One row a world: responses needed before, today, and their ratio."""
    rows, ratios = [], []
    for seed in range(FIRST_WORLD, FIRST_WORLD + num_worlds):
        scale = 1.0 + 0.25 * (seed % 5)
        world = TreeWorld(num_policies, seed=seed, scale=scale, num_prompts=24, length=4)
        _, least = world.least_largest_kl(starts=3)
        counts = {}
        for way in FITS:
            excess = {
                budget: float(
                    np.mean(
                        [
                            world.kl(fitted(world, way, budget, seed + 1000 * fit)).max() - least
                            for fit in range(num_fits)
                        ]
                    )
                )
                for budget in budgets(way)
            }
            counts[way] = needed(excess)
        most = int(np.prod(budgets("before")[-1]))
        ratio = (counts["before"] or 2 * most) / (counts["today"] or most)
        ratios.append(ratio)
        before = f"{counts['before']:,}" if counts["before"] else f"more than {most:,}"
        today = f"{counts['today']:,}" if counts["today"] else "none"
        is_least = "" if counts["before"] else "at least "
        rows.append([str(seed), f"{scale:.2f}", before, today, f"{is_least}{ratio:.0f}"])
    return [*rows, ["median", "", "", "", f"{np.median(ratios):.0f}"]]


def of_demo(num_fits: int) -> list[list[str]]:
    """One row a budget: how far the largest KL lies above the least, mean and largest of fits."""
    world = DemoWorld(max_tokens=64)
    start_K = fitted(world, "today", (6, 64, 16), 7_001)
    print(f"start {start_K.round(3)}", flush=True)
    found: dict[tuple[str, Budget], list[Floats]] = {}
    for way, sizes in (("today", ROUND_SIZES[:5]), ("before", ROUND_SIZES[2:6])):
        for size in sizes:
            budget = (ROUNDS[way], *size)
            fits = [fitted(world, way, budget, 7_100 + fit) for fit in range(num_fits)]
            found[way, budget] = fits
            print(way, budget, np.round(fits, 3).tolist(), flush=True)
    # The truths, and the least: a grid about the start, in the plane of the weights.
    answers = [weights_K for fits in found.values() for weights_K in fits]
    near = [
        start_K + np.array([one, other, -one - other])
        for one in np.arange(-0.02, 0.021, 0.01)
        for other in np.arange(-0.02, 0.021, 0.01)
    ]
    kl_WK = world.kls_near(np.stack([*answers, *near]), start_K, each=12, seed=7_002)
    least = kl_WK.max(axis=1).min()
    print(f"least {least:.3f} at {[*answers, *near][kl_WK.max(axis=1).argmin()].round(3)}")
    above = iter((kl_WK.max(axis=1) - least).tolist())
    rows = []
    for (way, budget), fits in found.items():
        own = [next(above) for _ in fits]
        shown = " x ".join(map(str, budget))
        told = [f"{np.mean(own):.3f}", f"{max(own):.3f}"]
        rows.append([way, shown, f"{np.prod(budget):,}", *told])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--worlds", type=int, default=10)
    parser.add_argument("--fits", type=int, default=6, help="fits a budget")
    parser.add_argument("--policies", type=int, nargs="+", default=[3, 5])
    parser.add_argument("--demo", action="store_true", help="the demo policies in place of worlds")
    args = parser.parse_args()
    print(describe(surroundings()), flush=True)
    answer = {}
    if args.demo:
        heading = ["fit", "rounds x prompts x responses", "responses", "mean", "largest"]
        answer["demo"] = of_demo(args.fits)
        print(f"\nLargest KL above the least, nats, {args.fits} fits\n")
        print(aligned([heading, *answer["demo"]], num_left=2))
    for num_policies in () if args.demo else args.policies:
        heading = ["world", "scale", "before", "today", "ratio"]
        rows = of_worlds(num_policies, args.worlds, args.fits)
        print(f"\nResponses needed for {WITHIN} nats, K = {num_policies}\n")
        print(aligned([heading, *rows], num_left=1), flush=True)
        answer[str(num_policies)] = rows
    print("\n" + json.dumps({"bench": "fit_responses", **vars(args), **answer, **surroundings()}))


if __name__ == "__main__":
    main()

"""Coverage of the 95 % intervals of `prefmix eval` around smallest win rates and their leads.

    PYTHONPATH=tests python tests/bench/bench_win_intervals.py [--worlds 200]

A world has win rates of two rows in three objectives, a mean and a spread over prompts each, with
answers to a prompt that depend on each other. In *balanced* worlds a row wins equally often in all
objectives, in *tilted* ones it does not; *partial*: a tenth of each objective is missing. Next
to the intervals of today stand percentiles of the bootstrap, which were printed before, and the
basic bootstrap. Prints a table, then a JSON line. One thread, no engine.
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
from prefmix.weights.intervals.smallest_means import lead, smallest_mean
from prefmix.weights.store.text_tables import aligned

OBJECTIVES, RESPONSES = 3, 8


def wins(rng: np.random.Generator, rate_O: Floats, prompts: int) -> Floats:
    """Win rates at each prompt, of answers that prompts make easier or harder in each objective."""
    concentration = 6.0
    chance_PO = rng.beta(
        concentration * rate_O, concentration * (1 - rate_O), size=(prompts, len(rate_O))
    )
    return rng.binomial(RESPONSES, chance_PO) / RESPONSES


def resampled(values_PO: Floats, rng: np.random.Generator) -> Floats:
    """Means of bootstrap copies, [B, O]."""
    picks = rng.integers(len(values_PO), size=(500, len(values_PO)))
    return np.stack([np.nanmean(values_PO[each], axis=0) for each in picks])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--worlds", type=int, default=200)
    parser.add_argument("--prompts", type=int, default=64)
    args = parser.parse_args()
    print(describe(surroundings()), flush=True)
    hits: dict[tuple[str, str, str], list[bool]] = defaultdict(list)
    widths: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for kind in ("balanced", "nearly balanced", "tilted", "partial"):
        for seed in range(args.worlds):
            rng = np.random.default_rng(seed)
            spread = {"tilted": 0.12, "nearly balanced": 0.04}.get(kind, 0.0)
            rates = [
                np.clip(center + spread * rng.normal(size=OBJECTIVES), 0.1, 0.9)
                for center in (0.6, 0.55)
            ]
            first, second = (wins(rng, rate_O, args.prompts) for rate_O in rates)
            if kind == "partial":
                first[rng.random(first.shape) < 0.1] = np.nan
                second[rng.random(second.shape) < 0.1] = np.nan
            smallest_B = resampled(first, rng).min(axis=1)
            lead_B = smallest_B - resampled(second, rng).min(axis=1)
            value = np.nanmean(first, axis=0).min()
            ahead = value - np.nanmean(second, axis=0).min()
            truth, true_lead = rates[0].min(), rates[0].min() - rates[1].min()
            for what, centre, copies_B, held, today in (
                ("smallest", value, smallest_B, truth, smallest_mean(first, seed=seed)[1]),
                ("lead", ahead, lead_B, true_lead, lead(first, second, seed=seed)[1]),
            ):
                low, high = np.quantile(copies_B, [0.025, 0.975])
                for method, (a, b) in (
                    ("today", today),
                    ("percentiles (before)", (low, high)),
                    ("basic bootstrap", (2 * centre - high, 2 * centre - low)),
                ):
                    hits[what, kind, method].append(bool(a - 1e-9 <= held <= b + 1e-9))
                    widths[what, kind, method].append(float(b - a))
    rows = [
        [*name, f"{np.mean(held):.3f}", f"{np.mean(widths[name]):.3f}"]
        for name, held in sorted(hits.items())
    ]
    heading = ["interval of", "worlds", "method", "coverage", "mean width"]
    print(f"\n{args.worlds} worlds, {args.prompts} prompts, {RESPONSES} answers\n")
    print(aligned([heading, *rows], num_left=3))
    print("\n" + json.dumps({"bench": "win_intervals", **vars(args), "rows": rows}))


if __name__ == "__main__":
    main()

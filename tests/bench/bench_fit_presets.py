"""The founding paper's algorithm beside the newer ways to fit, in worlds with known truths.

    PYTHONPATH=tests python tests/bench/bench_fit_presets.py [--worlds 40]

`bsmd` and `reference` fit the same draws of the reference, `sequence` as many of the mixture at
equal weights, `mixture` as many, round by round. Columns: the largest error of a weight against the
optimum of whole sequences, the true gap of whole sequences, and how far the largest true KL of the
served mixture lies above the least possible. Prints a table, then a JSON line. One thread, no
engine.
"""

from __future__ import annotations

import argparse
import json
import os
from collections import defaultdict

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
from bench_fit_intervals import draw, fitted, world_of

from prefmix.bench.report import describe, surroundings
from prefmix.weights.fit.score_table import ScoreTable
from prefmix.weights.fit.sequence_level import objective
from prefmix.weights.fit.sequence_level.certificate import corrected, leads
from prefmix.weights.fit.sequence_level.mirror_descent import DescentSettings, restarts
from prefmix.weights.fit.sequence_level.objective import Floats, Responses
from prefmix.weights.fit.settings import bsmd
from prefmix.weights.store.text_tables import aligned
from support.fit.toy_worlds import true_optimum

PROMPTS = 128


def descended(table: ScoreTable, settings: DescentSettings, num_restarts: int) -> Floats:
    responses = table.responses(beta=None)
    runs = restarts(responses, settings, num_restarts=num_restarts)
    plain_K: Floats = np.mean([run.weights_K for run in runs], axis=0)
    return corrected(responses, plain_K, settings) if settings.is_corrected else plain_K


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--worlds", type=int, default=40)
    parser.add_argument("--policies", type=int, default=3)
    args = parser.parse_args()
    print(describe(surroundings()), flush=True)
    found: dict[tuple[int, str], list[tuple[float, float, float]]] = defaultdict(list)
    paper, today = bsmd(num_responses=4, max_tokens=4).descent, DescentSettings()
    for seed in range(args.worlds):
        rng = np.random.default_rng(seed)
        world = world_of(args.policies, seed)
        _, least = world.least_largest_kl(starts=1)
        sequences = world.sequences()
        full = Responses(log_ratios_PJK=sequences, log_mass_PJ=np.zeros(sequences.shape[:2]))
        best_K, _ = true_optimum(full)
        reference = np.eye(args.policies + 1)[-1]
        equal = np.append(np.full(args.policies, 1 / args.policies), 0.0)
        for each in (2, 4, 16, 64):
            _, table = draw(world, reference, rng, prompts=PROMPTS, each=each)
            _, own = draw(world, equal, rng, prompts=PROMPTS, each=each)
            # Six rounds of as many responses in all.
            round_prompts = max(2, PROMPTS // 6)
            ways = {
                "1 bsmd": descended(table, paper, 1),
                "2 reference": descended(table, today, 8),
                "3 sequence": descended(own, today, 8),
                "4 mixture": fitted(world, rng, (6, round_prompts, each)).weights_K,
            }
            for name, weights_K in ways.items():
                gap = leads(objective.kl_per_prompt(full, weights_K), weights_K).mean(axis=0).max()
                found[each, name].append(
                    (
                        float(np.abs(weights_K - best_K).max()),
                        float(gap),
                        float(world.kl(weights_K).max() - least),
                    )
                )
    rows = [
        [str(each), name[2:], *(f"{np.median(column):.3f}" for column in zip(*values, strict=True))]
        for (each, name), values in sorted(found.items())
    ]
    heading = ["responses", "fit", "weight error", "sequence gap", "largest deployed KL above best"]
    print(f"\n{args.worlds} worlds, K = {args.policies}, {PROMPTS} prompts; medians, KLs in nats\n")
    print(aligned([heading, *rows], num_left=2))
    print("\n" + json.dumps({"bench": "fit_presets", **vars(args), "rows": rows}))


if __name__ == "__main__":
    main()

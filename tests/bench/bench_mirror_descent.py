"""The descend stage: closed-form gradients against autograd, on one core, in one run.

    python tests/bench/bench_mirror_descent.py [--prompts 10000] [--responses 16] [--policies 3]

The first row is what `prefmix fit` does unless told otherwise. Both loops take the same steps on
the same batches from the same starts; the autograd loop is the straightforward one, torch float64
with `backward` per step, run after run. Prints a table, then one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import time
from dataclasses import replace
from importlib.metadata import version
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch

from prefmix.weights.fit.sequence_level.mirror_descent import (
    DescentSettings,
    curvature,
    restarts,
    run_stride,
)
from prefmix.weights.fit.sequence_level.objective import Responses
from prefmix.weights.fit.settings import FitSettings


def make_responses(*, prompts: int, responses: int, policies: int) -> Responses:
    """Log ratios with the spread of policies a few nats from their reference."""
    rng = np.random.default_rng(0)
    scale = rng.uniform(1, 4, size=policies)
    log_ratios = rng.normal(size=(prompts, responses, policies)) * scale - scale
    log_mass = np.full((prompts, responses), -np.log(responses))
    return Responses(log_ratios_PJK=log_ratios, log_mass_PJ=log_mass)


def restarts_with_autograd(
    data: Responses, settings: DescentSettings, *, num_restarts: int
) -> list[np.ndarray]:
    """The same runs one after another, gradients by torch autograd."""
    starts = [
        run.path_TK[0]
        for run in restarts(data, replace(settings, num_steps=1), num_restarts=num_restarts)
    ]
    return [
        _one_with_autograd(data, settings, start, index, num_restarts)
        for index, start in enumerate(starts)
    ]


def _one_with_autograd(
    data: Responses, settings: DescentSettings, start: np.ndarray, index: int, num_restarts: int
) -> np.ndarray:
    log_ratios, log_mass = torch.from_numpy(data.log_ratios_PJK), torch.from_numpy(data.log_mass_PJ)
    unit = curvature(data, np.full(data.num_policies, 1 / data.num_policies))
    log_weights = torch.from_numpy(np.log(start))
    rng = np.random.default_rng(settings.seed)
    size = settings.batch_prompts
    num_batches = data.num_prompts // size
    stride = run_stride(data, settings, num_restarts)
    window = stride * num_restarts
    order, batches = torch.empty(0, dtype=torch.int64), []
    path = []
    for step in range(settings.num_steps):
        if step % window == 0:
            batches = []
            for _ in range(window):
                if not len(order):
                    order = torch.from_numpy(rng.permutation(data.num_prompts))
                    order = order[: num_batches * size]
                batches.append(order[:size])
                order = order[size:]
        chosen = batches[(step + index * stride) % window]
        weights = torch.softmax(log_weights, 0).requires_grad_()
        scores = log_ratios[chosen] @ weights + log_mass[chosen]
        torch.logsumexp(scores, dim=1).mean().backward()
        assert weights.grad is not None
        log_weights = log_weights - settings.step_size / (unit * (step + 1) ** 0.5) * weights.grad
        path.append(torch.softmax(log_weights, 0).numpy())
    return np.mean(path[settings.num_steps // 2 :], axis=0)


def timed(function: Any, *args: Any, **options: Any) -> tuple[float, Any]:
    begin = time.process_time()
    answer = function(*args, **options)
    return time.process_time() - begin, answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=10_000)
    parser.add_argument("--responses", type=int, default=16)
    parser.add_argument("--policies", type=int, default=3)
    parser.add_argument("--steps", type=int, default=DescentSettings().num_steps)
    parser.add_argument("--restarts", type=int, default=FitSettings().num_restarts)
    default_batch = DescentSettings().batch_prompts
    parser.add_argument("--batch", type=int, nargs="+", default=[default_batch, 1, 16, 1024])
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    data = make_responses(prompts=args.prompts, responses=args.responses, policies=args.policies)
    rows = []
    for batch in args.batch:
        settings = DescentSettings(num_steps=args.steps, batch_prompts=batch)
        ours, theirs = [], []
        for _ in range(args.rounds):
            seconds, runs = timed(restarts, data, settings, num_restarts=args.restarts)
            ours.append(seconds)
            seconds, answers = timed(
                restarts_with_autograd, data, settings, num_restarts=args.restarts
            )
            theirs.append(seconds)
        for run, answer in zip(runs, answers, strict=True):
            assert np.abs(run.weights_K - answer).max() < 1e-9, "the two loops disagree"
        ratio = statistics.median(b / a for a, b in zip(ours, theirs, strict=True))
        rows.append(
            {
                "batch": batch,
                "closed_form_s": statistics.median(ours),
                "autograd_s": statistics.median(theirs),
                "autograd_over_closed_form": ratio,
            }
        )
    table_mib = data.log_ratios_PJK.nbytes / 2**20
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{args.prompts} prompts x {args.responses} responses x {args.policies} policies, ", end=""
    )
    print(f"{args.restarts} runs of {args.steps} steps, CPU seconds of one core\n")
    print(f"{'batch':>6}  {'closed form':>12}  {'autograd':>10}  {'ratio':>6}")
    for row in rows:
        print(
            f"{row['batch']:>6}  {row['closed_form_s']:>12.3f}  {row['autograd_s']:>10.3f}"
            f"  {row['autograd_over_closed_form']:>6.1f}"
        )
    print(f"\nlog ratios {table_mib:.1f} MiB, process peak {peak_mib:.0f} MiB (torch included)")
    print(
        "\n"
        + json.dumps(
            {
                "bench": "mirror_descent",
                **vars(args),
                "rows": rows,
                "load_average_1min": round(os.getloadavg()[0], 2),
                "machine": f"{platform.machine()}, {os.cpu_count()} cores",
                "versions": {name: version(name) for name in ("numpy", "torch")},
            }
        )
    )


if __name__ == "__main__":
    main()

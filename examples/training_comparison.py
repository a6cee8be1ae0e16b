"""Both tables of docs/training.md, and peak memory, on the demo's reference policy.

make eval-training        (or: python -m examples.training_comparison --seeds 3)
"""

from __future__ import annotations

import argparse
import os
import subprocess
import tempfile
from pathlib import Path

import torch

from examples import maximum_comparison, mixed_comparison, training_memory
from examples.training_runs import Base, table
from prefmix.policies.train.progress import quiet_libraries

PARTS = ("memory", "mixed", "maximum")


def main() -> None:
    """Runs the command line of this module."""
    parser = argparse.ArgumentParser(description="Compare ways to train on the demo's data.")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=150, help="of table (a)")
    parser.add_argument("--mixed-steps", type=int, default=60, help="of table (b)")
    parser.add_argument("--only", choices=PARTS, action="append", help="one part; repeatable")
    args = parser.parse_args()
    parts = args.only or PARTS
    torch.set_num_threads(1)
    quiet_libraries()
    told = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if "memory" in parts:
            told.append(f"Peak memory\n\n{training_memory.table()}")
        if "mixed" in parts:
            steps = args.mixed_steps
            mixed = mixed_comparison.compare(Base(), folder, num_seeds=args.seeds, steps=steps)
            told.append(f"(b) Mixed Preference Optimization, {steps} steps\n\n{table(mixed)}")
        if "maximum" in parts:
            steps = args.steps
            maximum = maximum_comparison.compare(Base(), folder, num_seeds=args.seeds, steps=steps)
            told.append(f"(a) Maximum Preference Optimization, {steps} steps\n\n{table(maximum)}")
    print("", *reversed(told), sep="\n\n")
    print(f"\n{args.seeds} seeds, commit {_commit()}, {sum(os.times()[:4]):.0f} CPU-s")


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


if __name__ == "__main__":
    main()

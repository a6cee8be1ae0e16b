"""Peak memory of training with and without a reference model, each in a process of its own.

    python -m examples.training_memory            all, as a table
    python -m examples.training_memory METHOD     one, in this process; prints MiB

The model is random, with 77 M parameters, so that parameters, gradients and optimiser dominate. The
peak is the high-water mark of the process's resident set, libraries included.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from examples.training_runs import REFERENCE, markdown, shared_settings
from prefmix.policies.demo.training.preference import write_rows
from prefmix.policies.demo.training.tokenizer import chat_text
from prefmix.policies.train.progress import quiet_libraries
from prefmix.policies.train.settings import METHODS, DirectSettings, build

STEPS = 3
NUM_PAIRS = 64
WORDS = 24


def main() -> None:
    """Runs the command line of this module."""
    parser = argparse.ArgumentParser(description="Peak memory of training, by method.")
    parser.add_argument("method", nargs="?", choices=list(RUNS))
    method = parser.parse_args().method
    if method is None:
        print(table())
    else:
        quiet_libraries()
        print(f"peak {_peak_mib(RUNS[method])}")


def table() -> str:
    """Peaks of all runs in fresh processes, and the size of one copy of the parameters."""
    lines = [["", "peak, MiB"]]
    for name in RUNS:
        command = [sys.executable, "-m", "examples.training_memory", name]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        lines.append([name, done.stdout.split()[-1]])
        print(f"peak memory, {name}: {lines[-1][1]} MiB", flush=True)
    return f"{markdown(lines)}\n\nOne copy of the parameters in float32: {_copy_mib()} MiB."


_SHAPE = {"hidden_size": 768, "intermediate_size": 2304, "num_hidden_layers": 10}


def _copy_mib() -> int:
    """Size of one copy of the parameters in float32, without norms; embeddings are tied."""
    vocab_size: int = json.loads((REFERENCE / "config.json").read_text())["vocab_size"]
    width, inner = _SHAPE["hidden_size"], _SHAPE["intermediate_size"]
    layers = _SHAPE["num_hidden_layers"] * (4 * width**2 + 3 * width * inner)
    return round((layers + vocab_size * width) * 4 / 2**20)


def _peak_mib(train: Callable[[dict[str, Any], Path], None]) -> int:
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = _random_base(folder / "base")
        rng = random.Random(0)

        def answer() -> str:
            return " ".join(
                rng.choice(["good", "bad", "clean", "dull", "fresh", "warm"]) for _ in range(WORDS)
            )

        rows = [
            {"prompt": chat_text("Review."), "chosen": answer(), "rejected": answer()}
            for _ in range(NUM_PAIRS)
        ]
        write_rows(folder / "pairs.jsonl", rows)
        sft = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in rows]
        write_rows(folder / "sft.jsonl", sft)
        values = shared_settings(folder, folder / "policy", steps=STEPS, seed=0)
        train(values | {"base": str(base), "batch_pairs": 4, "save_steps": 1000}, folder)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def _random_base(folder: Path) -> Path:
    """Makes the model in a child process, whose memory does not count here."""
    script = (
        "import sys; from transformers import LlamaConfig, LlamaForCausalLM, AutoTokenizer;"
        "from transformers.utils import logging;"
        "logging.disable_progress_bar();"
        "source, target = sys.argv[1:];"
        "config = LlamaConfig.from_pretrained(source);"
        f"config.update({{**{_SHAPE!r}, 'num_attention_heads': 12, 'num_key_value_heads': 12,"
        " 'head_dim': 64});"
        "LlamaForCausalLM(config).save_pretrained(target);"
        "AutoTokenizer.from_pretrained(source).save_pretrained(target)"
    )
    subprocess.run([sys.executable, "-c", script, str(REFERENCE), str(folder)], check=True)
    return folder


def _direct(values: dict[str, Any], folder: Path) -> None:
    from prefmix.policies.train.jobs import run

    run(build(METHODS["dpo"], values))


def _maximum(values: dict[str, Any], folder: Path) -> None:
    from prefmix.policies.train.jobs import run

    run(build(METHODS["maximum-preference"], values | {"sft_data": folder / "sft.jsonl"}))


def _with_reference(values: dict[str, Any], folder: Path) -> None:
    """DPO by TRL's defaults: the reference model stays in memory."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    from prefmix.policies.data.pairs import PAIR_FIELDS, read_rows
    from prefmix.policies.train.checkpoints import load_policy, load_tokenizer, save_policy, train
    from prefmix.policies.train.trainers import trainer_arguments

    settings = build(DirectSettings, values)
    pairs = read_rows(settings.data, PAIR_FIELDS)
    trainer = DPOTrainer(
        model=load_policy(settings.base),
        args=DPOConfig(
            **trainer_arguments(settings, folder / "checkpoints", STEPS),
            precompute_ref_log_probs=False,
        ),
        train_dataset=Dataset.from_list(list(pairs.rows)),
        processing_class=load_tokenizer(settings.base),
    )
    train(trainer, folder / "checkpoints")
    save_policy(trainer.model, settings, settings.output, final=True)


RUNS: dict[str, Callable[[dict[str, Any], Path], None]] = {
    "maximum-preference": _maximum,
    "dpo": _direct,
    "dpo, reference kept": _with_reference,
}

if __name__ == "__main__":
    main()

"""Scoring responses: the fit's one-hot passes against plain vLLM's own prompt logprobs.

    python tests/bench/bench_scoring.py [--policies 3] [--responses 128] [--rounds 5]

The same responses are scored under one policy by plain vLLM serving that policy, and by the fit's
engine, which holds K policies and asks for one of them. Both take turns, each in its own process.
Prints a table, then one JSON line.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from prefmix.bench.contestants.models import add_model_flags, prepare_models  # noqa: E402
from prefmix.bench.contestants.worker import Worker  # noqa: E402
from prefmix.bench.report import Report, Spread  # noqa: E402

PROMPT_TOKENS, RESPONSE_TOKENS = 32, 96
PLAIN, FIT = "plain vLLM, one policy", "the fit's engine, one of K policies"


class Scorer:
    """The engine's side: answers the seconds that scoring all responses takes."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        import torch

        torch.manual_seed(0)
        shape = (settings["responses"], PROMPT_TOKENS + RESPONSE_TOKENS)
        rows = [tuple(row) for row in torch.randint(2, 300, shape).tolist()]
        start = _fit if settings["is_fit"] else _plain
        self._score = start(settings["models"], settings["options"], rows)
        self._score()

    def answer(self, request: Mapping[str, Any]) -> dict[str, float]:
        """Runs one round. Args: request: ignored, as every round is the same."""
        begin = time.perf_counter()
        self._score()
        return {"seconds": time.perf_counter() - begin}


def _plain(models: list[str], options: Any, rows: list[tuple[int, ...]]) -> Callable[[], object]:
    from vllm import LLM, SamplingParams

    llm = LLM(model=models[0], **options)
    params = SamplingParams(max_tokens=1, prompt_logprobs=0, detokenize=False)
    prompts = [{"prompt_token_ids": list(row)} for row in rows]
    return lambda: llm.generate(prompts, params, use_tqdm=False)


def _fit(models: list[str], options: Any, rows: list[tuple[int, ...]]) -> Callable[[], object]:
    from prefmix.mixing.spec import MixtureSpec, Policy
    from prefmix.weights.engines.local import LocalEngine

    members = tuple(Policy(name=f"p{index}", model=model) for index, model in enumerate(models))
    engine = LocalEngine.start(MixtureSpec(policies=members), **options)
    pairs = [(row[:PROMPT_TOKENS], row[PROMPT_TOKENS:]) for row in rows]
    one_hot = [1.0] + [0.0] * (len(models) - 1)
    return lambda: engine.score(pairs, one_hot)


def measure(args: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of each engine's rounds, in turn."""
    options = {"dtype": args.dtype, "max_model_len": 256, "kv_cache_memory_bytes": 2**30}
    with tempfile.TemporaryDirectory() as folder:
        models = prepare_models(args, Path(folder), num_policies=args.policies)
        settings = {
            # Under this name the child finds the class: its folder is on the path.
            "kind": "tests.bench.bench_scoring:Scorer",
            "models": models.policies,
            "options": options,
            "responses": args.responses,
        }
        engines = {
            name: Worker({**settings, "is_fit": is_fit}) for name, is_fit in ((PLAIN, 0), (FIT, 1))
        }
        seconds: dict[str, list[float]] = {name: [] for name in engines}
        for engine in engines.values():
            engine.wait_started()
        for _ in range(args.rounds):
            for name, engine in engines.items():
                seconds[name].append(engine.ask({})["seconds"])
        for engine in engines.values():
            engine.close()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--policies", type=int, default=3)
    parser.add_argument("--responses", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", default="bfloat16")
    add_model_flags(parser, size="134m", needs_files=True)
    parser.set_defaults(layers=6, hidden=512)
    args = parser.parse_args()
    seconds = measure(args)
    num_tokens = args.responses * (PROMPT_TOKENS + RESPONSE_TOKENS)
    speeds = {name: Spread.of(num_tokens / each for each in took) for name, took in seconds.items()}
    ratio = Spread.of_ratios(seconds[PLAIN], seconds[FIT])
    rows = [["engine", "tokens/s"], *([name, f"{speed:.0f}"] for name, speed in speeds.items())]
    line = {
        "bench": "scoring",
        "policies": args.policies,
        "responses": args.responses,
        "dtype": args.dtype,
        "plain_tokens_s": speeds[PLAIN].to_dict(),
        "fit_tokens_s": speeds[FIT].to_dict(),
        "fit_over_plain": ratio.to_dict(),
    }
    heading = f"{args.responses} responses, {PROMPT_TOKENS} + {RESPONSE_TOKENS} tokens, "
    heading += f"{args.dtype}, {args.policies} policies; fit over plain {ratio:.3f}"
    with Report(heading, lambda _: rows, line=dict, num_left=1, num_steps=1) as report:
        report.add([line])


if __name__ == "__main__":
    main()

"""Scoring responses: the fit's one-hot passes against plain vLLM's own prompt logprobs.

    python tests/bench/bench_scoring.py [--policies 3] [--responses 128] [--rounds 5]

The same responses are scored under one policy by plain vLLM serving that policy, and by the fit's
engine, which holds K policies and asks for one of them. Both take turns, each in its own process.
Prints a table, then one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench_decode import Engine, write_policy

PROMPT_TOKENS, RESPONSE_TOKENS = 32, 96


def serve_rounds(settings: dict[str, Any]) -> None:
    """The engine's side: every line read is a round; the answer is its seconds."""
    from mixing.spec import MixtureSpec, Policy
    from weights.engine import LocalEngine, set_environment

    set_environment()
    import torch
    from vllm import LLM, SamplingParams

    folders = settings["folders"]
    options = {"load_format": "dummy", "dtype": settings["dtype"], "max_model_len": 256}
    torch.manual_seed(0)
    tokens = torch.randint(2, 300, (settings["responses"], PROMPT_TOKENS + RESPONSE_TOKENS))
    rows = [tuple(row) for row in tokens.tolist()]
    if settings["mixture"]:
        members = tuple(Policy(name=f"p{i}", model=folder) for i, folder in enumerate(folders))
        engine = LocalEngine.start(MixtureSpec(policies=members), **options)
        pairs = [(row[:PROMPT_TOKENS], row[PROMPT_TOKENS:]) for row in rows]
        one_hot = [1.0] + [0.0] * (len(folders) - 1)

        def score() -> None:
            engine.score(pairs, one_hot)
    else:
        llm = LLM(model=folders[0], **options)
        params = SamplingParams(max_tokens=1, prompt_logprobs=0, detokenize=False)
        prompts = [{"prompt_token_ids": list(row)} for row in rows]

        def score() -> None:
            llm.generate(prompts, params, use_tqdm=False)

    score()
    print("@{}", flush=True)
    for _ in sys.stdin:
        begin = time.perf_counter()
        score()
        print("@" + json.dumps(time.perf_counter() - begin), flush=True)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Rounds in turn; the ratio is taken round by round."""
    with tempfile.TemporaryDirectory() as root:
        folders = [str(Path(root) / f"p{index}") for index in range(args.policies)]
        for folder in folders:
            write_policy(Path(folder), layers=args.layers, hidden=args.hidden, vocab=args.vocab)
        settings = {"folders": folders, "dtype": args.dtype, "responses": args.responses}
        engines = {
            name: Engine({**settings, "mixture": mixture}, script=__file__)
            for name, mixture in (("plain", False), ("fit", True))
        }
        seconds: dict[str, list[float]] = {name: [] for name in engines}
        for _ in range(args.rounds):
            for name, engine in engines.items():
                seconds[name].append(engine.seconds(1, 1))
        for engine in engines.values():
            engine.close()
    num_tokens = args.responses * (PROMPT_TOKENS + RESPONSE_TOKENS)
    return {
        "bench": "scoring",
        "policies": args.policies,
        "responses": args.responses,
        "dtype": args.dtype,
        **{f"{name}_tokens_s": num_tokens / statistics.median(s) for name, s in seconds.items()},
        "fit_over_plain": statistics.median(
            plain / fit for plain, fit in zip(seconds["plain"], seconds["fit"], strict=True)
        ),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": {name: version(name) for name in ("prefmix", "torch")},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--policies", type=int, default=3)
    parser.add_argument("--responses", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--vocab", type=int, default=32000)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--engine", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.engine:
        serve_rounds(json.loads(args.engine))
        return
    result = measure(args)
    print(f"{args.responses} responses, {PROMPT_TOKENS} + {RESPONSE_TOKENS} tokens, {args.dtype}\n")
    print(f"{'plain vLLM, one policy':<34}  {result['plain_tokens_s']:>10.0f} tokens/s")
    print(
        f"{f'fit, one of {args.policies} policies':<34}  {result['fit_tokens_s']:>10.0f} tokens/s"
    )
    print(f"{'ratio':<34}  {result['fit_over_plain']:>10.3f}")
    print("\n" + json.dumps(result))


if __name__ == "__main__":
    main()

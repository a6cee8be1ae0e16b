"""What a mixture of K policies costs: output tokens/s against one policy served by plain vLLM.

    python tests/bench/bench_decode.py [--policies 3] [--batch 1 8 32] [--rounds 5]

Each engine lives in a process of its own with random parameters of one shape; they take turns, so
that a slow moment of the machine hits all of them, and the ratio is taken round by round. The fair
price of K policies is single/K: the last column says how much of that is reached. Start-up is
listed by phase. Prints a table, then one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1]
PROMPT_TOKENS = 32


def write_policy(folder: Path, *, layers: int, hidden: int, vocab: int) -> int:
    """A Llama config and a tokenizer; vLLM fills in random parameters (load_format dummy).

    Returns: the number of parameters.
    """
    sys.path.insert(0, str(TESTS))
    import torch
    from tiny_policies import build_tokenizer
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        architectures=["LlamaForCausalLM"],
        num_hidden_layers=layers,
        hidden_size=hidden,
        intermediate_size=hidden * 8 // 3,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 64,
        vocab_size=vocab,
        max_position_embeddings=1024,
        bos_token_id=0,
        eos_token_id=1,
        tie_word_embeddings=False,
    )
    config.save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    with torch.device("meta"):
        return sum(tensor.numel() for tensor in LlamaForCausalLM(config).parameters())


def serve_rounds(settings: dict[str, Any]) -> None:
    """The engine's side: reads {"batch": N, "tokens": T} lines, answers each with seconds."""
    started = time.perf_counter()
    from vllm import LLM, SamplingParams

    from mixing import wire
    from mixing.spec import MixtureSpec, Policy, hf_overrides

    imported = time.perf_counter()
    folders, dtype = settings["folders"], settings["dtype"]
    options: dict[str, Any] = {}
    weights: list[float] | None = None
    if settings["mixture"]:
        members = tuple(
            Policy(name=f"p{index}", model=folder) for index, folder in enumerate(folders)
        )
        options["hf_overrides"] = hf_overrides(MixtureSpec(policies=members))
        weights = [1 / len(folders)] * len(folders)
    llm = LLM(
        model=folders[0],
        load_format="dummy",
        dtype=dtype,
        max_model_len=512,
        enable_prefix_caching=False,
        **options,
    )
    loaded = time.perf_counter()
    extra_args = wire.to_extra_args(weights) if weights else None

    def generate(batch: int, tokens: int) -> float:
        params = SamplingParams(
            temperature=1.0, max_tokens=tokens, ignore_eos=True, extra_args=extra_args
        )
        prompts = [
            {"prompt_token_ids": [2 + (7 * row + step) % 300 for step in range(PROMPT_TOKENS)]}
            for row in range(batch)
        ]
        begin = time.perf_counter()
        llm.generate(prompts, params, use_tqdm=False)
        return time.perf_counter() - begin

    first_token = generate(1, 1)
    report = {
        "start_s": {
            "import": imported - started,
            "load and compile": loaded - imported,
            "first token": first_token,
        },
    }
    print("@" + json.dumps(report), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        print("@" + json.dumps(generate(request["batch"], request["tokens"])), flush=True)


class Engine:
    """One engine in its own process."""

    def __init__(self, settings: dict[str, Any], *, script: str = __file__) -> None:
        environment = {
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_CPU_KVCACHE_SPACE": "2",
            "VLLM_LOGGING_LEVEL": "ERROR",
            "VLLM_USE_AOT_COMPILE": "0",
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)]),
        }
        self.process = subprocess.Popen(
            [sys.executable, script, "--engine", json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if not os.environ.get("BENCH_VERBOSE") else None,
            text=True,
            env=environment,
        )
        self.report: dict[str, Any] = self._answer()

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("@"):
                return json.loads(line[1:])
        stderr = self.process.stderr.read() if self.process.stderr else ""
        raise SystemExit(f"the engine ended early:\n{stderr[-3000:]}")

    def seconds(self, batch: int, tokens: int) -> float:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"batch": batch, "tokens": tokens}) + "\n")
        self.process.stdin.flush()
        return float(self._answer())

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(timeout=30)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Runs all engines in turn; returns medians over rounds of speeds and of paired ratios."""
    with tempfile.TemporaryDirectory() as root:
        folders = [str(Path(root) / f"p{index}") for index in range(args.policies)]
        [parameters] = {
            write_policy(Path(folder), layers=args.layers, hidden=args.hidden, vocab=args.vocab)
            for folder in folders
        }
        names = {"single": False, "mixture": True}
        engines = {
            name: Engine({"folders": folders, "dtype": args.dtype, "mixture": mixture})
            for name, mixture in names.items()
        }
        rows = []
        for batch in args.batch:
            speeds: dict[str, list[float]] = {name: [] for name in engines}
            for round_index in range(args.rounds + 1):
                for name, engine in engines.items():
                    speed = batch * args.tokens / engine.seconds(batch, args.tokens)
                    if round_index:  # the first round warms up
                        speeds[name].append(speed)
            pairs = zip(speeds["mixture"], speeds["single"], strict=True)
            rows.append(
                {
                    "batch": batch,
                    **{name: statistics.median(values) for name, values in speeds.items()},
                    "of_single_over_k": statistics.median(
                        args.policies * mixture / single for mixture, single in pairs
                    ),
                }
            )
        for engine in engines.values():
            engine.close()
    return {
        "bench": "decode",
        "policies": args.policies,
        "parameters_each": parameters,
        "dtype": args.dtype,
        "tokens": args.tokens,
        "rounds": args.rounds,
        "rows": rows,
        "start_s": {name: engine.report["start_s"] for name, engine in engines.items()},
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": {name: version(name) for name in ("prefmix", "torch")},
    }


def show(result: dict[str, Any]) -> None:
    """The table, then the JSON line."""
    millions = result["parameters_each"] / 1e6
    print(
        f"{result['policies']} policies of {millions:.0f}M parameters, {result['dtype']}, ", end=""
    )
    print(f"{result['tokens']} tokens a request, {result['machine']}\n")
    print(f"{'batch':>5}  {'one policy':>12}  {'mixture':>12}  {'of single/K':>12}")
    print(f"{'':>5}  {'tokens/s':>12}  {'tokens/s':>12}  {'(1 is fair)':>12}")
    for row in result["rows"]:
        print(
            f"{row['batch']:>5}  {row['single']:>12.1f}  {row['mixture']:>12.1f}"
            f"  {row['of_single_over_k']:>12.3f}"
        )
    phases = list(result["start_s"]["single"])
    print("\nstart-up, s  " + "  ".join(f"{phase:>16}" for phase in phases))
    for name, seconds in result["start_s"].items():
        print(f"{name:<11}  " + "  ".join(f"{seconds[phase]:>16.1f}" for phase in phases))
    print("\n" + json.dumps(result))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--policies", type=int, default=3)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--vocab", type=int, default=32000)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--engine", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.engine:
        serve_rounds(json.loads(args.engine))
    else:
        show(measure(args))


if __name__ == "__main__":
    main()

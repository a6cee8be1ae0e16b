"""`prefmix bench WHAT`: reads the flags of a bench and runs it; heavy imports come last."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence
from typing import Any

from prefmix.server.launch.installation import require_vllm

EPILOG = """\
Each bench prints a JSON line for each measurement as soon as it is made, and an aligned table in
the end; a run that is ended early prints the table of what it has. Random models are made for the
run unless your own are given. What follows -- goes to vLLM, the same for all contestants:
prefmix bench engine --model-size 8b -- --attention-backend TRITON_ATTN"""

BENCHES = {
    "engine": ("prefmix.bench.engine", "output speed beside what one would run without a mixture"),
    "http": ("prefmix.bench.over_http.comparison", "what the HTTP layer adds to vLLM's own"),
    "mixed-batch": (
        "prefmix.bench.mixed_batch",
        "equal weights in all rows against different ones",
    ),
    "prompts": (
        "prefmix.bench.prompts",
        "K prompts of one model in one engine beside K requests outside",
    ),
    "launches": ("prefmix.bench.launches", "kernels, graphs and waits of one step of decoding"),
    "memory": ("prefmix.bench.memory", "bytes of parameters, and of KV cache for a token"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the benches and their flags."""
    parser.epilog = EPILOG
    benches = parser.add_subparsers(dest="bench", metavar="WHAT", required=True)
    for name, (module, summary) in BENCHES.items():
        sub = benches.add_parser(name, help=summary, description=f"{summary}.", allow_abbrev=False)
        importlib.import_module(module).add_arguments(sub)
    # This bench reads its own flags: without a prefix character every word is positional here.
    kernels = benches.add_parser(
        "kernels",
        help="each kernel against its torch fallback and the memory roofline",
        add_help=False,
        prefix_chars="\0",
    )
    kernels.add_argument("words", nargs=argparse.REMAINDER)


def run(args: argparse.Namespace, passthrough: Sequence[str]) -> int:
    """Runs the bench; returns the exit code."""
    if args.bench == "kernels":
        kernels: Any = importlib.import_module("prefmix.bench.kernels")
        return int(kernels.main([*args.words, *passthrough]))
    require_vllm()
    module: Any = importlib.import_module(BENCHES[args.bench][0])
    return int(module.run(args, passthrough))

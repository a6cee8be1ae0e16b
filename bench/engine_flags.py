"""The flags that benches of engines share, and the contestants' settings that follow from them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from prefmix.bench.contestants.dummy_format import DUMMY
from prefmix.bench.contestants.models import has_dummy_weights, shape_of_flags


def add_round_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of every bench that times engines in rounds."""
    add = parser.add_argument
    add("--rounds", type=int, default=5, help="after one to warm up; default 5")
    add("--tokens", type=int, default=32, help="drawn by a request; default 32")
    add("--prompt-tokens", type=int, default=32, help="of a request; default 32")


def add_clock_flag(parser: argparse.ArgumentParser, *, but: str) -> None:
    """Adds the flag that chooses the clock; `but` says where processor time cannot be measured."""
    parser.add_argument(
        "--clock",
        choices=("wall", "cpu"),
        default="wall",
        help="cpu measures the processor time of each contestant, which other work on the machine "
        f"disturbs less; {but}",
    )


def add_engine_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags with which every vLLM of a run is started."""
    add = parser.add_argument
    add("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    add(
        "--threads",
        type=int,
        default=1,
        help="that compute in each process on CPU; default 1, which other work disturbs least",
    )
    add(
        "--kv-cache-gib",
        type=float,
        default=0.5,
        help="of each policy; default 0.5. A mixture of K gets K times that: as many tokens fit",
    )
    add("--max-model-len", type=int, default=512, help="default 512")


def common_settings(args: argparse.Namespace, passthrough: Sequence[str]) -> dict[str, Any]:
    """The settings that all contestants of a run share: vLLM's options, flags, threads."""
    options = {
        "dtype": args.dtype,
        "max_model_len": args.max_model_len,
        "enable_prefix_caching": False,
        "load_format": "auto" if args.allow_unsafe_weights else "safetensors",
    }
    if has_dummy_weights(args):
        options["load_format"] = DUMMY
    return {
        "options": options,
        "kv_cache_bytes": int(args.kv_cache_gib * 2**30),
        "engine_flags": list(passthrough),
        "num_threads": args.threads,
    }


def model_name(args: argparse.Namespace) -> str:
    """The models in a few words."""
    if args.policy or args.base:
        return "given models"
    millions = shape_of_flags(args).num_parameters / 1e6
    made = ", made while loading" if has_dummy_weights(args) else ""
    return f"random policies of {millions:.1f}M parameters{made}"

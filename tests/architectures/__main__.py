"""Tries every architecture and writes docs/architectures.md.

Results are kept as they come, so that a run that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import tempfile
from pathlib import Path

from architectures.page import PAGE, RESULTS, read_results, render

os.environ |= {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "TORCH_COMPILE_DISABLE": "1",  # a function of vLLM's sampler takes two seconds to compile
}
MODULES = (
    "vllm.entrypoints.llm",
    "vllm.model_executor.layers.quantization.online",
    "vllm.v1.attention.backends.cpu_attn",
    "vllm.v1.core.sched.scheduler",
    "vllm.v1.engine.core",
    "vllm.v1.worker.cpu_worker",
)
"""The modules that engines import late: here they are imported once for all."""


def main() -> None:
    """Tries what the flags name, then writes the page."""
    parser = argparse.ArgumentParser(prog="python -m architectures", description=__doc__)
    parser.add_argument("names", nargs="*", help="beginnings of names; none: all that are missing")
    parser.add_argument("--logs", type=Path, help="keep the steps' logs in this folder")
    parser.add_argument("--page-only", action="store_true", help="write the page from the results")
    args = parser.parse_args()
    if not args.page_only:
        _try_all(args.names, args.logs)
    PAGE.write_text(render(read_results()), encoding="utf-8")
    print(f"written: {PAGE}")


def _try_all(names: list[str], logs: Path | None) -> None:
    import torch

    torch.set_num_threads(1)
    for module in MODULES:
        importlib.import_module(module)
    from vllm.plugins import load_general_plugins

    load_general_plugins()
    from architectures.candidates import candidates
    from architectures.trial import trial

    known = {line["architecture"]: line for line in read_results() if "untried" not in line}
    every = candidates()
    wanted = [
        each
        for each in every
        if (each.name.startswith(tuple(names)) if names else each.name not in known)
    ]
    with tempfile.TemporaryDirectory() as scratch:
        for candidate in wanted:
            folder = Path(logs or scratch) / candidate.name.replace(" ", "_")
            folder.mkdir(parents=True, exist_ok=True)
            known[candidate.name] = line = trial(candidate, folder)
            print(json.dumps(line), flush=True)
            untried = {each.name: {"architecture": each.name, "untried": True} for each in every}
            lines = {**untried, **known}.values()
            new = RESULTS.with_suffix(".new")
            new.write_text("".join(json.dumps(each) + "\n" for each in lines))
            new.replace(RESULTS)


if __name__ == "__main__":
    sys.exit(main())

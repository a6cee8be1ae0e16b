"""`prefmix bench launches`: what one step of decoding launches, from torch's profiler.

Two profiles of the same requests, one of them some steps longer, are subtracted: what is left is
that of the additional steps alone. On a GPU these are kernels, their time, replays of CUDA graphs,
launches outside of them, copies and waits of the host; on a CPU operators of torch.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from prefmix.bench.contestants.implementations import VllmEngine
from prefmix.bench.contestants.job import Job, make_job
from prefmix.bench.contestants.models import add_model_flags, prepare_models
from prefmix.bench.contestants.settings import (
    FULL,
    ONE_POLICY,
    PARAMETERS,
    TRUNK,
    contestant_settings,
)
from prefmix.bench.contestants.worker import Worker
from prefmix.bench.engine_flags import add_engine_flags, common_settings, model_name
from prefmix.bench.report import Report, progress

CONTESTANTS = {"full": FULL, "trunk": TRUNK, "parameters": PARAMETERS}
"""Words of --contestants; one policy served alone always takes part."""

FIRST_STEPS = 4
LONGEST_NAME = 60

GRAPHS = ("cudaGraphLaunch",)
LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx")
COPIES = ("cudaMemcpyAsync", "cudaMemsetAsync")
WAITS = (
    "cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy",
)  # fmt: skip
"""Calls of CUDA by what they are."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `prefmix bench launches`."""
    add = parser.add_argument
    add("--policies", type=int, default=3, metavar="K", help="default 3")
    add("--batch", type=int, nargs="+", default=[1], help="default 1")
    add("--steps", type=int, default=16, help="over which a step is averaged; default 16")
    add("--prompt-tokens", type=int, default=32, help="of a request; default 32")
    add("--top", type=int, default=12, help="kernels in the JSON lines; default 12")
    add(
        "--contestants",
        nargs="+",
        choices=CONTESTANTS,
        default=list(CONTESTANTS),
        metavar="NAME",
        help=f"beside one policy alone: {', '.join(CONTESTANTS)}; default all",
    )
    add_engine_flags(parser)
    add_model_flags(parser, size="134m")


def run(args: argparse.Namespace, passthrough: Sequence[str]) -> int:
    """Measures and prints; returns the exit code."""
    wanted = [ONE_POLICY, *(CONTESTANTS[word] for word in args.contestants)]
    report = Report(
        f"{model_name(args)}, {args.dtype}; of one step of decoding, {args.policies} policies",
        table,
        line=lambda one: {"bench": "launches", **one, "dtype": args.dtype},
        num_left=1,
        num_steps=len(wanted),
    )
    with report, tempfile.TemporaryDirectory(prefix="prefmix-bench-") as folder:
        models = prepare_models(args, Path(folder), num_policies=args.policies)
        common = common_settings(args, passthrough)
        everyone = contestant_settings(models, num_policies=args.policies, common=common)
        for name in wanted:
            if name not in everyone:
                progress(f"no {name}: the models given do not allow it")
                continue
            report.begin(name)
            worker = Worker({**everyone[name], "kind": "prefmix.bench.launches:Profiled"})
            try:
                worker.wait_started()
                for batch in args.batch:
                    job = make_job(
                        batch=batch,
                        num_policies=args.policies,
                        prompt_tokens=args.prompt_tokens,
                        tokens=FIRST_STEPS,
                        seed=0,
                    )
                    asked = {"job": job.to_dict(), "steps": args.steps, "top": args.top}
                    report.add([{"contestant": name, "batch": batch, **worker.ask(asked)}])
            finally:
                worker.close()
    return 0


class Profiled(VllmEngine):
    """vLLM in this process, under torch's profiler."""

    def answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The figures of one step."""
        job, steps = Job.from_dict(request["job"]), request["steps"]
        longer = replace(job, lengths=[length + steps for length in job.lengths])
        self.draw(longer)  # whatever is compiled or chosen late
        return step_figures(self._counted(job), self._counted(longer), steps, top=request["top"])

    def _counted(self, job: Job) -> dict[str, dict[str, Counter[str]]]:
        """Calls and device microseconds of a job, by name: of kernels, and of the host."""
        import torch
        from torch.profiler import ProfilerActivity, profile

        has_device = torch.cuda.is_available()
        activities = [ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * has_device]
        with profile(activities=activities) as profiled:
            self.draw(job)
            if has_device:
                torch.cuda.synchronize()
        found: dict[str, dict[str, Counter[str]]] = {
            place: {"calls": Counter(), "us": Counter()} for place in ("device", "host")
        }
        for event in profiled.key_averages():
            place = "host" if event.device_type.name == "CPU" else "device"
            found[place]["calls"][event.key] += event.count
            found[place]["us"][event.key] += round(event.self_device_time_total)
        return found


def step_figures(
    short: Mapping[str, Mapping[str, Counter[str]]],
    long: Mapping[str, Mapping[str, Counter[str]]],
    steps: int,
    *,
    top: int,
) -> dict[str, Any]:
    """The figures of one of the additional steps of the longer profile; JSON-ready."""

    def more(place: str, what: str) -> dict[str, float]:
        counts = {
            name: (count - short[place][what][name]) / steps
            for name, count in long[place][what].items()
        }
        return {name: count for name, count in counts.items() if count > 0}

    calls, host, us = more("device", "calls"), more("host", "calls"), more("device", "us")
    is_device = bool(long["device"]["calls"])
    kernels = {name: n for name, n in calls.items() if not name.startswith(("Memcpy", "Memset"))}
    by = us if is_device else host
    busiest = sorted(by, key=lambda name: -by[name])[:top]

    def sum_of(names: Sequence[str]) -> float | None:
        return round(sum(host.get(name, 0.0) for name in names), 1) if is_device else None

    return {
        "kernels": round(sum(kernels.values()), 1) if is_device else None,
        "device_us": round(sum(us.values()), 1) if is_device else None,
        "graph_replays": sum_of(GRAPHS),
        "launches_outside": sum_of(LAUNCHES),
        "copies": sum_of(COPIES),
        "waits": sum_of(WAITS),
        "operators": round(sum(n for name, n in host.items() if name.startswith("aten::")), 1),
        "busiest": [
            {
                "name": name[:LONGEST_NAME],
                "calls": round((calls if is_device else host).get(name, 0.0), 2),
                "us": round(us.get(name, 0.0), 1),
            }
            for name in busiest
        ],
    }


def table(found: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """The cells, heading first; "-" is what only a GPU has."""
    names = ["kernels", "device_us", "graph_replays", "launches_outside", "copies", "waits"]
    names.append("operators")
    heading = ["contestant", "batch", *(name.replace("_", " ") for name in names)]
    return [
        heading,
        *(
            [
                row["contestant"],
                str(row["batch"]),
                *("-" if row[name] is None else f"{row[name]:.1f}" for name in names),
            ]
            for row in found
        ),
    ]

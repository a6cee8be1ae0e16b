"""Launches of one step, from two profiles of different length."""

from __future__ import annotations

from collections import Counter

from prefmix.bench.launches import step_figures, table


def profile(steps: int, *, device: bool = True) -> dict[str, dict[str, Counter[str]]]:
    """A start of the same work each time, and steps of one replay, two launches and a wait."""
    host = {"cudaGraphLaunch": steps, "cuLaunchKernelEx": 2 * steps, "cudaMemcpyAsync": 7}
    host |= {"cudaEventSynchronize": steps, "aten::mm": 9 + 3 * steps}
    kernels = {"prefill": 5, "mix": steps, "gemm": 4 * steps, "Memcpy HtoD": 2 * steps}
    us = {"prefill": 500, "mix": 10 * steps, "gemm": 80 * steps, "Memcpy HtoD": steps}
    if not device:
        host, kernels, us = {"aten::mm": 9 + 3 * steps}, {}, {}
    return {
        "host": {"calls": Counter(host), "us": Counter()},
        "device": {"calls": Counter(kernels), "us": Counter(us)},
    }


def test_only_the_additional_steps_count() -> None:
    figures = step_figures(profile(4), profile(20), 16, top=2)
    assert figures["kernels"] == 5.0
    assert figures["device_us"] == 91.0
    assert (figures["graph_replays"], figures["launches_outside"]) == (1.0, 2.0)
    assert (figures["copies"], figures["waits"]) == (0.0, 1.0)
    assert figures["busiest"] == [
        {"name": "gemm", "calls": 4.0, "us": 80.0},
        {"name": "mix", "calls": 1.0, "us": 10.0},
    ]


def test_a_cpu_has_operators_alone() -> None:
    figures = step_figures(profile(4, device=False), profile(12, device=False), 8, top=5)
    assert figures["operators"] == 3.0
    assert figures["kernels"] is figures["waits"] is None
    assert figures["busiest"] == [{"name": "aten::mm", "calls": 3.0, "us": 0.0}]
    heading, row = table([{"contestant": "one policy", "batch": 1, **figures}])
    assert len(heading) == len(row)
    assert row[2] == "-"
    assert row[-1] == "3.0"

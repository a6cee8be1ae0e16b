"""Each kernel beside its torch fallback, eager torch, and the time that moving its bytes takes.

    prefmix bench kernels                                   # or python -m prefmix.bench.kernels
    python -m prefmix.bench.kernels --kernel mix_lm_head --rows 1 64 128 256 --members 4

The bench needs torch, on a GPU also Triton, and no vLLM. Without a GPU there is no kernel: the
torch fallback competes with eager torch alone, at smaller sizes. Eager torch is the obvious code
without this package: stack the logits, convert them to float32, multiply by the weights, add up
(bench/kernel_comparisons.py).

The floor is bytes / bandwidth: the bytes that the kernel has to read and write, at the bandwidth of
copying a large tensor, measured in the same run with bytes read and written both counted. Inputs
take turns, so that they come from memory and not from a cache. On a GPU the calls are replayed from
a CUDA graph, so that launching does not count; `host_us` in the JSON is the cost of launching
without a graph.

Before anything is timed, three rows of the result are compared with float64. If their error exceeds
that of eager torch on the same inputs by more than 1e-5, the bench ends and reports no speed.

Prints a JSON line for each measurement, then a table. `mix_lm_head` reads each head once; with
many rows it is bound by arithmetic, so that its share of the floor says little: compare it with
its fallback, which is M library products and the mix. A device on which the kernel is faster goes
into `FUSED_ROWS` of mixing/kernels/mix_lm_head.py.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from prefmix.bench.kernel_comparisons import KERNELS, Size, errors
from prefmix.bench.report import Report, Spread
from prefmix.server.config.errors import CommandError

CACHE_BYTES = 128 << 20
"""More bytes than any cache holds, so that inputs come from memory (an H200's L2 is 60 MB)."""
MAX_COPIES = 32

Call = Callable[[], Any]


def copy_bandwidth(device: torch.device, *, rounds: int) -> float:
    """Bandwidth of copying a large tensor in bytes a second, read and written bytes counted."""
    num_bytes = 1 << (31 if device.type == "cuda" else 28)
    source = torch.ones(num_bytes // 4, device=device)
    target = torch.empty_like(source)
    seconds = _in_turns({"copy": [lambda: target.copy_(source)]}, device, rounds=rounds)["copy"]
    return 2 * num_bytes / min(seconds)  # the best round: other work may slow the others


def _in_turns(
    ways: Mapping[str, Sequence[Call]], device: torch.device, *, rounds: int
) -> dict[str, list[float]]:
    """Seconds for one call, one value per round; a round runs each call of each way once."""
    runs = {
        way: _replay(calls) if device.type == "cuda" else _one_after_the_other(calls)
        for way, calls in ways.items()
    }
    for run in runs.values():
        run()
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, run in runs.items():
            _wait(device)
            begin = time.perf_counter()
            run()
            _wait(device)
            seconds[way].append((time.perf_counter() - begin) / len(ways[way]))
    return seconds


def _one_after_the_other(calls: Sequence[Call]) -> Call:
    def run() -> None:
        for call in calls:
            call()

    return run


def _replay(calls: Sequence[Call]) -> Call:
    for call in calls:  # compiles, and measures configurations, before the capture
        call()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return graph.replay


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _host_seconds(calls: Sequence[Call], device: torch.device, *, rounds: int) -> float:
    """The host's time to enqueue one call; the wait for the device is not timed."""
    seconds = []
    for call in itertools.islice(itertools.cycle(calls), rounds):
        _wait(device)
        begin = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - begin)
    _wait(device)
    return Spread.of(seconds).median


def measure(
    name: str, size: Size, *, bandwidth: float, rounds: int, compiled: bool = False
) -> dict[str, Any]:
    """One measurement as a JSON-ready line: every way takes its turn in each round.

    Args:
      compiled: true adds eager torch under torch.compile.
    Raises: CommandError if a result errs more than eager torch; no speed is then reported.
    """
    kernel, on_gpu = KERNELS[name], size.device.type == "cuda"
    num_bytes = kernel.num_bytes(size)
    inputs = [kernel.make(size) for _ in range(min(MAX_COPIES, -(-CACHE_BYTES // num_bytes)))]
    error, eager_error = errors(name, inputs[0], size)
    ways: dict[str, list[Call]] = {
        "eager": [each.eager for each in inputs],
        **({"compiled": [each.compiled for each in inputs]} if compiled else {}),
        "fallback": [each.fallback for each in inputs],
        **({"kernel": [each.kernel for each in inputs]} if on_gpu else {}),
    }
    seconds = _in_turns(ways, size.device, rounds=rounds)
    ours = seconds["kernel" if on_gpu else "fallback"]
    line: dict[str, Any] = {
        "kernel": name,
        "rows": size.rows,
        "vocab": size.vocab,
        "members": size.members,
        "dtype": str(size.dtype).removeprefix("torch."),
        **({"hidden": size.hidden} if name == "mix_lm_head" else {}),
        "megabytes": round(num_bytes / 1e6, 3),
        "copy_gb_per_s": round(bandwidth / 1e9, 1),
        "floor_us": round(num_bytes / bandwidth * 1e6, 2),
        "floor_share": round(num_bytes / bandwidth / min(ours), 3),
        **{f"{way}_us": _microseconds(values) for way, values in seconds.items()},
        **{
            f"{way}_over_ours": Spread.of_ratios(values, ours).to_dict()
            for way, values in seconds.items()
            if values is not ours
        },
        "error": float(f"{error:.3g}"),
        "eager_error": float(f"{eager_error:.3g}"),
    }
    if on_gpu:
        line["host_us"] = round(1e6 * _host_seconds(ways["kernel"], size.device, rounds=rounds), 2)
    return line


def _microseconds(seconds: Sequence[float]) -> dict[str, float]:
    return Spread.of(each * 1e6 for each in seconds).to_dict()


def _row(line: Mapping[str, Any]) -> list[str]:
    ratios = (line.get(f"{way}_over_ours") for way in ("eager", "compiled", "fallback"))
    times = (line.get(f"{way}_us") for way in ("eager", "compiled", "fallback", "kernel"))
    return [
        line["kernel"],
        *(f"{line[key]}" for key in ("rows", "vocab", "members")),
        f"{line['megabytes']:.1f}",
        f"{line['floor_us']:.0f}",
        *(f"{each['median']:.0f}" if each else "-" for each in times),
        f"{100 * line['floor_share']:.0f} %",
        *(f"{each['median']:.2f}" if each else "-" for each in ratios),
        f"{line['error']:.1e}",
        f"{line['eager_error']:.1e}",
    ]


HEADING = [
    *("kernel", "N", "V", "M", "MB", "floor µs", "eager µs", "compiled µs", "fallback µs"),
    *("kernel µs", "of floor", "eager/ours", "compiled/ours", "fallback/ours", "error", "eager's"),
]


def _parser(on_gpu: bool) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="prefmix bench kernels",
        description=(__doc__ or "").partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    rows = [1, 4, 16, 64, 128, 256] if on_gpu else [1, 16, 64]
    vocab = [32_000, 128_256, 151_936] if on_gpu else [32_000, 151_936]
    members = [2, 3, 4] if on_gpu else [3]
    parser.add_argument("--kernel", nargs="+", choices=KERNELS, default=list(KERNELS))
    parser.add_argument("--rows", nargs="+", type=int, default=rows, help="N")
    parser.add_argument("--vocab", nargs="+", type=int, default=vocab, help="V")
    parser.add_argument("--members", nargs="+", type=int, default=members, help="M")
    parser.add_argument(
        "--hidden", type=int, default=4096 if on_gpu else 512, help="hidden width of mix_lm_head"
    )
    parser.add_argument(
        "--dtype",
        choices=("bfloat16", "float16", "float32"),
        default="bfloat16",
        help="of logits, hidden states and heads",
    )
    parser.add_argument("--rounds", type=int, default=20 if on_gpu else 7, help="timed repetitions")
    parser.add_argument(
        "--compiled", action="store_true", help="eager torch under torch.compile takes part too"
    )
    parser.add_argument("--threads", type=int, default=1, help="of torch, on a CPU")
    return parser


def _triton_version() -> str | None:
    try:
        return version("triton")
    except PackageNotFoundError:
        return None


def main(argv: list[str] | None = None) -> int:
    """Runs the bench; returns the exit code.

    Raises: CommandError if a result is wrong.
    """
    on_gpu = torch.cuda.is_available()
    args = _parser(on_gpu).parse_args(argv)
    device = torch.device("cuda" if on_gpu else "cpu")
    if not on_gpu:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    sizes = list(itertools.product(args.kernel, args.vocab, args.members, args.rows))
    bandwidth = copy_bandwidth(device, rounds=args.rounds)
    what = "kernels" if on_gpu else "no GPU, so the kernels' torch fallbacks"
    report: Report[dict[str, Any]] = Report(
        f"Ours ({what}) beside eager torch and the floor that memory sets; errors in nats against"
        f" float64. Copying moves {bandwidth / 1e9:.1f} GB/s; {args.dtype}.",
        lambda lines: [HEADING, *map(_row, lines)],
        line=dict,
        num_left=1,
        num_steps=len(sizes),
    )
    with report, torch.inference_mode():
        for name, vocab, members, rows in sizes:
            report.begin(f"{name}: N {rows}, V {vocab}, M {members}")
            dtype = getattr(torch, args.dtype)
            size = Size(rows, vocab, members, args.hidden, dtype, device)
            line = measure(
                name, size, bandwidth=bandwidth, rounds=args.rounds, compiled=args.compiled
            )
            more = {"threads": torch.get_num_threads(), "triton": _triton_version()}
            report.add([{**line, **more}])
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except CommandError as error:
        sys.exit(f"prefmix bench: error: {error}")

"""Each kernel against its torch twin and against the time that its bytes take to move.

    prefmix bench kernels                                   # or python -m bench.kernels
    python -m bench.kernels --kernel mix_lm_head --rows 1 64 128 256 --members 4

Needs torch, on a GPU also Triton, not vLLM. Without a GPU: torch twins only, at smaller sizes.

The floor is bytes / bandwidth: what the kernel has to read and write, at the bandwidth of copying a
large tensor, measured in the same run, bytes read and written both counted. Inputs take turns so
that they come from memory, not from a cache. On a GPU the calls are replayed from a CUDA graph, so
that launching does not count; `host_us` in the JSON is what launching costs without one.

Prints a table, then one JSON line for each measurement. `mix_lm_head` reads each head once; with
many rows it is bound by arithmetic instead, so its share of the floor says little there: compare
it with its twin, M library products and the mix. A device whose rows speak for the kernel goes to
`FUSED_ROWS` in mixing/kernels/mix_lm_head.py.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from bench.report import Spread, progress, show
from mixing.kernels.log_linear_mix import log_linear_mix, log_linear_mix_torch
from mixing.kernels.mix_lm_head import mix_lm_head, mix_lm_head_torch
from mixing.kernels.mixture_statistics import mixture_statistics, mixture_statistics_torch

CACHE_BYTES = 128 << 20
"""More than any cache that inputs should not come from (an H200's L2 is 60 MB)."""
MAX_COPIES = 32

Call = Callable[[], Any]


@dataclass(frozen=True, slots=True)
class Size:
    """One measurement's shape."""

    rows: int
    vocab: int
    members: int
    hidden: int
    dtype: torch.dtype
    device: torch.device

    def weights(self) -> torch.Tensor:
        """float32 [N, M] on the simplex, none of them zero."""
        return torch.rand(self.rows, self.members, device=self.device).add_(0.1).softmax(dim=1)

    def random(self, *shape: int) -> list[torch.Tensor]:
        """Of the dtype, one for each member."""
        options = {"device": self.device, "dtype": self.dtype}
        return [torch.randn(shape, **options) for _ in range(self.members)]  # type: ignore[call-overload]


@dataclass(frozen=True, slots=True)
class Contest:
    """The same work done in two ways, on each of several inputs."""

    kernel: list[Call]
    twin: list[Call]
    num_bytes: int
    """What has to be read and written, once."""


def _mix(size: Size, copies: int) -> Contest:
    columns, none, one = list(range(size.members)), [0.0] * size.members, [1.0] * size.members
    contest = Contest([], [], _logits_bytes(size) + size.rows * size.vocab * 4)
    for _ in range(copies):
        data = size.random(size.rows, size.vocab), size.weights()
        twin = partial(log_linear_mix_torch, *data, columns, size.vocab, none, one, False)
        contest.kernel.append(partial(log_linear_mix, *data, signed=False))
        contest.twin.append(twin)
    return contest


def _statistics(size: Size, copies: int) -> Contest:
    columns, none, one = list(range(size.members)), [0.0] * size.members, [1.0] * size.members
    contest = Contest([], [], _logits_bytes(size))
    tokens = torch.randint(size.vocab, (size.rows,), device=size.device)
    for _ in range(copies):
        data = size.random(size.rows, size.vocab), size.weights(), tokens
        contest.kernel.append(partial(mixture_statistics, *data))
        contest.twin.append(partial(mixture_statistics_torch, *data, columns, none, one))
    return contest


def _head(size: Size, copies: int) -> Contest:
    columns, one = list(range(size.members)), [1.0] * size.members
    num_bytes = size.members * (size.vocab + size.rows) * size.hidden * size.dtype.itemsize
    contest = Contest([], [], num_bytes + size.rows * size.vocab * 4)
    on_gpu = size.device.type == "cuda"
    for _ in range(copies):
        hidden = [h.div_(size.hidden**0.5) for h in size.random(size.rows, size.hidden)]
        data = hidden, size.random(size.vocab, size.hidden), size.weights()
        contest.kernel.append(partial(mix_lm_head, *data, fused=on_gpu))
        contest.twin.append(partial(mix_lm_head_torch, *data, columns, size.vocab, one))
    return contest


KERNELS: dict[str, Callable[[Size, int], Contest]] = {
    "log_linear_mix": _mix,
    "mixture_statistics": _statistics,
    "mix_lm_head": _head,
}


def _logits_bytes(size: Size) -> int:
    return size.members * size.rows * size.vocab * size.dtype.itemsize


def copy_bandwidth(device: torch.device, *, rounds: int) -> float:
    """Bytes a second of copying a large tensor, read and written bytes counted."""
    num_bytes = 1 << (31 if device.type == "cuda" else 28)
    source = torch.ones(num_bytes // 4, device=device)
    target = torch.empty_like(source)
    spread = _timed([lambda: target.copy_(source)], device, rounds=rounds)
    return 2 * num_bytes / spread.low  # what the memory can do: other work may have slowed a round


def _timed(calls: Sequence[Call], device: torch.device, *, rounds: int) -> Spread:
    """Seconds for one call; a round runs each of the calls once."""
    run = _replay(calls) if device.type == "cuda" else lambda: [call() for call in calls]
    run()
    seconds = []
    for _ in range(rounds):
        _wait(device)
        begin = time.perf_counter()
        run()
        _wait(device)
        seconds.append((time.perf_counter() - begin) / len(calls))
    return Spread.of(seconds)


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
    """What enqueueing one call costs the host; the device is waited for outside the clock."""
    seconds = []
    for call in itertools.islice(itertools.cycle(calls), rounds):
        _wait(device)
        begin = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - begin)
    _wait(device)
    return Spread.of(seconds).median


def measure(name: str, size: Size, *, bandwidth: float, rounds: int) -> dict[str, Any]:
    """One measurement: twin and kernel, each `rounds` times, as a JSON-ready line.

    Raises: SystemExit if kernel and twin differ by more than rounding: then no speed is reported.
    """
    one = KERNELS[name](size, 1)
    copies = min(MAX_COPIES, -(-CACHE_BYTES // one.num_bytes))
    contest = one if copies == 1 else KERNELS[name](size, copies)
    line: dict[str, Any] = {
        "kernel": name,
        "rows": size.rows,
        "vocab": size.vocab,
        "members": size.members,
        "dtype": str(size.dtype).removeprefix("torch."),
        **({"hidden": size.hidden} if name == "mix_lm_head" else {}),
        "megabytes": round(contest.num_bytes / 1e6, 3),
        "copy_gb_per_s": round(bandwidth / 1e9, 1),
        "floor_us": round(contest.num_bytes / bandwidth * 1e6, 2),
    }
    twin = _timed(contest.twin, size.device, rounds=rounds)
    line["twin_us"] = _microseconds(twin)
    fastest = twin.low
    if size.device.type == "cuda":
        _refuse_if_wrong(name, contest)
        kernel = _timed(contest.kernel, size.device, rounds=rounds)
        line["kernel_us"] = _microseconds(kernel)
        line["speed_up"] = round(twin.median / kernel.median, 3)
        line["host_us"] = round(1e6 * _host_seconds(contest.kernel, size.device, rounds=rounds), 2)
        fastest = kernel.low
    line["floor_share"] = round(contest.num_bytes / bandwidth / fastest, 3)
    return line


def _microseconds(seconds: Spread) -> dict[str, float]:
    return Spread(seconds.median * 1e6, seconds.low * 1e6, seconds.high * 1e6).to_dict()


def _refuse_if_wrong(name: str, contest: Contest) -> None:
    kernel, twin = contest.kernel[0](), contest.twin[0]()
    if isinstance(kernel, torch.Tensor):
        kernel, twin = (kernel,), (twin,)
    # Products of half-precision numbers are rounded at different places.
    tolerance = 0.1 if name == "mix_lm_head" else 1e-3
    for ours, theirs in zip(kernel, twin, strict=True):
        error = float((ours.float() - theirs.float()).abs().max())
        if not error <= tolerance:
            sys.exit(f"{name}: kernel and twin differ by {error:g}; no speed is reported")


def _row(line: dict[str, Any]) -> list[str]:
    kernel = line.get("kernel_us")
    shape = (line[key] for key in ("rows", "vocab", "members"))
    return [
        line["kernel"],
        *(f"{number}" for number in shape),
        f"{line['megabytes']:.1f}",
        f"{line['floor_us']:.0f}",
        f"{line['twin_us']['median']:.0f}",
        f"{kernel['median']:.0f}" if kernel else "-",
        f"{100 * line['floor_share']:.0f} %",
        f"{line['speed_up']:.2f}" if kernel else "-",
    ]


HEADING = ["kernel", "N", "V", "M", "MB", "floor µs", "twin µs", "kernel µs", "of floor", "ratio"]


def _parser(on_gpu: bool) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="prefmix bench kernels",
        description=(__doc__ or "").partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    rows = [1, 4, 16, 64, 128, 256] if on_gpu else [1, 8, 64]
    vocab = [32_000, 128_256, 151_936] if on_gpu else [32_000, 151_936]
    members = [2, 3, 4] if on_gpu else [3]
    parser.add_argument("--kernel", nargs="+", choices=KERNELS, default=list(KERNELS))
    parser.add_argument("--rows", nargs="+", type=int, default=rows, help="N")
    parser.add_argument("--vocab", nargs="+", type=int, default=vocab, help="V")
    parser.add_argument("--members", nargs="+", type=int, default=members, help="M")
    parser.add_argument(
        "--hidden", type=int, default=4096 if on_gpu else 256, help="hidden width of mix_lm_head"
    )
    parser.add_argument(
        "--dtype",
        choices=("bfloat16", "float16", "float32"),
        default="bfloat16" if on_gpu else "float32",
        help="of logits, hidden states and heads",
    )
    parser.add_argument("--rounds", type=int, default=20, help="timed repetitions")
    return parser


def _triton_version() -> str | None:
    try:
        return version("triton")
    except PackageNotFoundError:
        return None


def main(argv: list[str] | None = None) -> int:
    """Runs the bench; returns the exit code."""
    on_gpu = torch.cuda.is_available()
    args = _parser(on_gpu).parse_args(argv)
    device = torch.device("cuda" if on_gpu else "cpu")
    torch.manual_seed(0)
    lines = []
    with torch.inference_mode():
        bandwidth = copy_bandwidth(device, rounds=args.rounds)
        for name, vocab, members, rows in itertools.product(
            args.kernel, args.vocab, args.members, args.rows
        ):
            progress(f"{name}: N {rows}, V {vocab}, M {members}")
            dtype = getattr(torch, args.dtype)
            size = Size(rows, vocab, members, args.hidden, dtype, device)
            line = measure(name, size, bandwidth=bandwidth, rounds=args.rounds)
            lines.append({**line, "threads": torch.get_num_threads(), "triton": _triton_version()})
    heading = "Kernels, their torch twins and the floor that memory sets"
    if not on_gpu:
        heading += "; no GPU: torch twins only"
    show(
        f"{heading}. Copying moves {bandwidth / 1e9:.1f} GB/s; {args.dtype}.",
        [HEADING, *map(_row, lines)],
        num_left=1,
        lines=lines,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())

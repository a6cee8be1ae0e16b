"""`prefmix bench http`: `vllm bench serve` against plain vLLM and against this server.

Three servers of one policy take turns: `vllm serve` on the policy itself, `vllm serve` on the
mixture of that one policy, and `prefmix serve` on it. The second against the first is the cost in
the engine, the third against the second the cost of the HTTP layer. Beside the clients' times
stands the processor time of the server's front process, which other work on the machine hardly
changes.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from prefmix.bench.contestants.models import add_model_flags, prepare_models
from prefmix.bench.contestants.worker import Worker
from prefmix.bench.over_http.servers import MIXTURE, NAME, PLAIN, Server, commands, serving
from prefmix.bench.report import Report, Spread
from prefmix.server.config.errors import CommandError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `prefmix bench http`."""
    add = parser.add_argument
    add("--concurrency", type=int, nargs="+", default=[1, 16], help="default 1 16")
    add("--requests", type=int, default=200, help="of a round at a concurrency; default 200")
    add("--rounds", type=int, default=5, help="after one to warm up; default 5")
    add("--tokens", type=int, default=16, help="drawn by a request; default 16")
    add("--prompt-tokens", type=int, default=32, help="of a request; default 32")
    add("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    add("--kv-cache-gib", type=float, default=1.0, help="of each server; default 1")
    add("--max-model-len", type=int, default=512, help="default 512")
    add_model_flags(parser, size="tiny", needs_files=True)


def run(args: argparse.Namespace, passthrough: Sequence[str]) -> int:
    """Measures and prints; returns the exit code."""
    heading = (
        f"vllm bench serve, {args.requests} requests a round, {args.prompt_tokens} prompt tokens, "
        f"{args.tokens} drawn, {args.dtype}; median (lowest-highest) of {args.rounds} rounds"
    )
    report = Report(heading, table, line=dict, num_left=2, num_steps=len(args.concurrency))
    with report, tempfile.TemporaryDirectory(prefix="prefmix-bench-") as folder:
        model = prepare_models(args, Path(folder), num_policies=1).one
        with ExitStack() as stack:
            servers = {
                name: stack.enter_context(serving(name, command, Path(folder)))
                for name, command in commands(args, model, passthrough).items()
            }
            client = Worker({"kind": "prefmix.bench.over_http.load:HttpLoad"})
            stack.callback(client.close)
            client.wait_started()
            for concurrency in args.concurrency:
                report.begin(f"{concurrency} clients")
                report.add(_measure(args, client, servers, model, concurrency))
    return 0


def load_words(
    args: argparse.Namespace, *, url: str, model: str, concurrency: int, seed: int
) -> list[str]:
    """The command line of `vllm bench serve` for one server and round."""
    return [
        f"--base-url={url}",
        f"--model={NAME}",
        f"--served-model-name={NAME}",
        f"--tokenizer={model}",
        "--backend=openai",
        "--endpoint=/v1/completions",
        "--dataset-name=random",
        f"--random-input-len={args.prompt_tokens}",
        f"--random-output-len={args.tokens}",
        f"--num-prompts={args.requests}",
        f"--max-concurrency={concurrency}",
        "--request-rate=inf",
        "--temperature=1",
        "--percentile-metrics=ttft,tpot,itl,e2el",
        "--metric-percentiles=50,99",
        f"--seed={seed}",
        "--disable-tqdm",
    ]


def _measure(
    args: argparse.Namespace,
    client: Worker,
    servers: Mapping[str, Server],
    model: str,
    concurrency: int,
) -> list[dict[str, Any]]:
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in servers}
    order = list(servers)
    for round_index in range(args.rounds + 1):
        order = order[1:] + order[:1]
        for name in order:
            server = servers[name]
            words = load_words(
                args, url=server.url, model=model, concurrency=concurrency, seed=round_index
            )
            begin_s = server.front_cpu_s()
            result = client.ask({"words": words})
            result["front_cpu_ms"] = 1e3 * (server.front_cpu_s() - begin_s) / args.requests
            if result["completed"] != args.requests:
                raise CommandError(f"{name} answered {result['completed']} of {args.requests}")
            if round_index:  # the first round warms up
                results[name].append(result)
    return [_line(args, name, concurrency, results) for name in servers]


def _line(
    args: argparse.Namespace,
    name: str,
    concurrency: int,
    results: Mapping[str, Sequence[Mapping[str, Any]]],
) -> dict[str, Any]:
    def rounds(server: str, figure: str) -> list[float]:
        return [result[figure] for result in results[server]]

    def added(figure: str, baseline: str) -> dict[str, float]:
        pairs = zip(rounds(name, figure), rounds(baseline, figure), strict=True)
        return Spread.of(mine - theirs for mine, theirs in pairs).to_dict()

    def over(baseline: str) -> dict[str, float]:
        figure = "request_throughput"
        return Spread.of_ratios(rounds(name, figure), rounds(baseline, figure)).to_dict()

    return {
        "bench": "http",
        "server": name,
        "concurrency": concurrency,
        "requests_per_s": Spread.of(rounds(name, "request_throughput")).to_dict(),
        "requests_over_plain": over(PLAIN),
        "requests_over_mixture": over(MIXTURE),
        "p50_ms": Spread.of(rounds(name, "p50_e2el_ms")).to_dict(),
        "p99_ms": Spread.of(rounds(name, "p99_e2el_ms")).to_dict(),
        "added_p50_ms": added("p50_e2el_ms", PLAIN),
        "added_p99_ms": added("p99_e2el_ms", PLAIN),
        "front_cpu_ms": Spread.of(rounds(name, "front_cpu_ms")).to_dict(),
        "front_cpu_over_plain": Spread.of_ratios(
            rounds(name, "front_cpu_ms"), rounds(PLAIN, "front_cpu_ms")
        ).to_dict(),
        "first_token_p50_ms": Spread.of(rounds(name, "p50_ttft_ms")).to_dict(),
        "token_p50_ms": Spread.of(rounds(name, "p50_tpot_ms")).to_dict(),
        "dtype": args.dtype,
        "requests": args.requests,
        "prompt_tokens": args.prompt_tokens,
        "tokens": args.tokens,
        "rounds": args.rounds,
    }


def table(found: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """The cells, heading first."""
    heading = ["server", "clients", "requests/s", "of vllm serve", "of its mixture"]
    heading += ["p50 ms", "p99 ms", "added p50 ms", "added p99 ms", "front CPU ms/request"]
    rows = [
        [
            line["server"],
            str(line["concurrency"]),
            f"{line['requests_per_s']['median']:.1f}",
            f"{Spread(**line['requests_over_plain']):.3f}",
            f"{Spread(**line['requests_over_mixture']):.3f}",
            f"{line['p50_ms']['median']:.2f}",
            f"{line['p99_ms']['median']:.2f}",
            f"{Spread(**line['added_p50_ms']):.2f}",
            f"{Spread(**line['added_p99_ms']):.2f}",
            f"{Spread(**line['front_cpu_ms']):.2f}",
        ]
        for line in found
    ]
    return [heading, *rows]

"""`prefmix export`: the average of adapters, as one adapter or merged into their base."""

from __future__ import annotations

import argparse
import typing
from collections.abc import Sequence
from typing import Any

from prefmix.mixing.shown_value import shown_bytes
from prefmix.server.cli.averaging.shares import Averaged, add_average_flags, averaged
from prefmix.server.cli.averaging.writing import check_before, one_sentence, writing
from prefmix.server.config.errors import CommandError
from prefmix.weights.store.text_tables import aligned

EPILOG = """\
The sum of the policies' updates, each times its weight, is one update again: an adapter whose rank
is the sum of their ranks, exact. --rank cuts it to the nearest adapter of that rank and says by how
much it then differs. --merge adds it to the base and writes a full checkpoint. Policies that are
full checkpoints: 'prefmix average'.

Example: prefmix export mixture.yaml --weights helpful=2,harmless=1 --output averaged
         vllm serve ./base --enable-lora --max-lora-rank 64 --lora-modules averaged=./averaged"""

_SHOWN = 5
"""Layers of the largest errors that are printed; the record has all."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `prefmix export`."""
    parser.epilog = EPILOG
    parser.usage = (
        "prefmix export [CONFIG.yaml] --profile NAME | --weights A=1,B=2 --output DIR "
        "[--rank R | --merge] [flags]"
    )
    form = add_average_flags(parser).add_mutually_exclusive_group()
    form.add_argument(
        "--rank", type=_positive, metavar="R", help="highest rank of a layer; default: exact"
    )
    form.add_argument(
        "--merge", action="store_true", help="write a full checkpoint instead of an adapter"
    )


def run(args: argparse.Namespace, passthrough: Sequence[str]) -> int:
    """Writes the adapter or the checkpoint; returns the exit code."""
    if passthrough:
        raise CommandError("'prefmix export' takes nothing after '--'", exit_code=2)
    with one_sentence():
        _run(args)
    return 0


def _run(args: argparse.Namespace) -> None:
    subject = averaged(args)
    if subject.spec.base is None:
        raise CommandError(
            "the policies are full checkpoints, which 'prefmix average' averages, with the same "
            "flags",
            exit_code=2,
        )
    check_before(args, subject)
    # The reference is the base itself: its update is 0.
    shares = {p: share for p, share in subject.shares.items() if p in subject.spec.adapters}
    print(f"average  {subject.told}")
    if args.merge:
        _write_merged(args, subject, shares)
    elif shares:
        _write_adapter(args, subject, shares)
    else:
        raise CommandError(
            "only the reference has weight, which is the base itself and no adapter; use the base"
        )


def _write_merged(args: argparse.Namespace, subject: Averaged, shares: dict[Any, float]) -> None:
    from prefmix.weights.averages.checkpoint_average import average_bytes
    from prefmix.weights.averages.merged_checkpoint import write_merged
    from prefmix.weights.engines.progress import Progress

    (base,) = subject.spec.checkpoints
    own = subject.spec.defaults if subject.spec.defaults in subject.spec.adapters else None
    record = {"kind": "merged checkpoint", "base": base.model}
    with writing(args, subject, record, needed_bytes=average_bytes({base: 1.0})) as folder:
        num_bytes = write_merged(folder, base, shares, text_from=own, progress=Progress())
    print(
        f"wrote    {args.output}, {shown_bytes(num_bytes)} of parameters\n\n"
        f"Plain vLLM serves it: vllm serve {args.output.absolute()}"
    )


def _write_adapter(args: argparse.Namespace, subject: Averaged, shares: dict[Any, float]) -> None:
    from prefmix.mixing.checkpoints.lora import read_adapter
    from prefmix.weights.averages.adapter_sum import write_adapter_average
    from prefmix.weights.averages.copied_files import copy_text_files
    from prefmix.weights.engines.progress import Progress

    assert subject.spec.base is not None
    record: dict[str, Any] = {"kind": "adapter", "base": subject.spec.base}
    with writing(args, subject, record, needed_bytes=0) as folder:
        written = write_adapter_average(
            folder, shares, base=subject.spec.base, rank=args.rank, progress=Progress()
        )
        if subject.spec.defaults in subject.spec.adapters:
            copy_text_files(folder, read_adapter(subject.spec.defaults).folder)
        record |= {"rank": written.rank, "relative_errors": written.errors}
    worst = sorted(written.errors.items(), key=lambda item: -item[1])
    if worst[0][1] > 0:
        print(f"error    at most {worst[0][1]:.3g} of an update's Frobenius norm; the largest:")
        rows = [[f"         {module}", f"{error:.3g}"] for module, error in worst[:_SHOWN]]
        print(aligned(rows))
    else:
        print("error    none: the ranks are the sums of the policies' ranks")
    print(f"wrote    {args.output}, rank {written.rank}, {shown_bytes(written.num_bytes)}\n")
    print(_how_to_serve(args, subject.spec.base, written.rank))


def _how_to_serve(args: argparse.Namespace, base: str, rank: int) -> str:
    from vllm.config.lora import MaxLoRARanks

    allowed = sorted(typing.get_args(MaxLoRARanks))
    fitting = next((most for most in allowed if most >= rank), None)
    if fitting is None:
        return (
            f"Plain vLLM takes adapters up to rank {allowed[-1]}: give --rank {allowed[-1]}, or "
            "--merge. PEFT loads this one."
        )
    return (
        f"Plain vLLM serves it: vllm serve {base} --enable-lora --max-lora-rank {fitting} "
        f"--lora-modules {args.output.name}={args.output.absolute()}"
    )


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number}; expected 1 or more")
    return number

"""`prefmix average`: the parameter average of full checkpoints, as one checkpoint."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from prefmix.mixing.shown_value import shown_bytes
from prefmix.server.cli.averaging.shares import add_average_flags, averaged
from prefmix.server.cli.averaging.writing import check_before, one_sentence, writing
from prefmix.server.config.errors import CommandError

EPILOG = """\
Every tensor of the new checkpoint is the weighted sum of the policies' tensors, computed in
float32 and stored in their dtype. Tokenizer, chat template, special tokens and defaults of
generation are those that 'prefmix serve' would use (--defaults-from). The policies must be of one
architecture, tuned from one start. Policies that are adapters of a base: 'prefmix export'.

Example: prefmix average mixture.yaml --weights helpful=2,harmless=1 --output averaged
         vllm serve ./averaged"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `prefmix average`."""
    parser.epilog = EPILOG
    parser.usage = (
        "prefmix average [CONFIG.yaml] --profile NAME | --weights A=1,B=2 --output DIR [flags]"
    )
    add_average_flags(parser)


def run(args: argparse.Namespace, passthrough: Sequence[str]) -> int:
    """Writes the average; returns the exit code."""
    if passthrough:
        raise CommandError("'prefmix average' takes nothing after '--'", exit_code=2)
    with one_sentence():
        _run(args)
    return 0


def _run(args: argparse.Namespace) -> None:
    from prefmix.weights.averages.checkpoint_average import average_bytes, write_average
    from prefmix.weights.engines.progress import Progress

    subject = averaged(args)
    if subject.spec.base is not None:
        raise CommandError(
            "the policies are adapters of a base, which 'prefmix export' averages, with the same "
            "flags",
            exit_code=2,
        )
    check_before(args, subject)
    record: dict[str, Any] = {"kind": "checkpoint"}
    with writing(args, subject, record, needed_bytes=average_bytes(subject.shares)) as folder:
        num_bytes = write_average(
            folder,
            subject.shares,
            text_from=subject.spec.defaults,
            with_overrides=True,
            progress=Progress(),
        )
    print(
        f"average  {subject.told}\n"
        f"text     tokenizer and defaults of generation of {subject.spec.defaults.name!r}\n"
        f"wrote    {args.output}, {shown_bytes(num_bytes)} of parameters\n\n"
        f"Plain vLLM serves it: vllm serve {args.output.absolute()}"
    )

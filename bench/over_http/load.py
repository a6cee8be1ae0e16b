"""The load of `vllm bench serve`, run in a worker process."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class HttpLoad:
    """`vllm bench serve` in a worker process, so that it is imported once."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        from vllm.benchmarks.serve import add_cli_args
        from vllm.utils.argparse_utils import FlexibleArgumentParser

        self._parser = FlexibleArgumentParser()
        add_cli_args(self._parser)

    def answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Runs the words that `comparison.load_words` made; returns the figures."""
        from vllm.benchmarks.serve import main

        result = main(self._parser.parse_args(request["words"]))
        return {
            name: value for name, value in result.items() if isinstance(value, int | float | str)
        }

"""`vllm serve` without its console script, which does not run in the CPU wheel.

python -m prefmix.bench.over_http.plain_server [vLLM's flags]
"""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(words: Sequence[str]) -> None:
    """Serves until a signal ends it, as `vllm serve` does."""
    from vllm.entrypoints.cli.serve import ServeSubcommand
    from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
    from vllm.entrypoints.serve.utils.api_utils import cli_env_setup
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    cli_env_setup()
    parser = make_arg_parser(FlexibleArgumentParser(prog="prefmix.bench.over_http.plain_server"))
    args = parser.parse_args(list(words))
    validate_parsed_serve_args(args)
    ServeSubcommand.cmd(args)


if __name__ == "__main__":
    main(sys.argv[1:])

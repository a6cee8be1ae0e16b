"""schemathesis against a server's own description of itself.

    python -m resilience.scenarios.openapi_fuzz [--examples 100] [--record]

Inference routes are called with the API key, admin routes with the admin token.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from resilience.harness.asked_server import KEY, TOKEN
from resilience.harness.demo_server import DemoServer, running
from resilience.harness.report import publish, run_parser, table

SCHEMATHESIS = Path(sys.executable).with_name("schemathesis")
PHASES = "fuzzing"
_TIMEOUT_S = 3600
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "unsupported_method",
)


def run_schemathesis(
    demo: DemoServer, folder: Path, *, examples: int, seed: int = 0
) -> dict[str, Any]:
    """Runs schemathesis on inference and admin routes. Returns: the figures.

    Args: examples: the most requests of each operation.
    Raises: AssertionError with schemathesis' report of failures.
    """
    figures: dict[str, Any] = {"cases": 0}
    for side, token, selection in (
        ("inference", KEY, ("--exclude-path-regex", "^/admin")),
        ("admin", TOKEN, ("--include-path-regex", "^/admin")),
    ):
        report = folder / f"{side}.json"
        words = [
            *("run", f"{demo.url}/openapi.json", "--checks", ",".join(CHECKS)),
            *("--header", f"Authorization: Bearer {token}", *selection),
            *("--max-examples", str(examples), "--seed", str(seed), "--workers", "2"),
            *("--phases", PHASES, "--continue-on-failure", "--no-shrink"),
            *("--request-timeout", "60", "--suppress-health-check", "all", "--warnings", "off"),
            *("--generation-database", "none", "--generation-with-security-parameters", "false"),
            *("--report", "json", "--report-json-path", str(report), "--no-color"),
        ]
        run = subprocess.run(
            [str(SCHEMATHESIS), *words],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
        )
        assert run.returncode == 0, f"{side}:\n{run.stdout[-12_000:]}{run.stderr[-2000:]}"
        found = json.loads(report.read_text())
        operations = found["operations"]
        assert operations["tested"] == operations["selected"] > 0, operations
        figures[f"{side}_operations"] = operations["tested"]
        figures[f"{side}_cases"] = found["test_cases"]["generated"]
        figures["cases"] += found["test_cases"]["generated"]
    demo.settle()
    demo.assert_sound()
    return figures


def main() -> int:
    """Runs the command; returns the exit code."""
    parser = run_parser(__doc__)
    parser.add_argument("--examples", type=int, default=100, help="of each operation")
    args = parser.parse_args()
    with running() as demo, tempfile.TemporaryDirectory() as folder:
        figures = run_schemathesis(demo, Path(folder), examples=args.examples, seed=args.seed)
    publish("openapi_fuzz", table([("schemathesis", ""), *figures.items()]), figures,
            record=args.record)  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())

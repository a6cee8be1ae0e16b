"""Runs the unit tests beside the tests on engines: they compute while those wait for servers.

python scripts/all_tests.py     # a part of `make test`; the unit tests' output comes at the end
"""

from __future__ import annotations

import subprocess
import sys
import tempfile


def main() -> int:
    """Runs both. Returns: the exit code, that of the engines' tests if both failed."""
    with tempfile.TemporaryFile("w+") as output:
        unit = subprocess.Popen(
            ["nice", "-n", "5", "make", "--no-print-directory", "test-unit"],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        print("First engines and servers; unit tests run beside them, in the end is their output.")
        sys.stdout.flush()
        engine = subprocess.Popen(["make", "--no-print-directory", "test-engine"])
        try:
            codes = [engine.wait(), unit.wait()]
        except KeyboardInterrupt:  # a terminal sends it to all
            codes = [engine.wait(), unit.wait(), 130]
        output.seek(0)
        sys.stdout.write(output.read())
    return next((code for code in codes if code), 0)


if __name__ == "__main__":
    sys.exit(main())

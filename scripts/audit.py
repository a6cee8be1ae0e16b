"""Looks the installed packages up in the index's database of known vulnerabilities.

    .venv/bin/python scripts/audit.py

The exit code is 1 if a package has a vulnerability that requirements/accepted.toml does not name.
If the database cannot be reached (offline, or a mirror without one), the script says so and ends
with code 0. It installs pip-audit in an environment of its own, .prefmix/audit.
"""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
import tempfile
import tomllib
import venv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TOOL = ROOT / ".prefmix" / "audit"
PINS = ROOT / "requirements" / "audit.txt"
ACCEPTED = ROOT / "requirements" / "accepted.toml"
OWN = "prefmix"
PROBE = "pip"
"""A package that every database knows, by which one query tells if there is a database."""
TIMEOUT_S = 300


class UnavailableError(Exception):
    """The database, or the tool that asks it, cannot be reached."""


def problems(report: Mapping[str, Any], accepted: Sequence[str]) -> tuple[list[str], list[str]]:
    """Returns (a line for each vulnerability that is not accepted, packages not looked up).

    Args:
      report: the JSON report of pip-audit.
      accepted: ids of accepted vulnerabilities.
    """
    found, skipped = [], []
    for package in report["dependencies"]:
        if "skip_reason" in package:
            skipped.append(str(package["name"]))
        for entry in package.get("vulns", []):
            names = {entry["id"], *entry.get("aliases", [])}
            if not names & set(accepted):
                fixed = ", ".join(entry.get("fix_versions", [])) or "no release"
                found.append(
                    f"{package['name']} {package['version']}: {', '.join(sorted(names))}; "
                    f"fixed in {fixed}"
                )
    return found, skipped


def audit(pins: Sequence[str]) -> dict[str, Any]:
    """Returns pip-audit's report. Args: pins: NAME==VERSION. Raises: UnavailableError."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("".join(f"{pin}\n" for pin in pins))
        file.flush()
        command = [str(TOOL / "bin" / "pip-audit"), "-r", file.name, "--no-deps", "--disable-pip"]
        run = _run([*command, "-f", "json", "--progress-spinner", "off", "--timeout", "10"])
    try:
        report: dict[str, Any] = json.loads(run.stdout)
    except ValueError:
        raise UnavailableError(_last_line(run.stderr)) from None
    return report


def install() -> None:
    """Makes the tool's environment unless it exists. Raises: UnavailableError."""
    stamp = TOOL / "pins.txt"
    wanted = PINS.read_text(encoding="utf-8")
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted:
        return
    venv.create(TOOL, clear=True, with_pip=True)
    run = _run([str(TOOL / "bin" / "python"), "-m", "pip", "install", "-q", "-r", str(PINS)])
    if run.returncode != 0:
        raise UnavailableError(f"cannot install pip-audit: {_last_line(run.stderr)}")
    stamp.write_text(wanted, encoding="utf-8")


def installed() -> list[str]:
    """NAME==VERSION of every installed package, without the mark of a local build."""
    pins = {
        f"{each.metadata['Name']}=={each.version.partition('+')[0]}"
        for each in importlib.metadata.distributions()
    }
    return sorted(pin for pin in pins if not pin.startswith(f"{OWN}=="))


def main() -> int:
    """Runs the audit; returns the exit code."""
    accepted = tomllib.loads(ACCEPTED.read_text(encoding="utf-8"))["vulnerabilities"]
    pins = installed()
    try:
        install()
        if problems(audit([pin for pin in pins if pin.startswith(f"{PROBE}==")]), [])[1]:
            raise UnavailableError("the package index has no database of vulnerabilities")
        found, skipped = problems(audit(pins), list(accepted))
    except UnavailableError as error:
        print(f"audit: NOT DONE, {len(pins)} packages were not looked up: {error}")
        return 0
    if skipped:
        print(f"audit: not in the database, so not looked up: {', '.join(skipped)}")
    for line in found:
        print(f"audit: {line}", file=sys.stderr)
    looked_up = len(pins) - len(skipped)
    print(f"audit: {looked_up} packages looked up, {len(found)} known vulnerabilities")
    return 1 if found else 0


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UnavailableError(str(error)) from None


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no message"])[-1][:200]


if __name__ == "__main__":
    sys.exit(main())

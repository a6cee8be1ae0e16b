"""Checks the licence of every installed package; fails on those that nobody has accepted.

    .venv/bin/python scripts/licences.py [--list]

Copyleft, proprietary and unknown licences must be in requirements/accepted.toml, with a reason.
"""

from __future__ import annotations

import argparse
import fnmatch
import importlib.metadata
import re
import sys
import tomllib
from collections.abc import Iterable, Mapping
from email.message import Message
from pathlib import Path

ACCEPTED = Path(__file__).resolve().parents[1] / "requirements" / "accepted.toml"
OWN = "prefmix"

_COPYLEFT = re.compile(
    r"GPL|GNU|MPL|Mozilla|EPL|Eclipse|CDDL|EUPL|SSPL|OSL|CPAL|CeCILL|CC-BY-(SA|NC|ND)|BUSL", re.I
)
_CLOSED = re.compile(r"proprietary|nvidia|end user licen[cs]e|commercial", re.I)
_VAGUE = ("OSI Approved", "DFSG approved", "License")
_MAX_CHARS = 100
"""A longer text is a whole licence, not its name."""


def licence_of(metadata: Message) -> str:
    """The licence that a package's metadata names; "" if it names none."""
    if expression := metadata.get("License-Expression"):
        return str(expression)
    classifiers = [
        text.rpartition(" :: ")[2]
        for text in metadata.get_all("Classifier") or []
        if text.startswith("License ::")
    ]
    named = [text for text in classifiers if text not in _VAGUE]
    free_text = (metadata.get("License") or "").strip()
    first_line = free_text.partition("\n")[0].strip()
    if free_text == first_line or not named:
        named += [first_line] if len(first_line) <= _MAX_CHARS else []
    return " / ".join(dict.fromkeys(filter(None, named)))


def doubt(licence: str) -> str | None:
    """The reason for which a licence must be accepted by hand; None if there is none."""
    if not licence:
        return "unknown"
    if all(_COPYLEFT.search(choice) for choice in re.split(r"\bOR\b", licence)):
        return "copyleft"
    return "proprietary" if _CLOSED.search(licence) else None


def unaccepted(licences: Mapping[str, str], accepted: Iterable[str]) -> list[str]:
    """A line for each package whose licence is in doubt and that no pattern names."""
    patterns = [pattern.lower() for pattern in accepted]
    return [
        f"{name}: {why} ({licence or 'no licence in its metadata'})"
        for name, licence in licences.items()
        if (why := doubt(licence)) is not None
        and not any(fnmatch.fnmatch(name.lower(), pattern) for pattern in patterns)
    ]


def installed() -> dict[str, str]:
    """Name -> licence of every installed package."""
    found = {
        str(each.metadata["Name"]): licence_of(each.metadata)  # type: ignore[arg-type]
        for each in importlib.metadata.distributions()
    }
    return {name: found[name] for name in sorted(found, key=str.lower) if name != OWN}


def main() -> int:
    """Checks the licences; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--list", action="store_true", help="print every package's licence")
    args = parser.parse_args()
    licences = installed()
    if args.list:
        for name, licence in licences.items():
            print(f"{name:<40} {licence or '?'}")
    accepted = tomllib.loads(ACCEPTED.read_text(encoding="utf-8"))["licences"]
    problems = unaccepted(licences, accepted)
    for problem in problems:
        print(f"licences: {problem}", file=sys.stderr)
    if problems:
        print(
            f"licences: name them in {ACCEPTED.name} with a reason, or do without", file=sys.stderr
        )
        return 1
    print(f"licences: {len(licences)} packages, none in doubt that {ACCEPTED.name} does not name")
    return 0


if __name__ == "__main__":
    sys.exit(main())

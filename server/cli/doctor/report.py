"""The findings of `prefmix doctor`, as a table or as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from prefmix.server.config.errors import CommandError
from prefmix.weights.store.text_tables import aligned

Status = Literal["ok", "warning", "error"]
_WORST: tuple[Status, ...] = ("error", "warning", "ok")


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report."""

    check: str
    status: Status
    found: str
    """One sentence, or a few words."""


class Report:
    """Findings in the order in which they are made."""

    def __init__(self, on_finding: Callable[[Finding], None] = lambda finding: None) -> None:
        """Args: on_finding: called with each finding."""
        self.findings: list[Finding] = []
        self._on_finding = on_finding

    def add(self, check: str, status: Status, found: str) -> None:
        """Adds a finding; a fault that another check has found in the same words is told once."""
        finding = Finding(check, status, " ".join(found.split()))
        told = {each.found for each in self.findings if each.status == status}
        if status != "ok" and finding.found in told:
            return
        self.findings.append(finding)
        self._on_finding(finding)

    def ok(self, check: str, found: str) -> None:
        """Adds that all is well."""
        self.add(check, "ok", found)

    @contextmanager
    def errors(self, check: str) -> Iterator[None]:
        """Makes a refusal of the block a finding, with which the checks go on."""
        try:
            yield
        # Refusals of the start are sentences, each with its remedy; ValueError is their base.
        except (CommandError, ImportError, ValueError, OSError) as error:
            self.add(check, "error", str(error) or type(error).__name__)

    @property
    def status(self) -> Status:
        """The worst status of all findings."""
        found = {finding.status for finding in self.findings}
        return next((status for status in _WORST if status in found), "ok")

    def table(self) -> str:
        """One line a finding."""
        rows = [[each.check, each.status, each.found] for each in self.findings]
        return aligned([["check", "status", "found"], *rows], num_left=3)

    def json(self) -> str:
        """One JSON object: `status`, and `checks` with their `check`, `status` and `found`."""
        checks = [
            {"check": each.check, "status": each.status, "found": each.found}
            for each in self.findings
        ]
        return json.dumps({"status": self.status, "checks": checks}, indent=2)

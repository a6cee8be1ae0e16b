"""Marks, the sizes of both forms, and the count of hostile inputs that ends every run."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, Verbosity, settings

from resilience.harness import tally
from resilience.harness.scale import scaled

settings.register_profile(
    "resilience",
    max_examples=scaled(short=150, full=1500),
    deadline=None,
    database=None,
    verbosity=Verbosity.normal,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("resilience")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/resilience" in str(item.path):
            item.add_marker(pytest.mark.resilience)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Prints the count of hostile inputs and the tables of the longer runs."""
    if tally.HOSTILE:
        terminalreporter.section("hostile inputs")
        for line in tally.table():
            terminalreporter.line(line)
    for report in tally.REPORTS:
        terminalreporter.line("")
        terminalreporter.line(report)

"""Groups of tests that one worker runs together, and the order in which they begin.

pytest-xdist's own marks for groups need the ids of tests as an older pytest made them.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

from xdist.scheduler import LoadScopeScheduling

ROOT = Path(__file__).resolve().parents[2]

BROWSER = r"console/test_page_"
"""Tests of the console before stand-ins, which share a browser."""

NO_DEVICE = r"unit/mixing/models/test_\w*gpu_pass"
"""Tests of passes for GPUs that are not there, which share a process."""

VLLM = "unit tests that import vLLM"
"""The group of files in tests/unit that use the fixture `vllm`: one process imports it."""

LONGEST_FIRST = (
    r"/test_runner_v2\.py::.*trunk",
    r"/test_runner_v2\.py::.*checkpoints",
    r"/test_runner_v2\.py::.*prompts",
    r"processes/test_two_nodes\.py",
    r"server/test_faults\.py",
    r"engine/trunk/test_trunk\.py",
    r"engine/test_layouts\.py",
    r"processes/test_documents\.py",
    r"server/test_lifecycle\.py",
    r"processes/test_api_processes\.py",
    r"server/test_admin_live\.py",
    r"console/test_console\.py",
    r"server/test_fit\.py",
    BROWSER,
    VLLM,
    r"unit/mixing/kernels/",
    NO_DEVICE,
    r"unit/weights/(fit|reward_fit|evaluation|intervals)/",
    r"unit/test_house\.py",
)
"""Patterns of ids. What matches one is a group, and goes before all that match a later one.

The first groups of tests/server and tests/engine make workers of servers and of engines.
"""

ALONE = r"two_tensor_parallel_ranks"
"""Two ranks keep two cores busy, even while they wait for one another: last, beside nothing."""


class GroupScheduling(LoadScopeScheduling):
    """Hands a worker one group after the other.

    Servers are forks of a process that has imported vLLM, engines run in the worker itself. A
    worker takes what it has begun with as long as there is some, since the other kind costs it
    another import of vLLM.
    """

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid)

    def _assign_work_unit(self, node: Any) -> None:
        begun = {_kind(unit) for unit in self.assigned_work[node].values()}
        same = (group for group, unit in self.workqueue.items() if _kind(unit) in begun)
        if (group := next(same, None)) is not None:
            self.workqueue.move_to_end(group, last=False)
        super()._assign_work_unit(node)


def _kind(unit: dict[str, bool]) -> str:
    """The folder of a group's tests, such as "server"."""
    return next(iter(unit)).split("/")[1]


def group_of(nodeid: str) -> str:
    """A file, whose tests share what they start, or several, or a part of one."""
    for pattern in (*LONGEST_FIRST, ALONE):
        if _matches(pattern, nodeid):
            return pattern
    return nodeid.partition("::")[0]


def place_of(nodeid: str) -> int:
    """Where a test's group comes in the order."""
    if _matches(ALONE, nodeid):
        return len(LONGEST_FIRST) + 1
    places = (at for at, pattern in enumerate(LONGEST_FIRST) if _matches(pattern, nodeid))
    return next(places, len(LONGEST_FIRST))


def _matches(pattern: str, nodeid: str) -> bool:
    if pattern == VLLM:
        return needs_vllm(nodeid.partition("::")[0])
    return re.search(pattern, nodeid) is not None


@cache
def needs_vllm(file: str) -> bool:
    """True for a file of unit tests with the fixture `vllm`."""
    fixture = re.compile(r'usefixtures\("vllm"\)|\bvllm: None')
    return "unit/" in file and bool(fixture.search((ROOT / file).read_text(encoding="utf-8")))

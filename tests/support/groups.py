"""Groups of tests that one worker runs together, and the order in which they begin.

pytest-xdist's own marks for groups need the ids of tests as an older pytest made them.
"""

from __future__ import annotations

import re

from xdist.scheduler import LoadScopeScheduling

BROWSER = r"console/test_page_"
"""Unit tests that share a browser."""

LONGEST_FIRST = (
    r"/test_runner_v2\.py::.*trunk",
    r"/test_runner_v2\.py::.*checkpoints",
    r"/test_runner_v2\.py::.*prompts",
    r"processes/test_two_nodes\.py",
    r"server/test_faults\.py",
    r"processes/test_documents\.py",
    r"server/test_lifecycle\.py",
    r"processes/test_api_processes\.py",
    r"server/test_admin_live\.py",
    BROWSER,
    r"engine/trunk/test_trunk\.py",
    r"engine/test_layouts\.py",
    r"server/test_console\.py",
    r"server/test_fit\.py",
)
"""Patterns of ids. What matches one is a group, and goes before all that match a later one."""

ALONE = r"two_tensor_parallel_ranks"
"""Two ranks keep two cores busy, even while they wait for one another: last, beside nothing."""

VLLM = (
    r"/test_(lora|engine_args|engine_flags|stream_errors|request_bodies"
    r"|request_limits|request_tokens|grammar_limits|prompt_parameters|cpu_dtype|cpu_rotary|vllm_log"
    r"|models|shared_trunk|member_quantisation|mixture_flags|begun_blocks)\.py"
)
"""Unit tests that import vLLM: together, so that one process does."""

SHARED = (r"unit/test_house\.py", r"kernels/test_wide_addresses\.py")
"""Unit tests of one file that share work: reading all sources, one import for many forks."""


class GroupScheduling(LoadScopeScheduling):
    """Hands a worker one group after the other."""

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid)


def group_of(nodeid: str) -> str:
    """A file of engines or servers, whose tests share them, or a part of one; else one test."""
    for pattern in (*LONGEST_FIRST, ALONE, VLLM, *SHARED):
        if re.search(pattern, nodeid):
            return pattern
    return nodeid if "tests/unit/" in nodeid else nodeid.partition("::")[0]


def place_of(nodeid: str) -> int:
    """Where a test's group comes in the order."""
    if re.search(ALONE, nodeid):
        return len(LONGEST_FIRST) + 1
    places = (at for at, pattern in enumerate(LONGEST_FIRST) if re.search(pattern, nodeid))
    return next(places, len(LONGEST_FIRST))

"""A contestant's process reports why it cannot start, and ends with its parent."""

from __future__ import annotations

import pytest

from prefmix.bench.contestants.worker import Worker
from prefmix.server.config.errors import CommandError

SEPARATE_ENGINES = "prefmix.bench.contestants.implementations:SeparateEngines"


def test_a_contestant_that_cannot_start_says_why() -> None:
    worker = Worker({"kind": "prefmix.bench.contestants.implementations:Nobody"})
    with pytest.raises(CommandError, match="no attribute 'Nobody'"):
        worker.wait_started()
    assert worker.is_over


def test_a_request_that_fails_says_why() -> None:
    worker = Worker({"kind": SEPARATE_ENGINES, "models": []})
    assert worker.wait_started()["num_threads"] >= 1
    with pytest.raises(CommandError, match="KeyError: 'job'"):
        worker.ask({})
    assert worker.is_over


def test_closing_ends_the_process_which_had_the_threads_it_was_given() -> None:
    settings = {
        "kind": SEPARATE_ENGINES,
        "models": [],
        "num_threads": 1,
    }
    worker = Worker(settings)
    assert worker.wait_started()["num_threads"] == 1
    assert not worker.is_over
    worker.close()
    assert worker.is_over

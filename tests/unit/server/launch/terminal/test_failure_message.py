"""The sentence for a server that failed: the first cause, one line, our remedy."""

from __future__ import annotations

import pytest

from prefmix.server.launch.terminal.failure_message import failure_message


@pytest.mark.parametrize(
    ("error", "logged", "message"),
    [
        (RuntimeError("Engine core initialization failed"), "OSError: gone", "down: OSError: gone"),
        (RuntimeError("Engine core initialization failed"), None, "down: Engine core"),
        (ValueError("two\n  lines"), "OSError: gone", "down: two lines"),
        (KeyError(), None, "down: KeyError"),
    ],
)
def test_the_first_cause_is_named_in_one_line(
    error: Exception, logged: str | None, message: str
) -> None:
    assert failure_message("down", error, logged_cause=logged).startswith(message)


def test_our_remedy_stands_in_place_of_vllms() -> None:
    error = ValueError("No available memory for the cache blocks. Try increasing something else.")
    message = failure_message("down", error, logged_cause=None)
    assert message.startswith("down: No available memory for the cache blocks; a mixture keeps")
    assert "--kv-cache-memory-bytes" in message
    assert "something else" not in message


def test_a_long_cause_is_cut() -> None:
    message = failure_message("down", ValueError("x" * 5000), logged_cause=None)
    assert message == f"down: {'x' * 1000}..."

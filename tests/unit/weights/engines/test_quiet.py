"""Standard error while an engine starts: held back, shown if the start fails."""

from __future__ import annotations

import io
import logging
import os
import sys
import warnings

import pytest

from prefmix.weights.engines.quiet import held_back_stderr


def say_everything() -> None:
    print("said by Python", file=sys.stderr)
    os.write(2, b"said by C++\n")
    warnings.warn("said by a library", stacklevel=1)


def test_what_is_written_meanwhile_is_held_back(capfd: pytest.CaptureFixture[str]) -> None:
    with held_back_stderr():
        say_everything()
    print("after", file=sys.stderr)
    assert capfd.readouterr().err == "after\n"


def test_a_failure_shows_it(capfd: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        with held_back_stderr():
            say_everything()
            raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011 - any
        fail()
    shown = capfd.readouterr().err
    assert "said by Python\n" in shown
    assert "said by C++\n" in shown


def test_an_error_that_says_everything_shows_nothing_else(
    capfd: pytest.CaptureFixture[str],
) -> None:
    def fail(error: Exception) -> None:
        with held_back_stderr(KeyError):
            say_everything()
            raise error

    with pytest.raises(KeyError):
        fail(KeyError("all"))
    assert capfd.readouterr().err == ""
    with pytest.raises(LookupError):
        fail(LookupError("less"))
    assert "said by Python\n" in capfd.readouterr().err


def test_a_notebooks_standard_error_is_held_back_too(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A logger that is set up meanwhile writes to the notebook's stream afterwards."""
    notebook = io.StringIO()
    monkeypatch.setattr(sys, "stderr", notebook)
    logger = logging.getLogger("prefmix.test_quiet")
    with held_back_stderr():
        handler = logging.StreamHandler()
        say_everything()
    assert sys.stderr is notebook
    assert notebook.getvalue() == ""
    logger.addHandler(handler)
    logger.propagate = False
    logger.warning("later")
    logger.removeHandler(handler)
    assert notebook.getvalue() == "later\n"
    assert capfd.readouterr().err == ""

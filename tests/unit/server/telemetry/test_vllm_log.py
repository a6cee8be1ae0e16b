"""vLLM's log: what a client sends neither fills it nor leaves a traceback."""

from __future__ import annotations

import logging
import sys

import pytest

from prefmix.server.http.errors import MAX_MESSAGE_CHARS
from prefmix.server.telemetry import vllm_log

pytestmark = pytest.mark.usefixtures("vllm")

ROUTE = "vllm.entrypoints.openai.completion.serving"


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The lines that vLLM's log gets."""
    written: list[str] = []

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            written.append(self.format(record))

    monkeypatch.setattr(logging.getLogger("vllm"), "handlers", [Kept()])
    vllm_log.set_up()
    return written


def log_error(name: str, error: Exception) -> None:
    try:
        raise error
    except type(error):
        logging.getLogger(name).error("Error in a stream.", exc_info=sys.exc_info())


def test_a_warning_is_cut(lines: list[str]) -> None:
    logging.getLogger("vllm.renderers.hf").warning("refused: %s", "x" * 10**6)
    logging.getLogger("vllm.renderers.hf").warning("%d%% of %s", 5, "half \ud800")
    assert len(lines[0]) <= MAX_MESSAGE_CHARS
    assert lines[0].startswith("refused: xxx")
    assert lines[1] == "5% of half \\ud800"
    logging.getLogger("vllm.renderers.hf").warning("%s", "a\x1b[2J\rb\x9b1m\n\té\u65e5")
    assert lines[2] == "a\\x1b[2J\\rb\\x9b1m\n\té\u65e5"


def test_requests_are_logged_in_full_for_who_asks_for_it(lines: list[str]) -> None:
    logger = logging.getLogger("vllm.entrypoints.serve.utils.request_logger")
    prompt = "x" * 10_000
    logger.handle(logger.makeRecord(logger.name, logging.INFO, "", 0, "%s", (prompt,), None))
    assert lines == [prompt]


def test_a_clients_error_has_no_traceback(lines: list[str]) -> None:
    from vllm.exceptions import VLLMValidationError

    log_error(ROUTE, VLLMValidationError("Unimplemented keys"))
    assert lines == []
    log_error(ROUTE, RuntimeError("ours"))
    asked_for = "vllm.entrypoints.serve.exception_handling.handlers.exception"
    log_error(asked_for, VLLMValidationError("no"))
    assert ["Traceback" in line for line in lines] == [True, True]

"""A chat template's reason, as it is logged, shows no system text of a policy."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from prefmix.server.api.prompts.hidden_texts import hide_in_log, rendering


@pytest.fixture
def log() -> Iterator[logging.Logger]:
    """The log of vLLM's renderer, without what the test adds to it."""
    logger = logging.getLogger("vllm.renderers.hf")
    before = list(logger.filters)
    yield logger
    logger.filters[:] = before


def test_vllm_names_the_log_of_its_renderer_so(log: logging.Logger, vllm: None) -> None:
    from vllm.renderers import hf

    assert hf.logger.name == log.name


def test_a_templates_reason_that_shows_a_text_is_not_logged(log: logging.Logger) -> None:
    written: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: written.append(record.getMessage())  # type: ignore[method-assign]
    log.addHandler(handler)
    try:
        hide_in_log(lambda: ["Be kind,\nalways."])
        for reason in ("cannot read Be kind,\nalways.", r"got 'Be kind,\nalways.'", "no such role"):
            log.warning("Chat template rejected the request: %s", ValueError(reason))
    finally:
        log.removeHandler(handler)
    assert len(written) == 3
    assert "kind" not in "".join(written)
    assert written[2] == "Chat template rejected the request: no such role"


def test_a_text_is_hidden_while_it_is_rendered_and_while_it_is_in_force(
    log: logging.Logger,
) -> None:
    """A request may have a text that is no policy's any more."""
    written: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: written.append(record.getMessage())  # type: ignore[method-assign]
    log.addHandler(handler)
    in_force = ["Be new."]
    try:
        hide_in_log(lambda: in_force)
        with rendering("Be old."), rendering("Be old."), rendering(None):
            log.warning("cannot read Be old.")
        log.warning("cannot read Be new.")
        in_force.clear()
        log.warning("cannot read Be old. nor Be new.")
    finally:
        log.removeHandler(handler)
    assert ["Be old" in each or "Be new" in each for each in written] == [False, False, True]

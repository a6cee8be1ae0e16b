"""Loggers of the server's own lines, which vLLM's log level does not touch."""

from __future__ import annotations

import logging
import sys


def to_stderr(logger: logging.Logger, formatter: logging.Formatter) -> None:
    """Sends a logger's lines to stderr and nowhere else; a later call replaces an earlier one."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    logger.handlers = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False

"""Loggers of the server's own lines, which vLLM's log level does not touch."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any


class JsonLines(logging.Formatter):
    """A JSON object a line: time, logger and the record's `fields`."""

    def format(self, record: logging.LogRecord) -> str:
        """Makes the line."""
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        stamp = f"{moment}.{int(record.msecs):03d}Z"
        fields: dict[str, Any] = record.__dict__["fields"]
        return json.dumps({"time": stamp, "logger": record.name, **fields})


def to_stderr(logger: logging.Logger, formatter: logging.Formatter) -> None:
    """Sends a logger's lines to stderr and nowhere else; a later call replaces an earlier one."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    logger.handlers = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False

"""Log lines of tests, and of the processes that they start."""

from __future__ import annotations

import logging
from typing import TextIO

import structlog


def plain_logs(level: int = logging.NOTSET, stream: TextIO | None = None) -> None:
    """What structlog does by default, with tracebacks as Python prints them. Its own show all that each frame holds,
    which takes the event loop seconds for each failed attempt on a busy machine. `stream`: None is standard output.
    """
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.StackInfoRenderer(),
            structlog.dev.set_exc_info,
            structlog.processors.TimeStamper(fmt="%Y-%m-%d %H:%M:%S", utc=False),
            structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(stream),
    )

"""Log lines that can be found by their task (T8) and give nothing away (T10).

structlog and the standard library's loggers go the same way: one handler on the root logger, one chain of processors.
Every line inside a hop has `trace_id`, `span_id`, `task_id`, `mode` and `persona`; inside a recording span elsewhere it
has the first two. Credentials are taken out of every line (`register_secret` for those that the program knows).

Inside a hop of a restricted task, a handler's or a library's line may quote what the task is about, in its text and in
its values. Of such a line remains that it was written: its level, its logger, its place in the trace, and the type and
the place of an exception. tracekit's own loggers write constant texts; these stay, with numbers, booleans, and text
under a few names that only ever hold identifiers.
"""

from __future__ import annotations

import logging
import sys
from typing import Any, Final, Literal, TextIO

import structlog
from opentelemetry import trace
from structlog.stdlib import ExtraAdder, ProcessorFormatter
from structlog.types import EventDict, WrappedLogger

from tracekit.tracing.hop import current_hop
from tracekit.tracing.secrets import redact_text, redact_value, register_secret

__all__ = ["RESTRICTED", "LogFormat", "LogLevel", "configure_logging", "json_formatter", "register_secret"]

LogFormat = Literal["json", "console"]
LogLevel = Literal["debug", "info", "warning", "error"]

RESTRICTED: Final = "[restricted]"

_PLACE: Final = frozenset({"timestamp", "level", "logger", "trace_id", "span_id", "task_id", "mode", "persona"})
_QUIETER: Final = {
    # A line for each request of a handler says no more than its span, and has the whole address in it.
    "httpx": logging.WARNING,
    # What uvicorn says of starting and stopping, tracekit says itself.
    "uvicorn.error": logging.WARNING,
    # Each try of each batch; the shipper says it once, when it begins and when it is over.
    "opentelemetry.exporter": logging.CRITICAL,
}
# Names under which tracekit's own lines hold identifiers and kinds, never content.
_IDENTIFIERS: Final = frozenset(
    {"worker", "state", "kind", "outcome", "error_type", "model", "provider", "capability", "listener", "status"}
)


def configure_logging(format: LogFormat = "json", level: LogLevel = "info", *, stream: TextIO | None = None) -> None:
    """Sends every log line of the process to `stream` (default: stderr), as JSON or for a person to read. May be called
    again; what others have put on the root logger stays.
    """
    if format == "json":
        formatter = json_formatter()
    else:
        console = structlog.dev.ConsoleRenderer(
            colors=(stream or sys.stderr).isatty(), exception_formatter=structlog.dev.plain_traceback
        )
        formatter = _formatter(_redact, console, _redact_rendered)
    handler = _Handler(stream)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    for former in [former for former in root.handlers if isinstance(former, _Handler)]:
        root.removeHandler(former)
    root.addHandler(handler)
    number = logging.getLevelNamesMapping()[level.upper()]
    root.setLevel(number)
    for name, least in _QUIETER.items():
        logging.getLogger(name).setLevel(max(number, least))
    structlog.configure(
        processors=[structlog.contextvars.merge_contextvars, ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )


def json_formatter() -> ProcessorFormatter:
    """What makes a line of JSON of any log record, with its place, redacted."""
    return _formatter(structlog.processors.format_exc_info, _redact, structlog.processors.JSONRenderer(sort_keys=True))


def _formatter(*render: structlog.types.Processor) -> ProcessorFormatter:
    return ProcessorFormatter(
        processors=[
            structlog.stdlib.add_log_level,
            structlog.stdlib.add_logger_name,
            ProcessorFormatter.remove_processors_meta,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.StackInfoRenderer(),
            _place,
            _restrict,
            *render,
        ],
        foreign_pre_chain=[ExtraAdder()],
    )


class _Handler(logging.StreamHandler[TextIO]):
    """Ours, so that a second call can tell it from others'."""


def _place(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Where the line was written, in its trace. Nothing that a caller has bound overrides it."""
    here = trace.get_current_span()
    place = here.get_span_context()
    hop = current_hop()
    if hop:
        event.update(task_id=hop.task_id, mode=hop.mode, persona=hop.persona, trace_id=hop.trace_id)
        inside = here.is_recording() and trace.format_trace_id(place.trace_id) == hop.trace_id
        event["span_id"] = trace.format_span_id(place.span_id) if inside else hop.span_id
    elif here.is_recording():
        event["trace_id"] = trace.format_trace_id(place.trace_id)
        event["span_id"] = trace.format_span_id(place.span_id)
    return event


def _restrict(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    hop = current_hop()
    if hop is None or not hop.restricted:
        return event
    error = _exception(event.pop("exc_info", None))
    event.pop("stack", None)
    logger = str(event.get("logger", ""))
    ours = logger == "tracekit" or logger.startswith("tracekit.")
    kept: EventDict = {name: value for name, value in event.items() if name in _PLACE}
    kept["event"] = event.get("event") if ours else RESTRICTED
    if ours:
        kept.update(
            (name, value)
            for name, value in event.items()
            if isinstance(value, bool | int | float) or (name in _IDENTIFIERS and isinstance(value, str))
        )
    if error is not None:
        kept["error_type"] = type(error).__qualname__
        kept["error_at"] = _raised_at(error)
    return kept


def _exception(exc_info: Any) -> BaseException | None:
    if isinstance(exc_info, BaseException):
        return exc_info
    if isinstance(exc_info, tuple) and isinstance(exc_info[1], BaseException):
        return exc_info[1]
    return sys.exc_info()[1] if exc_info else None


def _raised_at(error: BaseException) -> str:
    traceback = error.__traceback__
    if traceback is None:
        return ""
    while traceback.tb_next:
        traceback = traceback.tb_next
    code = traceback.tb_frame.f_code
    return f"{code.co_filename.rpartition('/')[2]}:{traceback.tb_lineno} in {code.co_name}"


def _redact(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    return {name: value if name == "exc_info" else redact_value(name, value) for name, value in event.items()}


def _redact_rendered(_: WrappedLogger, __: str, line: Any) -> str:
    # A console's stack trace is made while rendering.
    return redact_text(str(line))

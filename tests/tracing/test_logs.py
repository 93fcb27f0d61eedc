"""T8: every log line inside a hop says where it belongs. T10: and gives nothing away."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from opentelemetry import trace

from tests.support.logs import plain_logs
from tests.tracing.hops import hop
from tracekit.envelope import DataTier
from tracekit.tracing.hop import HopScope, hop_scope
from tracekit.tracing.logs import RESTRICTED, configure_logging, register_secret
from tracekit.tracing.sdk import configure_tracing
from tracekit.tracing.secrets import REDACTED

PRIVATE = "renees-diagnosis"
handler_log = logging.getLogger("somebodys.handler")
our_log = structlog.stdlib.get_logger("tracekit.workers")


class Lines:
    """What was logged."""

    def __init__(self) -> None:
        self.stream = io.StringIO()

    @property
    def text(self) -> str:
        return self.stream.getvalue()

    def all(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text.splitlines()]

    def one(self) -> dict[str, Any]:
        (line,) = self.all()
        return line


@pytest.fixture
def lines() -> Iterator[Lines]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    logged = Lines()
    configure_logging("json", "info", stream=logged.stream)
    yield logged
    root.handlers[:] = handlers
    root.setLevel(level)
    plain_logs()


def place(scope: HopScope, span_id: str | None = None) -> dict[str, Any]:
    return {
        "trace_id": scope.trace_id,
        "span_id": span_id or scope.span_id,
        "task_id": scope.task_id,
        "mode": scope.mode,
        "persona": scope.persona,
    }


def placed(line: dict[str, Any]) -> dict[str, Any]:
    return {name: line[name] for name in ("trace_id", "span_id", "task_id", "mode", "persona")}


async def test_t8_lines_have_their_place_in_handlers_tasks_and_threads(lines: Lines) -> None:
    async def in_task() -> None:
        our_log.info("task")

    with hop_scope(hop()) as scope:
        our_log.info("handler", lamp="kitchen")
        handler_log.warning("stdlib %s", "line", extra={"lamp": "hall"})
        await asyncio.create_task(in_task())
        await asyncio.to_thread(our_log.info, "thread")
        await asyncio.to_thread(handler_log.info, "stdlib thread")
    logged = lines.all()
    assert [line["event"] for line in logged] == ["handler", "stdlib line", "task", "thread", "stdlib thread"]
    assert all(placed(line) == place(scope) for line in logged)
    assert (logged[0]["lamp"], logged[1]["lamp"]) == ("kitchen", "hall")
    assert (logged[1]["level"], logged[1]["logger"]) == ("warning", "somebodys.handler")
    assert all("timestamp" in line for line in logged)


async def test_t8_two_hops_at_once_do_not_mix(lines: Lines) -> None:
    both = asyncio.Barrier(2)

    async def handler(scope: HopScope) -> None:
        with hop_scope(scope):
            await both.wait()
            our_log.info("here", task=scope.task_id)
            await both.wait()
            await asyncio.to_thread(our_log.info, "there", task=scope.task_id)

    await asyncio.gather(handler(hop()), handler(hop()))
    assert len(lines.all()) == 4
    assert all(line["task_id"] == line["task"] for line in lines.all())


def test_t8_inside_a_recording_span_the_line_names_that_span(lines: Lines) -> None:
    tracer = configure_tracing(make_global=False).provider.get_tracer("handler")
    with hop_scope(hop()) as scope, tracer.start_as_current_span("detail") as span:
        our_log.info("inside")
        elsewhere = tracer.start_as_current_span("another trace", context=trace.set_span_in_context(trace.INVALID_SPAN))
        with elsewhere:
            our_log.info("elsewhere")
    inside, other = lines.all()
    assert placed(inside) == place(scope, trace.format_span_id(span.get_span_context().span_id))
    assert placed(other) == place(scope), "a span of another trace is not this task's"


def test_t8_nothing_that_was_bound_takes_the_place_of_the_hops(lines: Lines) -> None:
    with structlog.contextvars.bound_contextvars(task_id="bound", request="r-1"), hop_scope(hop(persona=None)) as scope:
        our_log.info("line", trace_id="mine", mode="mine")
    assert placed(lines.one()) == place(scope)
    assert lines.one()["request"] == "r-1"
    assert lines.one()["persona"] is None


def test_outside_a_hop_a_line_names_the_recording_span_or_nothing(lines: Lines) -> None:
    tracer = configure_tracing(make_global=False).provider.get_tracer("ingress")
    our_log.info("nowhere")
    with tracer.start_as_current_span("POST /tasks") as span:
        our_log.info("request")
    nowhere, request = lines.all()
    assert "trace_id" not in nowhere
    assert request["trace_id"] == trace.format_trace_id(span.get_span_context().trace_id)
    assert "task_id" not in request


def test_an_exception_is_one_line(lines: Lines) -> None:
    try:
        raise ValueError("two\nlines")
    except ValueError:
        our_log.exception("failed")
        handler_log.exception("failed too")
    ours, theirs = lines.all()
    for line in (ours, theirs):
        assert "ValueError: two\nlines" in line["exception"]
        assert line["level"] == "error"


def test_levels_are_kept_and_may_be_changed(lines: Lines) -> None:
    configure_logging("json", "warning", stream=lines.stream)
    our_log.info("no")
    handler_log.info("no")
    our_log.warning("yes")
    assert lines.one()["event"] == "yes"


def test_t10_credentials_are_not_logged(lines: Lines) -> None:
    register_secret("correct-horse-battery")
    our_log.info("call", authorization="Basic abc", url="https://h/?token=abc", nested={"apiKey": "abc", "n": 1})
    handler_log.info("HTTP Request: GET https://rob:%s@h", "pw", extra={"cookie": "abc"})
    our_log.warning("cannot connect to %s", "postgresql://u:pw@h/db")
    our_log.info("the password is correct-horse-battery", words=("a", "correct-horse-battery"))
    try:
        raise OSError("host=h password=pw")
    except OSError:
        our_log.exception("failed")
    call, request, _, known, failed = lines.all()
    assert (call["authorization"], call["url"]) == (REDACTED, f"https://h/?token={REDACTED}")
    assert call["nested"] == {"apiKey": REDACTED, "n": 1}
    assert (request["event"], request["cookie"]) == (f"HTTP Request: GET https://{REDACTED}@h", REDACTED)
    assert (known["event"], known["words"]) == (f"the password is {REDACTED}", ["a", REDACTED])
    assert f"password={REDACTED}" in failed["exception"]
    assert "correct-horse" not in lines.text


class Described:
    def __repr__(self) -> str:
        return "postgresql://u:hunter2@h/db"


def test_t10_any_object_may_be_logged_and_is_redacted(lines: Lines) -> None:
    our_log.info("objects", one=Described(), many=[Described()], error=ValueError("password=hunter2"))
    assert "hunter2" not in lines.text


def test_t10_a_restricted_hop_logs_that_something_happened_and_not_what(lines: Lines) -> None:
    with hop_scope(hop(data_tier=DataTier.RESTRICTED)) as scope:
        handler_log.warning("found %s", PRIVATE, extra={"about": PRIVATE, "pulse": 120})
        structlog.stdlib.get_logger("somebodys.tool").info(f"asked {PRIVATE}", kind=PRIVATE)
        our_log.info("attempt.failed", outcome="retry", attempt=2, error=PRIVATE, trace_id=PRIVATE)
        try:
            raise LookupError(PRIVATE)
        except LookupError:
            handler_log.exception("no %s", PRIVATE, stack_info=True)
            our_log.exception("attempt.crashed", detail={"about": PRIVATE})
    assert PRIVATE not in lines.text

    found, asked, failed, theirs, crashed = lines.all()
    for line in (found, asked, failed, theirs, crashed):
        assert placed(line) == place(scope)
    assert set(found) == {*placed(found), "event", "level", "logger", "timestamp"}
    assert (found["event"], found["logger"], found["level"]) == (RESTRICTED, "somebodys.handler", "warning")
    assert (asked["event"], asked["logger"]) == (RESTRICTED, "somebodys.tool")
    assert (failed["event"], failed["outcome"], failed["attempt"]) == ("attempt.failed", "retry", 2)
    assert "error" not in failed
    assert (theirs["event"], theirs["error_type"]) == (RESTRICTED, "LookupError")
    assert theirs["error_at"].startswith("test_logs.py:")
    assert crashed["event"] == "attempt.crashed"


def test_t10_a_console_shows_no_more_than_json_does(lines: Lines) -> None:
    configure_logging("console", "info", stream=lines.stream)
    try:
        password = "hunter2-local"
        raise OSError(f"host=h password={password}")
    except OSError:
        our_log.exception("failed", token="hunter2")
    with hop_scope(hop(data_tier=DataTier.RESTRICTED)) as scope:
        handler_log.warning(PRIVATE)
    assert "failed" in lines.text
    assert scope.task_id in lines.text
    assert "hunter2" not in lines.text
    assert PRIVATE not in lines.text


def test_lines_go_to_stderr_and_to_one_handler_however_often_it_is_set_up(
    lines: Lines, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging()
    configure_logging()
    our_log.info("once")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert json.loads(captured.err)["event"] == "once"
    assert sys.stderr is not None


def test_libraries_that_say_what_we_say_are_quiet_and_their_errors_are_not(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("json", "info")
    for name in ("httpx", "uvicorn.error", "opentelemetry.exporter.otlp.proto.http.trace_exporter"):
        logging.getLogger(name).info("noise")
    logging.getLogger("uvicorn.error").error("it broke")
    [line] = capsys.readouterr().err.splitlines()
    assert json.loads(line)["event"] == "it broke"

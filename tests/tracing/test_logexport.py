"""T8, T10: the lines that a collector gets are those on stderr, with their place, and give away no more."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from tests.support.otlp import OtlpReceiver
from tests.tracing.hops import hop
from tracekit.envelope import DataTier
from tracekit.tracing.hop import hop_scope
from tracekit.tracing.logexport import LogExport, export_logs
from tracekit.tracing.logs import configure_logging, register_secret
from tracekit.tracing.otlp import CollectorError
from tracekit.tracing.sdk import configure_tracing

our_log = structlog.stdlib.get_logger("tracekit.workers")


@pytest.fixture
def stderr() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    stream = io.StringIO()
    configure_logging("json", "info", stream=stream)
    yield stream
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def exporting(receiver: OtlpReceiver, protocol: str, monkeypatch: pytest.MonkeyPatch) -> LogExport:
    for name, value in {**receiver.environment(protocol), "OTEL_LOGS_EXPORTER": "otlp"}.items():
        monkeypatch.setenv(name, value)
    exported = export_logs(configure_tracing(make_global=False).resource)
    assert exported is not None
    return exported


def test_t8_a_line_arrives_with_its_place_and_is_what_stderr_shows(
    receiver: OtlpReceiver, protocol: str, stderr: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported = exporting(receiver, protocol, monkeypatch)
    with hop_scope(hop()) as scope:
        our_log.warning("handler", lamp="kitchen")
    our_log.info("elsewhere")
    exported.shutdown()
    our_log.info("after the end")
    inside, elsewhere = receiver.logs()
    assert (inside["trace_id"], inside["span_id"]) == (scope.trace_id, scope.span_id)
    assert inside["attributes"] == {
        "task_id": scope.task_id, "mode": scope.mode, "persona": scope.persona, "logger": "tracekit.workers",
    }  # fmt: skip
    assert (inside["severity"], inside["severity_number"], inside["resource"]["service.name"]) == (
        "WARNING", 13, "tracekit",
    )  # fmt: skip
    assert (elsewhere["trace_id"], elsewhere["span_id"]) == ("", ""), "no place is none, not a current span's"
    shown = [json.loads(line) for line in stderr.getvalue().splitlines()]
    sent = [json.loads(line["body"]) for line in (inside, elsewhere)]
    assert [line["event"] for line in shown] == ["handler", "elsewhere", "after the end"]
    for line in (*shown, *sent):
        assert line.pop("timestamp")
    assert sent == shown[:2]


def test_t10_what_is_restricted_or_secret_does_not_leave(
    receiver: OtlpReceiver, stderr: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    register_secret("a-token-of-the-house")
    exported = exporting(receiver, "http/protobuf", monkeypatch)
    with hop_scope(hop(data_tier=DataTier.RESTRICTED)):
        logging.getLogger("somebodys.handler").warning("the diagnosis of renee", extra={"about": "renee"})
    our_log.info("sent", header="Bearer a-token-of-the-house")
    exported.shutdown()
    assert len(receiver.logs()) == 2
    kept = (receiver.directory / "logs.jsonl").read_text()
    assert "diagnosis" not in kept
    assert "renee" not in kept
    assert "a-token-of-the-house" not in kept


def test_a_collector_that_is_away_holds_up_no_line_and_no_end(
    receiver: OtlpReceiver, stderr: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported = exporting(receiver, "http/protobuf", monkeypatch)
    receiver.stop()
    for number in range(3000):
        our_log.info("line", number=number)
    exported.shutdown()
    lines = stderr.getvalue().splitlines()
    assert sum('"number": ' in line for line in lines) == 3000
    # What is said of the export must not be exported: it would never end. That lines were dropped is said once.
    assert all("Queue full" in line for line in lines if '"number": ' not in line)
    assert len(lines) <= 3001


@pytest.mark.parametrize("variables", [{}, {"OTEL_LOGS_EXPORTER": "none"}, {"OTEL_SDK_DISABLED": "true"}])
def test_a_collector_of_traces_gets_no_lines_that_nobody_asked_for(
    variables: dict[str, str], stderr: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert export_logs(configure_tracing(make_global=False).resource) is None


@pytest.mark.parametrize(
    ("name", "value"), [("OTEL_LOGS_EXPORTER", "console"), ("OTEL_EXPORTER_OTLP_LOGS_PROTOCOL", "http/json")]
)
def test_what_is_not_supported_is_said(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_LOGS_EXPORTER", "otlp")
    monkeypatch.setenv(name, value)
    with pytest.raises(CollectorError, match=value):
        export_logs(configure_tracing(make_global=False).resource)

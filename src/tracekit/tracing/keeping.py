"""SDK spans in PostgreSQL, for as long as there is no collector to take them."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Sequence
from typing import Any

import psycopg
import structlog
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from tracekit.postgres.dsn import with_defaults
from tracekit.tracing.rows import sdk_row

log = structlog.get_logger()

# A batch whose commit was not answered is sent again: a row that is there already is the same row.
KEEP = """
INSERT INTO tracekit.kept_spans (trace_id, span_id, parent_span_id, task_id, source, name, kind, start_time, end_time,
                            status, status_message, attributes, links, events)
SELECT trace_id, span_id, parent_span_id, task_id, 'sdk', name, kind, start_time, end_time,
       status, status_message, attributes, links, events
FROM jsonb_to_recordset(%s::jsonb) AS s (
    trace_id text, span_id text, parent_span_id text, task_id text, name text, kind smallint, start_time timestamptz,
    end_time timestamptz, status smallint, status_message text, attributes jsonb, links jsonb, events jsonb)
ON CONFLICT (trace_id, span_id) DO NOTHING
"""


class PostgresSpanExporter(SpanExporter):
    """Writes SDK spans to `tracekit.kept_spans`, over a connection of its own that belongs to the exporting thread.

    A batch that cannot be written is tried again, with backoff and jitter, until the database has been away for
    `patience` seconds. After that each batch is tried once, and what fails is dropped, counted in `dropped` and logged:
    spans are detail, and a process must not fill its memory with them. `statement_timeout`: seconds for one batch.
    """

    def __init__(self, dsn: str, *, patience: float = 60.0, statement_timeout: float = 10.0) -> None:
        milliseconds = int(statement_timeout * 1000)
        self._conninfo = with_defaults(dsn, application_name="tracekit spans")
        self._options = f"SET statement_timeout = {milliseconds}; SET lock_timeout = {milliseconds}"
        self._patience = patience
        self._connection: psycopg.Connection[Any] | None = None
        self._away_since: float | None = None
        self._writing = threading.Lock()
        self._stopped = threading.Event()
        self.dropped = 0
        """Spans that were given up so far."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Blocks the exporting thread, never the program; `shutdown` ends a wait."""
        rows = [sdk_row(span) for span in spans]
        retry = 0
        while True:
            try:
                self._write(rows)
                self._away_since = None
                return SpanExportResult.SUCCESS
            except psycopg.DataError as error:
                return self._write_singly(rows, error)
            except (psycopg.Error, OSError) as error:
                now = time.monotonic()
                self._away_since = self._away_since or now
                pause = random.uniform(0.5, 1.0) * min(2.0**retry, 15.0)
                retry += 1
                if now + pause - self._away_since > self._patience or self._stopped.wait(pause):
                    return self._drop(len(rows), error)

    def shutdown(self) -> None:
        """Ends a wait that is under way; what it waited with is dropped."""
        self._stopped.set()
        # A write that is under way closes the connection itself.
        if self._writing.acquire(blocking=False):
            try:
                self._disconnect()
            finally:
                self._writing.release()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Nothing is kept back here."""
        return True

    def _write(self, rows: list[dict[str, Any]]) -> None:
        with self._writing:
            try:
                if self._connection is None:
                    self._connection = psycopg.connect(self._conninfo, autocommit=True, prepare_threshold=None)
                    self._connection.execute(self._options)
                self._connection.execute(KEEP, [json.dumps(rows)])
            except psycopg.DataError:
                raise
            except BaseException:
                self._disconnect()
                raise
            if self._stopped.is_set():
                self._disconnect()

    def _write_singly(self, rows: list[dict[str, Any]], error: psycopg.Error) -> SpanExportResult:
        """One row that the database does not take must not cost the others."""
        if len(rows) == 1:
            return self._drop(1, error)
        results = {self._write_one(row) for row in rows}
        return SpanExportResult.SUCCESS if results == {True} else SpanExportResult.FAILURE

    def _write_one(self, row: dict[str, Any]) -> bool:
        try:
            self._write([row])
        except (psycopg.Error, OSError) as error:
            self._drop(1, error)
            return False
        return True

    def _drop(self, count: int, error: Exception) -> SpanExportResult:
        self.dropped += count
        log.warning("spans.dropped", count=count, dropped=self.dropped, error_type=type(error).__name__)
        return SpanExportResult.FAILURE

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

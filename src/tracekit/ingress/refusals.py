"""What becomes of refusals: each is counted, and as many as a flood may not drown in are traced and logged."""

from __future__ import annotations

import asyncio
import json
import time
from datetime import timedelta
from typing import Any, LiteralString

import structlog

from tracekit import instruments
from tracekit.ingress.exchange import Exchange
from tracekit.ingress.problems import Refused
from tracekit.queue import Queue
from tracekit.tracing import semconv
from tracekit.tracing.spans import SpanKind, StatusCode

log = structlog.get_logger()

_INSERT: LiteralString = """
INSERT INTO tracekit.kept_spans (trace_id, span_id, parent_span_id, source, name, kind, start_time, end_time, status,
                                 attributes)
SELECT r.trace_id, r.span_id, r.parent_span_id, 'skeleton', r.name, r.kind,
       now - make_interval(secs => r.age + r.duration), now - make_interval(secs => r.age), r.status, r.attributes
FROM clock_timestamp() AS now, jsonb_to_recordset(%s::jsonb) AS r(
    trace_id text, span_id text, parent_span_id text, name text, kind smallint, age double precision,
    duration double precision, status smallint, attributes jsonb)
ON CONFLICT DO NOTHING
"""

_TIMEOUT = 5.0


class Refusals:
    """Counts, traces and logs refusals.

    `burst` (default 60) refusals are traced at once, then `rate` (default 1) a second: enough to see a surface that is
    configured wrongly, and at most 86,400 rows on a day of attack. While the database is away up to `burst` spans wait
    for it.
    """

    def __init__(self, queue: Queue, *, burst: int = 60, rate: float = 1.0) -> None:
        self._queue = queue
        self._burst = burst
        self._rate = rate
        self._allowance = float(burst)
        self._as_of = time.monotonic()
        self._waiting: list[tuple[float, dict[str, Any]]] = []
        self._some = asyncio.Event()
        self._written = asyncio.Event()
        self._written.set()

    def note(self, exchange: Exchange, refused: Refused, *, answered: int | None = None) -> bool:
        """A request was refused. Never blocks, never fails; returns whether it is traced.

        `answered` is the status of the answer where it is not the refusal's: a part was accepted.
        """
        reason = refused.reason
        traced = self._allow() and len(self._waiting) < self._burst
        instruments.INGRESS_REFUSALS.labels(exchange.surface, reason.label).inc(
            exemplar=instruments.exemplar(exchange.trace_id, exchange.span_id) if traced else None
        )
        if not traced:
            return False
        log.info(
            "ingress.refused",
            reason=reason.label,
            status=reason.status,
            route=exchange.route,
            surface=exchange.surface,
            trace_id=exchange.trace_id,
            span_id=exchange.span_id,
        )
        span = {
            "trace_id": exchange.trace_id,
            "span_id": exchange.span_id,
            "parent_span_id": exchange.parent.span_id if exchange.parent else None,
            "name": exchange.name,
            "kind": int(SpanKind.SERVER),
            "duration": exchange.duration,
            # A 4xx is the caller's error, not the server's (semantic conventions for HTTP, "Status").
            "status": int(StatusCode.ERROR if reason.status >= 500 else StatusCode.UNSET),
            "attributes": {
                **exchange.attributes(answered or reason.status),
                semconv.ERROR_TYPE: reason.label,
                semconv.SURFACE: exchange.surface,
            },
        }
        self._waiting.append((time.monotonic(), span))
        self._some.set()
        self._written.clear()
        return True

    async def round(self) -> None:
        """Wait until there is something to write, then write all of it. Raises while the database is away."""
        await self._some.wait()
        await self._write()

    async def close(self, *, within: timedelta = timedelta(seconds=2)) -> None:
        """Write what is left, if the database lets us."""
        try:
            async with asyncio.timeout(within.total_seconds()):
                await self._write()
        except Exception as error:
            log.info("ingress.refusals_lost", spans=len(self._waiting), error=type(error).__name__)

    async def written(self) -> None:
        """Wait until everything noted so far is in the database."""
        await self._written.wait()

    async def _write(self) -> None:
        batch = list(self._waiting)
        if batch:
            now = time.monotonic()
            rows = json.dumps([{**span, "age": now - at} for at, span in batch])
            async with asyncio.timeout(_TIMEOUT), self._queue.connection() as connection:
                await connection.execute(_INSERT, [rows])
            # A write that failed, or was cut off, is made again: the span's id lets the second one do nothing.
            del self._waiting[: len(batch)]
        if not self._waiting:
            self._some.clear()
            self._written.set()

    def _allow(self) -> bool:
        now = time.monotonic()
        self._allowance = min(float(self._burst), self._allowance + (now - self._as_of) * self._rate)
        self._as_of = now
        if self._allowance < 1:
            return False
        self._allowance -= 1
        return True

"""The cursor over `tracekit.spans`: which rows can be shipped, which have been, and how to move on.

(xid, seq) is the order of shipping. A row whose transaction is older than every running one cannot be joined by an
earlier row any more, so one cursor passes each row exactly once, however late a transaction commits.

All statements here are short and commit at once. Who ships holds an advisory lock of its session, not a transaction: a
transaction that stayed open while a collector is waited for would hold back vacuum everywhere in the cluster, and with
it the cursor itself. The lock ends with its session, so a shipper that is killed is followed at once. It needs a
connection straight to the server; through a pooler in transaction mode it would belong to nobody.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import datetime
from typing import Any, LiteralString

import structlog
from psycopg import AsyncConnection
from psycopg.rows import class_row

from tracekit.errors import TracekitError
from tracekit.tracing.rows import SpanRow

log = structlog.get_logger()

DESTINATION = "otlp"

PENDING_LIMIT = 10_000
"""`ShippingState.pending` counts no further, so that looking costs the same whatever the backlog."""


class PooledConnectionError(TracekitError):
    """The connection changes servers' processes between statements, so it can hold no lock."""


class CursorMovedError(TracekitError):
    """Somebody else moved the cursor while a batch was under way: the lock did not keep them out."""


@dataclass(frozen=True, slots=True)
class Cursor:
    """The last row that was shipped."""

    xid: str
    seq: int


@dataclass(frozen=True, slots=True)
class Shipment:
    """Rows to ship next, and the cursor after them."""

    rows: list[SpanRow]
    end: Cursor


@dataclass(frozen=True, slots=True)
class ShippingState:
    """How far shipping is."""

    pending: int
    """Rows not yet shipped, counted up to `PENDING_LIMIT`."""
    oldest_seconds: float | None
    """Since the end of the oldest span among those; None where nothing is pending."""
    shipped: int
    """Rows that the cursor has passed since it was made."""
    shipped_at: datetime | None
    """When it last moved."""


@dataclass(frozen=True, slots=True)
class _Sized(SpanRow):
    xid: str
    seq: int
    backend: int


_LOCK: LiteralString = """
SELECT pg_try_advisory_lock(hashtext('tracekit.span_shipping'), hashtext(%s)), pg_backend_pid()
"""

# Whoever may ship writes first: a server that was demoted grants advisory locks too, but refuses this.
_OPEN_CURSOR: LiteralString = "INSERT INTO tracekit.span_shipping (destination) VALUES (%s) ON CONFLICT DO NOTHING"

# A shipper writes a cursor only to rows of finished transactions, so the cursor's own row is always younger than the
# xid in it. Where it is not, the row was copied from another server. Tuples carry the lower 32 bits of xids.
_READ_CURSOR: LiteralString = """
SELECT xid::text, seq, xid <> '0' AND
       (((c.xmin::text::bigint - (c.xid::text::numeric %% 4294967296)::bigint) + 4294967296) %% 4294967296)
           NOT BETWEEN 1 AND 2147483647
FROM tracekit.span_shipping AS c WHERE destination = %s
"""

_ADOPTION_S = 600
"""Seconds for rewriting a restored table: once, and as long as the table is large."""

_ANY_FROM_THE_FUTURE: LiteralString = """
SELECT EXISTS (SELECT FROM tracekit.spans WHERE xid >= pg_snapshot_xmax(pg_current_snapshot()))
"""

_ADOPT_FUTURE_ROWS: LiteralString = """
UPDATE tracekit.spans SET xid = pg_current_xact_id() WHERE xid >= pg_snapshot_xmax(pg_current_snapshot())
"""

# A row was copied here if its tuple was not written by the transaction it names.
_ADOPT_ALL_ROWS: LiteralString = """
UPDATE tracekit.spans
SET xid = CASE WHEN (xid, seq) <= (%s::xid8, %s) THEN '0'::xid8 ELSE pg_current_xact_id() END
WHERE xmin <> xid::xid
"""

_ADOPT_CURSOR: LiteralString = """
UPDATE tracekit.span_shipping SET xid = '0', seq = 9223372036854775807 WHERE destination = %s
"""

_NEXT: LiteralString = """
WITH ready AS (
    SELECT xid, seq, trace_id, span_id, parent_span_id, source, name, kind, start_time, end_time, status,
           status_message, attributes, links, events,
           octet_length(attributes::text) + octet_length(links::text) + octet_length(events::text) AS size
    FROM tracekit.spans
    WHERE (xid, seq) > (%(xid)s::xid8, %(seq)s) AND xid < pg_snapshot_xmin(pg_current_snapshot())
    ORDER BY xid, seq
    LIMIT %(rows)s
), sized AS (
    SELECT ready.*, sum(size) OVER (ORDER BY xid, seq) AS total FROM ready
)
SELECT xid::text, seq, pg_backend_pid() AS backend, trace_id, span_id, parent_span_id, source, name, kind, start_time,
       end_time, status, status_message, attributes, links, events
FROM sized WHERE total - size < %(bytes)s
ORDER BY sized.xid, seq
"""

_ADVANCE: LiteralString = """
UPDATE tracekit.span_shipping
SET xid = %s::xid8, seq = %s, shipped = shipped + %s, shipped_at = clock_timestamp()
WHERE destination = %s AND xid = %s::xid8 AND seq = %s
"""

_STATE: LiteralString = """
SELECT p.pending, extract(epoch FROM clock_timestamp() - p.oldest)::float8 AS oldest_seconds,
       coalesce(c.shipped, 0) AS shipped, c.shipped_at
FROM (VALUES (%(destination)s)) AS d (destination)
LEFT JOIN tracekit.span_shipping AS c ON c.destination = d.destination
CROSS JOIN LATERAL (
    SELECT count(*) AS pending, min(end_time) AS oldest FROM (
        SELECT end_time FROM tracekit.spans
        WHERE (xid, seq) > (coalesce(c.xid, '0'), coalesce(c.seq, 0))
        ORDER BY xid, seq LIMIT %(limit)s) AS waiting) AS p
"""


class ShippingSession:
    """The right to ship, for as long as its connection lives. The connection is in autocommit; `step_timeout`:
    seconds for each step, which raises TimeoutError and leaves a connection that is good for nothing but to be closed.
    """

    def __init__(self, connection: AsyncConnection[Any], backend: int, cursor: Cursor, step_timeout: float) -> None:
        self._connection = connection
        self._backend = backend
        self._cursor = cursor
        self._step_timeout = step_timeout

    @classmethod
    async def begin(cls, connection: AsyncConnection[Any], step_timeout: float) -> ShippingSession | None:
        """The right to ship, or None while somebody else has it."""
        async with asyncio.timeout(step_timeout):
            locked, backend = await _row(connection, _LOCK, [DESTINATION])
            if not locked:
                return None
            await connection.execute(_OPEN_CURSOR, [DESTINATION])
            xid, seq, foreign = await _row(connection, _READ_CURSOR, [DESTINATION])
            cursor = Cursor(xid, seq)
            (ahead,) = await _row(connection, _ANY_FROM_THE_FUTURE, [])
        if foreign or ahead:
            log.warning("shipper.adopting", why="rows were restored from another server", cursor=foreign, rows=ahead)
            async with asyncio.timeout(_ADOPTION_S):
                cursor = await _adopt(connection, cursor, foreign=foreign)
        return cls(connection, backend, cursor, step_timeout)

    async def next(self, rows: int, size: int) -> Shipment | None:
        """What can be shipped next: at most `rows`, and none that begins after `size` bytes. None: nothing is ready."""
        bounds = {"xid": self._cursor.xid, "seq": self._cursor.seq, "rows": rows, "bytes": size}
        async with (
            asyncio.timeout(self._step_timeout),
            self._connection.cursor(row_factory=class_row(_Sized)) as cursor,
        ):
            found = await (await cursor.execute(_NEXT, bounds)).fetchall()
        if not found:
            return None
        last = found[-1]
        if last.backend != self._backend:
            raise PooledConnectionError(
                "spans cannot be shipped through a pooler in transaction mode",
                hint="Give tracekit a DSN that leads to the server itself (listen_dsn).",
            )
        return Shipment(list(found), Cursor(last.xid, last.seq))

    async def advance(self, shipment: Shipment) -> None:
        """Marks a shipment as delivered. Raises CursorMovedError where another session has moved the cursor."""
        before, after = self._cursor, shipment.end
        values = [after.xid, after.seq, len(shipment.rows), DESTINATION, before.xid, before.seq]
        async with asyncio.timeout(self._step_timeout):
            done = await self._connection.execute(_ADVANCE, values)
        if done.rowcount != 1:
            raise CursorMovedError("another shipper moved the cursor; a batch may have gone out twice")
        self._cursor = after


async def shipping_state(connection: AsyncConnection[Any]) -> ShippingState:
    """How far shipping is, on any connection, for at most `PENDING_LIMIT` rows' effort."""
    async with connection.cursor(row_factory=class_row(ShippingState)) as cursor:
        await cursor.execute(_STATE, {"destination": DESTINATION, "limit": PENDING_LIMIT})
        state = await cursor.fetchone()
    assert state is not None
    return state


async def _adopt(connection: AsyncConnection[Any], cursor: Cursor, *, foreign: bool) -> Cursor:
    """Gives rows and a cursor that were restored from another server's dump xids of this one.

    There, xids may be far ahead: such rows would wait until this server has counted as far, and such a cursor would
    pass over everything new. Rows that the restored cursor had passed stay passed.
    """
    async with connection.transaction():
        await connection.execute(f"SET LOCAL statement_timeout = {_ADOPTION_S * 1000}")
        if not foreign:
            await connection.execute(_ADOPT_FUTURE_ROWS)
            return cursor
        await connection.execute(_ADOPT_ALL_ROWS, [cursor.xid, cursor.seq])
        await connection.execute(_ADOPT_CURSOR, [DESTINATION])
        return Cursor("0", 2**63 - 1)


async def _row(connection: AsyncConnection[Any], query: LiteralString, values: list[Any]) -> Any:
    row = await (await connection.execute(query, values)).fetchone()
    assert row is not None
    return row

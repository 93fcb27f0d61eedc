"""The cursor over what spans are made of: which can be shipped, which have been, and how to move on.

Spans are a view of envelopes, lines of the record and kept spans, and the cursor moves over the rows of those: one such
row is several spans, and they are shipped together.

(xid, seq) is the order of shipping. A row whose transaction is older than every running one cannot be joined by an
earlier row any more, so one cursor passes each row exactly once, however late a transaction commits.

A turn is one transaction: it takes the advisory lock of shipping, reads the cursor and a batch, waits for the
collector, moves the cursor and commits. While it waits it has neither an xid (it has written nothing yet) nor a
snapshot (READ COMMITTED keeps none between statements), so it holds back neither vacuum nor the cursor of anybody. The
lock ends with the transaction: at once when the process is killed, and by `idle_in_transaction_session_timeout` where
its whole machine vanishes. All this also holds through a pooler in transaction mode.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, LiteralString

import structlog
from psycopg import AsyncConnection
from psycopg.rows import class_row

from tracekit.tracing.rows import SpanRow

log = structlog.get_logger()

DESTINATION = "otlp"


@dataclass(frozen=True, slots=True)
class Cursor:
    """The last row that was shipped."""

    xid: str
    seq: int


@dataclass(frozen=True, slots=True)
class Shipment:
    """Spans to ship next, and the cursor after what they are made of."""

    rows: list[SpanRow]
    end: Cursor
    sources: int
    """How many rows of the record they are made of."""


_LOCK: LiteralString = "SELECT pg_try_advisory_xact_lock(hashtext('tracekit.span_shipping'), hashtext(%s))"

_OPEN_CURSOR: LiteralString = "INSERT INTO tracekit.span_shipping (destination) VALUES (%s) ON CONFLICT DO NOTHING"

# A shipper writes a cursor only to rows of finished transactions, so the cursor's own row is always younger than the
# xid in it. Where it is not, the row was copied from another server. Tuples carry the lower 32 bits of xids.
_READ_CURSOR: LiteralString = """
SELECT xid::text, seq, xid <> '0' AND
       (((c.xmin::text::bigint - (c.xid::text::numeric %% 4294967296)::bigint) + 4294967296) %% 4294967296)
           NOT BETWEEN 1 AND 2147483647,
       EXISTS (SELECT FROM tracekit.envelopes WHERE xid >= pg_snapshot_xmax(pg_current_snapshot()))
       OR EXISTS (SELECT FROM tracekit.record WHERE xid >= pg_snapshot_xmax(pg_current_snapshot()))
       OR EXISTS (SELECT FROM tracekit.kept_spans WHERE xid >= pg_snapshot_xmax(pg_current_snapshot()))
FROM tracekit.span_shipping AS c WHERE destination = %s
"""

_ADOPTION_S = 600
"""Seconds for rewriting a restored table: once, and as long as the table is large."""

_SOURCES: tuple[LiteralString, ...] = ("tracekit.envelopes", "tracekit.record", "tracekit.kept_spans")

_ADOPT_FUTURE_ROWS: tuple[LiteralString, ...] = tuple(
    f"UPDATE {table} SET xid = pg_current_xact_id() WHERE xid >= pg_snapshot_xmax(pg_current_snapshot())"
    for table in _SOURCES
)

# A row was copied here if its tuple was not written by the transaction it names. 3 is the first xid that a server gives
# to anybody: those below it are marks (see 0002), and 3 itself comes before whatever is written here.
_ADOPT_ALL_ROWS: tuple[LiteralString, ...] = tuple(
    f"""
UPDATE {table} SET xid = CASE WHEN (xid, seq) <= (%s::xid8, %s) THEN '3'::xid8 ELSE pg_current_xact_id() END
WHERE xid > '2' AND xmin <> xid::xid"""
    for table in _SOURCES
)

_ADOPT_CURSOR: LiteralString = """
UPDATE tracekit.span_shipping SET xid = '3', seq = 9223372036854775807 WHERE destination = %s
"""

# The order of shipping: by number among the rows of one transaction. A span's size is that of what it has of its own.
_ROWS: tuple[LiteralString, ...] = tuple(
    f"""
(SELECT xid, seq, {size} AS size FROM {table}
 WHERE (xid, seq) > (%(xid)s::xid8, %(seq)s) AND xid > '2' AND xid < pg_snapshot_xmin(pg_current_snapshot())
 ORDER BY xid, seq LIMIT %(rows)s)"""
    for table, size in (
        ("tracekit.envelopes", "1500 + coalesce(octet_length(received::text), 0)"),
        ("tracekit.record", "2500"),
        (
            "tracekit.kept_spans",
            "octet_length(attributes::text) + octet_length(links::text) + octet_length(events::text)",
        ),
    )
)

_END: LiteralString = f"""
SELECT xid::text, seq, rows FROM (
    SELECT xid, seq, size, sum(size) OVER (ORDER BY xid, seq) AS total, row_number() OVER (ORDER BY xid, seq) AS rows
    FROM ({" UNION ALL ".join(_ROWS)} ORDER BY xid, seq LIMIT %(rows)s) AS ready
) AS sized
WHERE total - size < %(bytes)s ORDER BY sized.xid DESC, seq DESC LIMIT 1
"""

_NEXT: LiteralString = """
SELECT trace_id, span_id, parent_span_id, source, name, kind, start_time, end_time, status, status_message, attributes,
       links, events
FROM tracekit.spans
WHERE (xid, seq) > (%(xid)s::xid8, %(seq)s) AND (xid, seq) <= (%(end_xid)s::xid8, %(end_seq)s)
ORDER BY xid, seq, start_time, span_id
"""

_ADVANCE: LiteralString = """
UPDATE tracekit.span_shipping
SET xid = %s::xid8, seq = %s, shipped = shipped + %s, shipped_at = clock_timestamp()
WHERE destination = %s
"""


class Turn:
    """The right to ship, until `commit` or the end of the connection. `step_timeout`: seconds for each step, which
    raises TimeoutError and leaves a connection that is good for nothing but to be closed.
    """

    def __init__(self, connection: AsyncConnection[Any], cursor: Cursor, step_timeout: float, idle: float) -> None:
        self._connection = connection
        self._cursor = cursor
        self._step_timeout = step_timeout
        self._idle = idle

    @classmethod
    async def begin(cls, connection: AsyncConnection[Any], *, step_timeout: float, idle: float) -> Turn | None:
        """The right to ship, or None while somebody else has it. The connection is not in autocommit. `idle`: seconds
        after which the server ends a turn that does nothing.
        """
        while True:
            async with asyncio.timeout(step_timeout):
                await _limit_idling(connection, idle)
                (locked,) = await _row(connection, _LOCK) or (False,)
                found = await _row(connection, _READ_CURSOR) if locked else None
                if not locked:
                    await connection.rollback()
                    return None
                if found is None:
                    await connection.execute(_OPEN_CURSOR, [DESTINATION])
                    await connection.commit()
                    continue
            xid, seq, foreign, ahead = found
            if not (foreign or ahead):
                return cls(connection, Cursor(xid, seq), step_timeout, idle)
            log.warning("shipper.adopting", why="rows were restored from another server", cursor=foreign, rows=ahead)
            async with asyncio.timeout(_ADOPTION_S):
                await _adopt(connection, Cursor(xid, seq), foreign=foreign)
                await connection.commit()

    async def next(self, rows: int, size: int) -> Shipment | None:
        """What can be shipped next: of at most `rows` rows of the record, and of none that begins after `size` bytes.
        None: nothing is ready.
        """
        bounds = {"xid": self._cursor.xid, "seq": self._cursor.seq, "rows": rows, "bytes": size}
        async with asyncio.timeout(self._step_timeout):
            end = await (await self._connection.execute(_END, bounds)).fetchone()
            found: list[SpanRow] = []
            if end:
                async with self._connection.cursor(row_factory=class_row(SpanRow)) as cursor:
                    last = {"end_xid": end[0], "end_seq": end[1]}
                    found = await (await cursor.execute(_NEXT, {**bounds, **last})).fetchall()
            # The portal of a query keeps its snapshot until another statement takes its place. This one needs none.
            await _limit_idling(self._connection, self._idle)
        return Shipment(found, Cursor(end[0], end[1]), end[2]) if end else None

    async def commit(self, shipped: Shipment | None) -> None:
        """Ends the turn. What was shipped in it is passed by the cursor."""
        async with asyncio.timeout(self._step_timeout):
            if shipped:
                values = [shipped.end.xid, shipped.end.seq, len(shipped.rows), DESTINATION]
                await self._connection.execute(_ADVANCE, values)
            await self._connection.commit()


async def _adopt(connection: AsyncConnection[Any], cursor: Cursor, *, foreign: bool) -> None:
    """Gives rows and a cursor that were restored from another server's dump xids of this one.

    There, xids may be far ahead: such rows would wait until this server has counted as far, and such a cursor would
    pass over everything new. Rows that the restored cursor had passed stay passed.
    """
    await connection.execute(f"SET LOCAL statement_timeout = {_ADOPTION_S * 1000}")
    if foreign:
        for statement in _ADOPT_ALL_ROWS:
            await connection.execute(statement, [cursor.xid, cursor.seq])
        await connection.execute(_ADOPT_CURSOR, [DESTINATION])
    else:
        for statement in _ADOPT_FUTURE_ROWS:
            await connection.execute(statement)


async def _limit_idling(connection: AsyncConnection[Any], seconds: float) -> None:
    await connection.execute(f"SET LOCAL idle_in_transaction_session_timeout = {int(seconds * 1000)}")


async def _row(connection: AsyncConnection[Any], query: LiteralString) -> Any:
    return await (await connection.execute(query, [DESTINATION])).fetchone()

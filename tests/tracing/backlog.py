"""How far shipping is: what waits in the record beyond the cursor, and what the cursor has passed."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, LiteralString

from psycopg import AsyncConnection
from psycopg.rows import class_row

from tracekit.tracing.shipping import DESTINATION


@dataclass(frozen=True, slots=True)
class ShippingState:
    """How far shipping is."""

    pending: int
    """Spans not yet shipped."""
    oldest_seconds: float | None
    """Since the end of the oldest span among those; None where nothing is pending."""
    shipped: int
    """Spans that the cursor has passed since it was made."""
    shipped_at: datetime | None
    """When it last moved."""


_STATE: LiteralString = """
SELECT p.pending, extract(epoch FROM clock_timestamp() - p.oldest)::float8 AS oldest_seconds,
       coalesce(c.shipped, 0) AS shipped, c.shipped_at
FROM (VALUES (%(destination)s)) AS d (destination)
LEFT JOIN tracekit.span_shipping AS c ON c.destination = d.destination
CROSS JOIN LATERAL (
    SELECT count(*) AS pending, min(end_time) AS oldest FROM (
        SELECT end_time FROM tracekit.spans
        WHERE (xid, seq) > (coalesce(c.xid, '0'), coalesce(c.seq, 0))) AS waiting) AS p
"""


async def shipping_state(connection: AsyncConnection[Any]) -> ShippingState:
    """How far shipping is, on any connection."""
    async with connection.cursor(row_factory=class_row(ShippingState)) as cursor:
        await cursor.execute(_STATE, {"destination": DESTINATION})
        state = await cursor.fetchone()
    assert state is not None
    return state

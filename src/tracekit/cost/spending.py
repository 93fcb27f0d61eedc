"""What is spent of the present day and week: two sums of the ledger, to be looked at every few seconds."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, LiteralString

from psycopg import AsyncConnection

from tracekit.cost.money import dollars
from tracekit.cost.periods import period_of

_SPENDING: LiteralString = """
SELECT count(u.task_id), count(u.task_id) FILTER (WHERE u.cost IS NULL),
       coalesce(sum(u.input_tokens + u.cache_read_tokens + u.cache_write_tokens + u.output_tokens), 0)::bigint,
       coalesce(sum(u.cost), 0)
FROM unnest(%s::timestamptz[]) WITH ORDINALITY AS period(begins, number)
LEFT JOIN tracekit.spend AS u ON u.at >= period.begins AND u.at < %s AND NOT u.synthetic
GROUP BY period.number ORDER BY period.number
"""


@dataclass(frozen=True, slots=True)
class Spending:
    """What the calls of one period came to, without those that a demonstration made up."""

    begins: datetime
    calls: int
    unpriced: int
    """Calls that have no price: they are not in `cost`."""
    tokens: int
    cost: Decimal

    @property
    def words(self) -> str:
        """`$0.00033, 60 tokens in 2 calls, 1 without a price`."""
        if not self.calls:
            return "no model was called"
        priced = dollars(self.cost) if self.cost or self.unpriced < self.calls else "no price known"
        unpriced = f", {self.unpriced} without a price" if self.unpriced else ""
        return f"{priced}, {self.tokens:,} tokens in {self.calls} call{'' if self.calls == 1 else 's'}{unpriced}"


async def spending(connection: AsyncConnection[Any], now: datetime, time_zone: str) -> tuple[Spending, Spending]:
    """Of the local day and the local week that `now` is in."""
    day, week = period_of(now, "day", time_zone), period_of(now, "week", time_zone)
    # A day ends no later than its week.
    cursor = await connection.execute(_SPENDING, [[day[0], week[0]], day[1]])
    today, this_week = await cursor.fetchall()
    return Spending(day[0], *today), Spending(week[0], *this_week)

"""Repricing: what was spent, at the prices that are known now.

A call's tokens do not change, its price may: a renewed table, an entry in the configuration, a price for what had none.
Each call whose price changed gets a next version that names the repricing; what was believed before stays in the
ledger.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, LiteralString

from psycopg import AsyncConnection
from psycopg.rows import class_row, dict_row

from tracekit.cost import prices
from tracekit.cost.ledger import Ledger, Report, book, lock
from tracekit.cost.prices import PriceBook
from tracekit.cost.spender import Spender
from tracekit.cost.usage import Usage


@dataclass(frozen=True, slots=True)
class Repricing:
    """What a repricing came to. `id` 0: it was only tried."""

    id: int
    at: datetime
    by: str
    since: datetime | None
    price_version: str
    finished_at: datetime | None
    looked_at: int
    changed: int
    cost_before: Decimal
    """Of the calls that changed."""
    cost_after: Decimal
    unpriced_before: int
    unpriced_after: int


@dataclass(frozen=True, slots=True)
class Change:
    """A call that has another price now."""

    task_id: str
    key: str
    provider: str
    model: str
    before: Decimal | None
    after: Decimal | None
    source: str


_TASKS: LiteralString = """
SELECT DISTINCT task_id FROM tracekit.spend WHERE %(since)s::timestamptz IS NULL OR at >= %(since)s ORDER BY task_id
"""

_CALLS: LiteralString = """
SELECT key, provider, model, local, input_tokens, cache_read_tokens, cache_write_tokens, output_tokens,
       reasoning_tokens, requests, seconds, details, billed, billed_by, cost, price_source, basis, at
FROM tracekit.spend WHERE task_id = %(task)s AND (%(since)s::timestamptz IS NULL OR at >= %(since)s) ORDER BY seq
"""

_BEGIN: LiteralString = """
INSERT INTO tracekit.repricings (by, since, price_version) VALUES (%s, %s, %s) RETURNING id
"""

_GO_ON: LiteralString = """
UPDATE tracekit.repricings
SET looked_at = looked_at + %(looked_at)s, changed = changed + %(changed)s,
    cost_before = cost_before + %(cost_before)s, cost_after = cost_after + %(cost_after)s,
    unpriced_before = unpriced_before + %(unpriced_before)s, unpriced_after = unpriced_after + %(unpriced_after)s
WHERE id = %(id)s
"""


async def reprice(
    ledger: Ledger, by: str, *, since: datetime | None = None, dry_run: bool = False
) -> tuple[Repricing, list[Change]]:
    """Price all calls made from `since` on anew, task by task, each in a transaction of its own. `dry_run`: only look.

    One that is broken off has done what it says, and the next one does the rest.
    """
    await asyncio.to_thread(prices.warm)
    queue, price_book = ledger.queue, ledger.prices
    async with queue.connection() as connection:
        cursor = await connection.execute(_TASKS, {"since": since})
        tasks = [row[0] for row in await cursor.fetchall()]
        number = 0
        if not dry_run:
            cursor = await connection.execute(_BEGIN, [by, since, price_book.table])
            found = await cursor.fetchone()
            assert found is not None, "an insert answers its row"
            number = found[0]
    sums = _Sums()
    changes: list[Change] = []
    for task_id in tasks:
        async with queue.connection() as connection, connection.transaction():
            if not dry_run:
                await lock(connection, task_id)
            looked_at, changed = await _look(connection, task_id, since, price_book)
            here = _Sums()
            here.add(looked_at, [change for change, _ in changed])
            sums.add(looked_at, [change for change, _ in changed])
            changes += [change for change, _ in changed]
            if not dry_run:
                reports = [report for _, report in changed]
                await book(connection, Spender(task_id, 0, 0, "", None, "", ""), reports, repricing=number)
                await connection.execute(_GO_ON, {"id": number, **here.columns()})
    async with queue.connection() as connection, connection.cursor(row_factory=class_row(Repricing)) as rows:
        if dry_run:
            await rows.execute(
                "SELECT 0 AS id, clock_timestamp() AS at, %(by)s AS by, %(since)s::timestamptz AS since,"
                " %(table)s AS price_version, NULL::timestamptz AS finished_at, %(looked_at)s::bigint AS looked_at,"
                " %(changed)s::bigint AS changed, %(cost_before)s::numeric AS cost_before,"
                " %(cost_after)s::numeric AS cost_after, %(unpriced_before)s::bigint AS unpriced_before,"
                " %(unpriced_after)s::bigint AS unpriced_after",
                {"by": by, "since": since, "table": price_book.table, **sums.columns()},
            )
        else:
            await rows.execute(
                "UPDATE tracekit.repricings SET finished_at = clock_timestamp() WHERE id = %s RETURNING *", [number]
            )
        result = await rows.fetchone()
    assert result is not None, "it is one row"
    return result, changes


async def repricings(connection: AsyncConnection[Any], limit: int) -> list[Repricing]:
    """Those that there were, the newest first."""
    async with connection.cursor(row_factory=class_row(Repricing)) as cursor:
        await cursor.execute("SELECT * FROM tracekit.repricings ORDER BY id DESC LIMIT %s", [limit])
        return await cursor.fetchall()


async def _look(
    connection: AsyncConnection[Any], task_id: str, since: datetime | None, price_book: PriceBook
) -> tuple[int, list[tuple[Change, Report]]]:
    async with connection.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(_CALLS, {"task": task_id, "since": since})
        rows = await cursor.fetchall()
    changed = []
    for row in rows:
        usage = Usage(
            row["provider"],
            row["model"],
            input=row["input_tokens"],
            cache_read=row["cache_read_tokens"],
            cache_write=row["cache_write_tokens"],
            output=row["output_tokens"],
            reasoning=row["reasoning_tokens"],
            requests=row["requests"],
            cost=row["billed"],
            billed_by=row["billed_by"] or "",
            local=row["local"],
            seconds=None if row["seconds"] is None else float(row["seconds"]),
            basis=row["basis"],
            details=row["details"],
        )
        priced = price_book.price(usage, row["at"])
        if (priced.cost, priced.source) != (row["cost"], row["price_source"]):
            change = Change(task_id, row["key"], usage.provider, usage.model, row["cost"], priced.cost, priced.source)
            changed.append((change, Report(row["key"], usage, priced)))
    return len(rows), changed


class _Sums:
    def __init__(self) -> None:
        self.looked_at = self.changed = self.unpriced_before = self.unpriced_after = 0
        self.cost_before = self.cost_after = Decimal(0)

    def add(self, looked_at: int, changes: list[Change]) -> None:
        self.looked_at += looked_at
        self.changed += len(changes)
        self.cost_before += sum((change.before or Decimal(0) for change in changes), Decimal(0))
        self.cost_after += sum((change.after or Decimal(0) for change in changes), Decimal(0))
        self.unpriced_before += sum(change.before is None for change in changes)
        self.unpriced_after += sum(change.after is None for change in changes)

    def columns(self) -> dict[str, Any]:
        return vars(self)

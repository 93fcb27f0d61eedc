"""Making usage and looking at the ledger."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Any, LiteralString

from psycopg.rows import class_row

from tracekit.config import PriceSettings
from tracekit.cost import Booked, Ledger, PriceBook, Usage
from tracekit.queue import Position, Queue

PRICES = (
    PriceSettings.model_validate(
        {"model": "m-*", "input": "3", "cache_read": "0.3", "cache_write": "3.75", "output": "15"}
    ),
)
"""US dollars a million tokens, of every model whose name begins with `m-`."""


def usage(model: str = "m-1", **values: Any) -> Usage:
    """10 tokens in and 20 out, at $0.00033, unless said otherwise."""
    return Usage(**{"provider": "test", "model": model, "input": 10, "output": 20, **values})


def ledger_of(queue: Queue) -> Ledger:
    return Ledger(queue, PriceBook(PRICES))


async def book(ledger: Ledger, at: Position, *calls: Usage, **more: Any) -> list[Booked]:
    return await ledger.book(at, [await ledger.report(call) for call in calls], **more)


async def rows(queue: Queue, query: str, *parameters: object) -> list[tuple[Any, ...]]:
    async with queue.connection() as connection:
        cursor = await connection.execute(query.encode(), parameters)
        return await cursor.fetchall()


@dataclass(frozen=True, slots=True)
class Spent:
    """What some calls came to."""

    calls: int
    unpriced: int
    """Those of which nobody knows the price: `cost` is without them."""
    uncertain: int
    """Those whose tokens are estimated, or lost."""
    requests: int
    input: int
    cache_read: int
    cache_write: int
    output: int
    reasoning: int
    cost: Decimal


async def spent(queue: Queue, task_id: str) -> Spent:
    """What a task has spent, as it is known now."""
    async with queue.connection() as connection, connection.cursor(row_factory=class_row(Spent)) as cursor:
        await cursor.execute(_SPENT, [task_id])
        found = await cursor.fetchone()
    assert found is not None, "an aggregate answers one row"
    return found


async def all_spent(queue: Queue) -> tuple[Any, ...]:
    """What the ledger says of everything: calls, unpriced, four counters, reasoning, requests, dollars."""
    [found] = await rows(queue, f"SELECT count(*), count(*) FILTER (WHERE cost IS NULL), {_SUMS} FROM tracekit.spend")
    return found


async def all_counted(queue: Queue) -> tuple[Any, ...]:
    """The same by the totals that metrics are made from."""
    [found] = await rows(
        queue,
        "SELECT coalesce(sum(sign * calls), 0), coalesce(sum(sign * unpriced), 0), "
        + _SUMS.replace("sum(", "sum(sign * ")
        + " FROM (SELECT CASE WHEN lowered THEN -1 ELSE 1 END AS sign, * FROM tracekit.usage_totals) AS t",
    )
    return found


_SPENT: LiteralString = """
SELECT count(*) AS calls, count(*) FILTER (WHERE cost IS NULL) AS unpriced,
       count(*) FILTER (WHERE basis <> 'reported') AS uncertain, coalesce(sum(requests), 0)::bigint AS requests,
       coalesce(sum(input_tokens), 0)::bigint AS input, coalesce(sum(cache_read_tokens), 0)::bigint AS cache_read,
       coalesce(sum(cache_write_tokens), 0)::bigint AS cache_write, coalesce(sum(output_tokens), 0)::bigint AS output,
       coalesce(sum(reasoning_tokens), 0)::bigint AS reasoning, coalesce(sum(cost), 0) AS cost
FROM tracekit.spend WHERE task_id = %s
"""

_SUMS = ", ".join(
    f"coalesce(sum({name}), 0)"
    for name in (
        "input_tokens",
        "cache_read_tokens",
        "cache_write_tokens",
        "output_tokens",
        "reasoning_tokens",
        "requests",
        "cost",
    )
)


def exactly(value: float) -> Decimal:
    """The decimal number that a float shows."""
    return Decimal(repr(value))

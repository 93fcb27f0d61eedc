"""What was ever booked, as the counters that Prometheus reads.

They are rows that grow with the ledger, in its transactions: a process that dies takes no count with it, and all show
the same. What a later report or price lowered is counted by itself, since a counter that sinks would be taken for one
that began anew; booked less lowered is the ledger.
"""

from __future__ import annotations

from collections import defaultdict
from decimal import Decimal
from typing import Any, LiteralString

from psycopg import AsyncConnection

from tracekit import metrics

MOST_VALUES = 50
"""Values of one label that are shown by name, those that came first; all others are `other`."""

OTHER = "other"

_READ: LiteralString = """
SELECT mode, persona, requester, provider, model, CASE WHEN synthetic THEN 'true' ELSE 'false' END, lowered, calls,
       unpriced, requests, input_tokens, cache_read_tokens, cache_write_tokens, output_tokens, reasoning_tokens, cost
FROM tracekit.usage_totals ORDER BY since, mode, persona, requester, provider, model, synthetic, lowered
"""
_LABELS = 6
_KINDS = ("input", "cache_read", "cache_write", "output")

Row = tuple[str, tuple[str, ...], float]
"""A metric's name, its label values, and its value."""


async def read(connection: AsyncConnection[Any]) -> list[Row]:
    """All of them, exact but for the last step into a float."""
    cursor = await connection.execute(_READ)
    sums: defaultdict[tuple[str, tuple[str, ...]], Decimal] = defaultdict(Decimal)
    known: list[dict[str, None]] = [{} for _ in range(_LABELS)]
    for row in await cursor.fetchall():
        labels = tuple(_bounded(names, value) for names, value in zip(known, row[:_LABELS], strict=True))
        lowered, calls, unpriced, requests, *tokens, reasoning, cost = row[_LABELS:]
        by_kind = [((*labels, kind), count) for kind, count in zip(_KINDS, tokens, strict=True)]
        if lowered:
            found = [
                (metrics.MODEL_CALLS_LOWERED, labels, calls),
                (metrics.MODEL_REQUESTS_LOWERED, labels, requests),
                (metrics.COST_LOWERED, labels, cost),
                (metrics.CALLS_PRICED_LATER, labels, unpriced),
                (metrics.REASONING_TOKENS_LOWERED, labels, reasoning),
            ]
            found += [(metrics.TOKENS_LOWERED, of, count) for of, count in by_kind]
        else:
            found = [
                (metrics.MODEL_CALLS, labels, calls),
                (metrics.MODEL_REQUESTS, labels, requests),
                (metrics.COST, labels, cost),
                (metrics.UNPRICED_CALLS, labels, unpriced),
                (metrics.REASONING_TOKENS, labels, reasoning),
            ]
            found += [(metrics.TOKENS, of, count) for of, count in by_kind]
        for metric, of, value in found:
            sums[metric.name, of] += value
    return [(name, labels, float(value)) for (name, labels), value in sums.items()]


def _bounded(known: dict[str, None], value: str) -> str:
    if value not in known:
        if len(known) >= MOST_VALUES:
            return OTHER
        known[value] = None
    return value

"""Setting budgets and looking whether they hold."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from tests.cost.driving import rows
from tracekit import ids
from tracekit.cost import Ledger
from tracekit.cost.budgets import Budget, set_budgets
from tracekit.cost.limits import Limit
from tracekit.cost.reservations import Intended
from tracekit.queue import Position, Queue


def limit(scope: Any, period: Any, unit: Any, subject: str = "") -> Limit:
    return Limit(scope, subject, period, unit)


def call(model: str = "m-1", **values: Any) -> Intended:
    """100 tokens in and 200 out at most: $0.003375."""
    return Intended(**{"provider": "test", "model": model, "local": False, "input": 100, "output": 200, **values})


async def let_hold(queue: Queue, of: Limit, amount: Decimal | int | None, **more: Any) -> None:
    """Set a budget, to be parked at unless `policy` says otherwise."""
    of_it: dict[str, Any] = {"policy": "park", "time_zone": "UTC", "set_by": "rob", **more}
    if "urgent_extra" in of_it:
        of_it["urgent_extra"] = Decimal(of_it["urgent_extra"])
    async with queue.connection() as connection:
        await set_budgets(connection, [Budget(of, None if amount is None else Decimal(amount), **of_it)])


async def reserve(ledger: Ledger, at: Position, key: str, intended: Intended | None = None) -> None:
    await ledger.reserve(at, key, intended or call(), ids.new_span_id())


async def counters(queue: Queue) -> dict[str, tuple[Any, Any]]:
    """Spent and reserved, by unit."""
    return {
        unit: (spent, reserved)
        for unit, spent, reserved in await rows(
            queue, "SELECT unit, spent, reserved FROM tracekit.budget_counters WHERE task_id = ''"
        )
    }


_AMOUNT = "CASE c.unit WHEN 'usd' THEN coalesce({usd}, 0) WHEN 'tokens' THEN {tokens} ELSE {requests} END"
_SUBJECT = (
    "c.subject = CASE c.scope WHEN 'mode' THEN {0}.mode WHEN 'persona' THEN coalesce({0}.persona, '')"
    " WHEN 'requester' THEN {0}.requester WHEN 'model' THEN {1} ELSE '' END"
)

# In one statement, so of one moment.
_WRONG = f"""
WITH known AS (
    SELECT c.*,
        (SELECT coalesce(sum({
    _AMOUNT.format(
        usd="CASE WHEN u.basis = 'lost' THEN coalesce(v.usd, u.cost) ELSE u.cost END",
        tokens="CASE WHEN u.basis = 'lost' AND v.key IS NOT NULL THEN v.tokens"
        " ELSE u.input_tokens + u.cache_read_tokens + u.cache_write_tokens + u.output_tokens END",
        requests="u.requests",
    )
}), 0)
         FROM tracekit.spend AS u LEFT JOIN tracekit.reservations AS v USING (task_id, key)
         WHERE NOT u.synthetic AND u.at >= c.begins AND u.at < c.ends AND c.task_id IN ('', u.task_id)
           AND {_SUBJECT.format("u", "coalesce(v.model, u.model)")}) AS in_ledger,
        (SELECT coalesce(sum({_AMOUNT.format(usd="v.usd", tokens="v.tokens", requests="v.requests")}), 0)
         FROM tracekit.reservations AS v WHERE v.closed_at IS NULL AND c.id = ANY(v.counters)) AS in_reservations,
        (SELECT b.amount + b.urgent_extra FROM tracekit.budgets AS b
         WHERE (b.scope, b.subject, b.period, b.unit) = (c.scope, c.subject, c.period, c.unit)
         ORDER BY id DESC LIMIT 1) AS most
    FROM tracekit.budget_counters AS c
)
SELECT scope, subject, period, unit, spent, in_ledger, reserved, in_reservations, most FROM known
WHERE spent <> in_ledger OR reserved <> in_reservations OR (%s AND spent + reserved > most)
"""


async def holds_together(queue: Queue, *, within: bool = False) -> None:
    """Every counter has what the ledger and the open reservations say; `within`: and no more than its budget."""
    wrong = await rows(queue, _WRONG, within)
    assert wrong == [], wrong

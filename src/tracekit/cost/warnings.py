"""Warnings: the operator is told when a budget is spent faster than its time passes, and when it is used up, of each
once a period. Nothing is said of the tasks that spent it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any, LiteralString
from zoneinfo import ZoneInfo

from psycopg import AsyncConnection

from tracekit.cost.counting import NEWEST
from tracekit.cost.limits import Limit, Policy, shown
from tracekit.queue.model import Notice

PACE, USED_UP = "budget_pace", "budget_used_up"
"""Kinds of notifications."""

BUDGET_KINDS = frozenset({PACE, USED_UP})

_BEYOND: dict[Policy, str] = {
    "downgrade": "What is beyond it is asked of the local model.",
    "park": "What is beyond it waits for your approval.",
    "refuse": "What is beyond it is refused.",
}

# `warned` is the share of its amount that a budget had spent when people were told of it: 1 for one that is used up.
_USED_UP: LiteralString = f"""
UPDATE tracekit.budget_counters AS c SET warned = 1
FROM ({NEWEST}) AS b
WHERE c.id = %s AND c.warned < 1
  AND (c.scope, c.subject, c.period, c.unit) = (b.scope, b.subject, b.period, b.unit)
RETURNING c.scope, c.subject, c.period, c.unit, b.amount, b.policy, b.time_zone, c.spent, c.begins, c.ends
"""

# Of the counters of now that nobody has been told of in full: spent to the end, or on the way there before its time.
# `task` is one that spent on it, for a notification is a task's.
_LOOK: LiteralString = f"""
SELECT c.id, c.scope, c.subject, c.period, c.unit, b.amount, b.policy, b.time_zone, c.spent, c.begins, c.ends,
       c.warned, clock.now
FROM ({NEWEST}) AS b CROSS JOIN (SELECT clock_timestamp() AS now) AS clock
JOIN tracekit.budget_counters AS c ON (c.scope, c.subject, c.period, c.unit) = (b.scope, b.subject, b.period, b.unit)
     AND c.task_id = '' AND c.begins > clock.now - interval '9 days' AND c.begins <= clock.now AND clock.now < c.ends
WHERE b.scope <> 'task' AND b.amount > 0 AND c.warned < 1 AND c.spent > 0
"""

_LAST_SPENDER: LiteralString = """
SELECT task_id FROM tracekit.usage WHERE at >= %s AND at < %s AND NOT synthetic ORDER BY at DESC LIMIT 1
"""

_WARNED: LiteralString = """
UPDATE tracekit.budget_counters SET warned = %s WHERE id = %s AND warned < %s RETURNING id
"""

_TELL: LiteralString = """
INSERT INTO tracekit.outbox (task_id, recipient, kind, urgent, title, body, data, created_at, due_at)
VALUES (%s, 'operator', %s, false, %s, %s, %s, clock_timestamp(), clock_timestamp())
"""


async def tell_used_up(connection: AsyncConnection[Any], task_id: str, counters: Sequence[int]) -> None:
    """A call of `task_id` found no room in these counters: tell the operator, unless they know."""
    for counter in counters:
        # One at a time: whoever holds several counters takes them in order, and this would not.
        async with connection.transaction():
            row = await (await connection.execute(_USED_UP, [counter])).fetchone()
            if row is not None:
                await _tell(connection, task_id, USED_UP, _used_up(*row))


async def watch(connection: AsyncConnection[Any], warn_at: float) -> int:
    """Look at the budgets of now and tell the operator of those that are used up, or will be before their time: at
    least `warn_at` of them is spent, and at this pace they do not last. Returns how many were told of.
    """
    told = 0
    for id, *row, warned, now in await (await connection.execute(_LOOK)).fetchall():
        scope, subject, period, unit, amount, policy, time_zone, spent, begins, ends = row
        share = spent / amount
        passed = (now - begins) / (ends - begins)
        if share >= 1:
            kind, notice, level = USED_UP, _used_up(*row), Decimal(1)
        elif warned == 0 and share >= Decimal(str(warn_at)) and share > Decimal(str(passed)):
            limit = Limit(scope, subject, period, unit)
            notice = _pace(limit, amount, policy, time_zone, spent, begins, ends, now)
            kind, level = PACE, share
        else:
            continue
        async with connection.transaction():
            if await (await connection.execute(_WARNED, [level, id, level])).fetchone() is None:
                continue  # another process was first
            spender = await (await connection.execute(_LAST_SPENDER, [begins, ends])).fetchone()
            if spender is not None:
                await _tell(connection, spender[0], kind, notice)
                told += 1
    return told


def projected(spent: Decimal, begins: datetime, ends: datetime, now: datetime) -> Decimal:
    """What will be spent at the end of the period if it goes on as it began."""
    passed = Decimal(str((now - begins) / (ends - begins)))
    return spent / passed if passed else spent


def _used_up(
    scope: Any, subject: str, period: Any, unit: Any, amount: Decimal, policy: Policy, zone: str, spent: Decimal,
    begins: datetime, ends: datetime,
) -> Notice:  # fmt: skip
    limit = Limit(scope, subject, period, unit)
    anew = "" if scope == "task" else f" It begins anew at {_local(ends, zone)}."
    return Notice(
        kind=USED_UP,
        title=f"Used up: {limit.words}",
        body=f"{shown(unit, spent)} of {shown(unit, amount)} is spent, and there was no room for more."
        f" {_BEYOND[policy]}{anew}\n`tracekit budget show` has all of them.",
    )


def _pace(
    limit: Limit, amount: Decimal, policy: Policy, zone: str, spent: Decimal, begins: datetime, ends: datetime,
    now: datetime,
) -> Notice:  # fmt: skip
    percent = round(100 * spent / amount)
    passed = round(100 * ((now - begins) / (ends - begins)))
    at_end = projected(spent, begins, ends, now)
    when = begins + (now - begins) * float(amount / spent)
    return Notice(
        kind=PACE,
        title=f"{percent} % spent: {limit.words}",
        body=f"{shown(limit.unit, spent)} of {shown(limit.unit, amount)} is spent, and {passed} % of its time has"
        f" passed. At this pace it is used up at {_local(when, zone)}, and would come to"
        f" {shown(limit.unit, _rounded(limit, at_end))}. {_BEYOND[policy]}\n`tracekit budget show` has all of them.",
    )


def _rounded(limit: Limit, amount: Decimal) -> Decimal:
    return amount.quantize(Decimal("0.01")) if limit.unit == "usd" else amount.quantize(Decimal(1))


def _local(at: datetime, zone: str) -> str:
    return f"{at.astimezone(ZoneInfo(zone)):%Y-%m-%d %H:%M %Z}"


async def _tell(connection: AsyncConnection[Any], task_id: str, kind: str, notice: Notice) -> None:
    # What is sent under one name takes the place of what was sent before under it.
    data = {"replaces": notice.title}
    await connection.execute(_TELL, [task_id, kind, notice.title, notice.body, json.dumps(data)])

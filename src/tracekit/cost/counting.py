"""Counters of budgets: which of them a call is counted on, in SQL that reserving, booking and making counters share.

A call counts for the model that was asked for (its reservation's), or where none was reserved the one that answered.
What a demonstration made up counts nowhere.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, LiteralString

from psycopg import AsyncConnection

from tracekit.cost.limits import Limit
from tracekit.cost.periods import ALWAYS, period_of

NEWEST: LiteralString = """
SELECT DISTINCT ON (scope, subject, period, unit) * FROM tracekit.budgets ORDER BY scope, subject, period, unit, id DESC
"""
"""Each budget as it holds now, those that were withdrawn (`amount` null) among them."""

TOKENS: LiteralString = "input_tokens + cache_read_tokens + cache_write_tokens + output_tokens"

SHARED: LiteralString = "SELECT pg_advisory_xact_lock_shared(hashtext('tracekit.budgets'))"
"""Held by whoever reserves, books or releases, from before they look: meanwhile no budget or counter comes to be."""

ALONE: LiteralString = "SELECT pg_advisory_xact_lock(hashtext('tracekit.budgets'))"
"""Held by whoever makes budgets and their counters: what a new one begins with is all that was spent until then."""


def subject_of(
    scope: LiteralString, mode: LiteralString, persona: LiteralString, requester: LiteralString, model: LiteralString
) -> LiteralString:
    """The subject that a budget of `scope` has if a call is its business; each argument an expression of SQL."""
    return (
        f"CASE {scope} WHEN 'mode' THEN {mode} WHEN 'persona' THEN coalesce({persona}, '')"
        f" WHEN 'requester' THEN {requester} WHEN 'model' THEN {model} ELSE '' END"
    )


def in_unit(unit: LiteralString, usd: LiteralString, tokens: LiteralString, requests: LiteralString) -> LiteralString:
    """An amount in the unit of a budget; each argument an expression of SQL."""
    return f"CASE {unit} WHEN 'usd' THEN {usd} WHEN 'tokens' THEN {tokens} ELSE {requests} END"


def spent_in(unit: LiteralString, call: LiteralString, reservation: LiteralString) -> LiteralString:
    """What a row `call` of the ledger counts in the unit of a budget; `reservation` is its row of those, or null.

    A lost call may have cost as much as was reserved for it, and counts so until somebody knows better: a model that
    never answers in time would cost a budget nothing otherwise. The ledger itself has no price of it.
    """
    usd, tokens = f"{call}.cost", f"({call}.{TOKENS.replace(' + ', f' + {call}.')})"
    return in_unit(
        unit,
        f"coalesce(CASE {call}.basis WHEN 'lost' THEN {reservation}.usd END, {usd}, 0)",
        f"coalesce(CASE {call}.basis WHEN 'lost' THEN {reservation}.tokens END, {tokens})",
        f"{call}.requests",
    )


def counters_of(limit: LiteralString, task: LiteralString, at: LiteralString) -> LiteralString:
    """The ids of the counters of a budget, a row `limit`, on which a call of `task` at `at` counts."""
    # In two, each with the index that suits it. No period is longer than nine days.
    return f"""
        SELECT c.id FROM tracekit.budget_counters AS c
        WHERE {limit}.scope <> 'task' AND c.task_id = ''
          AND (c.scope, c.subject, c.period, c.unit) = ({limit}.scope, {limit}.subject, {limit}.period, {limit}.unit)
          AND c.begins > {at} - interval '9 days' AND c.begins <= {at} AND {at} < c.ends
        UNION ALL
        SELECT c.id FROM tracekit.budget_counters AS c
        WHERE {limit}.scope = 'task' AND c.task_id <> '' AND c.task_id = {task} AND c.unit = {limit}.unit
    """


_SPENT_SUBJECT = subject_of("n.scope", "u.mode", "u.persona", "u.requester", "coalesce(v.model, u.model)")
_OPEN_SUBJECT = subject_of("n.scope", "v.mode", "v.persona", "v.requester", "v.model")
_SPENT = spent_in("n.unit", "u", "v")
_RESERVED = in_unit("n.unit", "coalesce(v.usd, 0)", "v.tokens", "v.requests")

# What it begins with: all that was spent in its time, and what is reserved for calls under way, which it holds from now
# on. `{spent}` and `{open}` say where to look for them.
_MAKE: LiteralString = """
WITH named AS MATERIALIZED (
    SELECT * FROM jsonb_to_recordset(%(limits)s::jsonb) AS n(
        scope text, subject text, period text, unit text, task_id text, begins timestamptz, ends timestamptz)
), made AS (
    INSERT INTO tracekit.budget_counters AS c (scope, subject, period, unit, task_id, begins, ends, spent, reserved)
    SELECT n.scope, n.subject, n.period, n.unit, n.task_id, n.begins, n.ends,
           (SELECT coalesce(sum(SPENT), 0) FROM tracekit.spend AS u
            LEFT JOIN tracekit.reservations AS v ON (v.task_id, v.key) = (u.task_id, u.key)
            WHERE NOT u.synthetic AND WHERE_SPENT AND n.subject = SPENT_SUBJECT),
           (SELECT coalesce(sum(RESERVED), 0) FROM tracekit.reservations AS v
            WHERE v.closed_at IS NULL AND NOT v.synthetic AND WHERE_OPEN AND n.subject = OPEN_SUBJECT)
    FROM named AS n ORDER BY n.scope, n.subject, n.period, n.unit
    -- One that was cut off by another time zone begins anew when that is taken back.
    ON CONFLICT (scope, subject, period, unit, begins, task_id) DO UPDATE
    SET ends = excluded.ends, spent = excluded.spent, reserved = excluded.reserved WHERE c.ends <> excluded.ends
    RETURNING *
)
UPDATE tracekit.reservations AS v
SET counters = ARRAY(SELECT DISTINCT id FROM unnest(v.counters || (
        SELECT array_agg(n.id) FROM made AS n WHERE WHERE_OPEN AND n.subject = OPEN_SUBJECT)) AS id ORDER BY id)
WHERE v.closed_at IS NULL AND NOT v.synthetic
  AND EXISTS (SELECT FROM made AS n WHERE WHERE_OPEN AND n.subject = OPEN_SUBJECT)
"""


def _make(spent: LiteralString, opened: LiteralString) -> LiteralString:
    return (
        _MAKE.replace("WHERE_SPENT", spent)
        .replace("WHERE_OPEN", opened)
        .replace("SPENT_SUBJECT", _SPENT_SUBJECT)
        .replace("OPEN_SUBJECT", _OPEN_SUBJECT)
        .replace("SPENT", _SPENT)
        .replace("RESERVED", _RESERVED)
    )


_MAKE_OF_PERIODS = _make("u.at >= n.begins AND u.at < n.ends", "v.made_at >= n.begins AND v.made_at < n.ends")
_MAKE_OF_A_TASK = _make("u.task_id = %(task)s", "v.task_id = %(task)s")


async def make_counters(connection: AsyncConnection[Any], limits: Iterable[tuple[Limit, str]]) -> None:
    """Make the counters of the present days and weeks of these budgets, each with its time zone, where there are none.
    In a transaction of the caller's, who holds `ALONE`.
    """
    row = await (await connection.execute("SELECT clock_timestamp()")).fetchone()
    assert row is not None, "a SELECT without FROM answers one row"
    rows = [_row(limit, "", *period_of(row[0], limit.period, zone)) for limit, zone in limits if limit.scope != "task"]
    if rows:
        await connection.execute(_MAKE_OF_PERIODS, {"limits": json.dumps(rows)})


async def make_caps(connection: AsyncConnection[Any], task_id: str, limits: Iterable[Limit]) -> None:
    """Make the counters of a task's own caps. In a transaction of the caller's, who holds the task's row."""
    rows = [_row(limit, task_id, *ALWAYS) for limit in limits]
    await connection.execute(_MAKE_OF_A_TASK, {"limits": json.dumps(rows), "task": task_id})


def _row(limit: Limit, task_id: str, begins: Any, ends: Any) -> dict[str, str]:
    return {
        "scope": limit.scope,
        "subject": limit.subject,
        "period": limit.period,
        "unit": limit.unit,
        "task_id": task_id,
        "begins": begins.isoformat(),
        "ends": ends.isoformat(),
    }

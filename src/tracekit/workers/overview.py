"""The overview: one typed snapshot of what waits, runs, failed and was spent, for `tracekit top` and ingress's page.

Counts, ages and workers are what the metrics show (`workers.depths`), so that no screen disagrees with an alert. What a
metric has no room for (which tasks, which approvals, how many were given up) is read beside them, bounded by an index.
It is an operator's, and all the same no title of a restricted task or plan leaves the database: others look at screens
too.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, LiteralString

from psycopg import AsyncConnection
from psycopg.rows import class_row

from tracekit import metrics
from tracekit.cost.budgets import standings
from tracekit.cost.limits import Limit, Unit
from tracekit.cost.spending import Spending, spending
from tracekit.instruments import DatabaseGauges, Reading
from tracekit.metrics import Metric
from tracekit.queue import Queue
from tracekit.workers.depths import SHARE, DepthReader
from tracekit.workers.words import age, one_line

MOST_RUNNING = 20
MOST_DEAD = 3
MOST_APPROVALS = 3

_STEPS = 10_000
"""Steps of the record that are looked at, the newest: with more in a minute, the rates are of what they span."""

_STALE_S = 10.0
"""From which age on counts are said to be old."""

_MODES = ("router", "planner", "guardian", "executor", "reviewer", "historian", "observer", "upstream-watcher")
"""The order in which modes are shown; others come after them by name."""


@dataclass(frozen=True, slots=True)
class ModeNow:
    """One mode: its hops in the queue, and its attempts of the last minute."""

    mode: str
    ready: int
    """Hops that wait for a worker."""
    scheduled: int
    running: int
    """In flight: under a lease."""
    parked: int
    oldest_ready_seconds: float | None
    workers: int
    attempts_per_minute: float
    """Attempts that ended."""
    failures_per_minute: float
    """Of those, with an error."""

    @property
    def unserved(self) -> bool:
        """Whether hops wait for a worker, and there is none."""
        return self.ready > 0 and self.workers == 0

    @property
    def idle(self) -> bool:
        """Whether there is nothing to tell of it."""
        return not (self.ready or self.scheduled or self.running or self.parked or self.attempts_per_minute)


@dataclass(frozen=True, slots=True)
class WorkerNow:
    """A worker that was seen within two minutes."""

    worker: str
    modes: list[str]
    listener: str
    seen_seconds: float


@dataclass(frozen=True, slots=True)
class RunningNow:
    """A task in flight."""

    task_id: str
    trace_id: str
    title: str
    mode: str
    attempt: int
    worker: str
    seconds: float


@dataclass(frozen=True, slots=True)
class DeadNow:
    """An entry of the DLQ. What went wrong in full is for `tracekit dlq show`."""

    task_id: str
    trace_id: str
    title: str
    mode: str
    reason: str
    error_type: str | None
    seconds: float


@dataclass(frozen=True, slots=True)
class ApprovalNow:
    """What waits for a person's decision; `seconds` until it expires."""

    task_id: str
    trace_id: str
    title: str
    requester: str
    urgent: bool
    deadline: datetime
    seconds: float


@dataclass(frozen=True, slots=True)
class BudgetNow:
    """A budget of the present day or week."""

    name: str
    unit: Unit
    amount: Decimal
    spent: Decimal
    reserved: Decimal
    remaining: Decimal
    used_up: bool


@dataclass(frozen=True, slots=True)
class Overview:
    """All of it. `at` is the database's time; ages are in seconds at that time."""

    at: datetime
    counted_seconds: float
    """Age of what is counted: a very deep queue is not counted anew for each look."""
    modes: list[ModeNow]
    workers: list[WorkerNow]
    running: list[RunningNow]
    """Those that run longest."""
    dead: int
    dead_by_reason: dict[str, int]
    newest_dead: list[DeadNow]
    approvals: int
    urgent_approvals: int
    next_approvals: list[ApprovalNow]
    """Those that expire first."""
    undelivered: int
    given_up: int
    """Of the undelivered notifications, those that nobody tries any more."""
    oldest_undelivered_seconds: float | None
    """Of those that are still tried."""
    collector: bool
    """Whether spans were ever sent anywhere. Until then they are kept, and none is counted as unshipped."""
    unshipped: int
    """Spans; 100,000 is that many or more."""
    oldest_unshipped_seconds: float | None
    today: Spending
    this_week: Spending
    budgets: list[BudgetNow]

    @property
    def ready(self) -> int:
        """Hops that wait for a worker, over all modes."""
        return sum(one.ready for one in self.modes)

    @property
    def in_flight(self) -> int:
        """Hops that run, over all modes."""
        return sum(one.running for one in self.modes)

    @property
    def deaf(self) -> int:
        """Workers that hear no notification, and poll."""
        return sum(one.listener == "polling" for one in self.workers)

    @property
    def stale(self) -> str:
        """How old the counts are, where that is worth saying."""
        return f"counted {age(self.counted_seconds)} ago" if self.counted_seconds >= _STALE_S else ""

    @property
    def notifications(self) -> str:
        """How they stand, in words."""
        told = [f"{self.given_up} given up"] if self.given_up else []
        if self.oldest_undelivered_seconds is not None:
            waiting = self.undelivered - self.given_up
            told.insert(0, f"{waiting} undelivered, the oldest for {age(self.oldest_undelivered_seconds)}")
        return ", ".join(told) or "all delivered"

    @property
    def spans(self) -> str:
        """How their shipping stands, in words."""
        if self.unshipped and self.oldest_unshipped_seconds is not None:
            return f"{self.unshipped:,} unshipped, the oldest for {age(self.oldest_unshipped_seconds)}"
        return "all shipped" if self.collector else "kept here: no collector was ever named"


class Overviews:
    """Makes overviews. However many ask, it looks once in `at_most` (default 1 s), more rarely where a look is slow.

    `gauges` are the process's own, where it has some that are renewed anyway.
    """

    def __init__(
        self,
        queue: Queue,
        *,
        time_zone: str,
        gauges: DatabaseGauges | None = None,
        at_most: timedelta = timedelta(seconds=1),
        timeout: timedelta = timedelta(seconds=5),
    ) -> None:
        self._queue = queue
        self._time_zone = time_zone
        self._gauges = gauges or DatabaseGauges()
        self._depths = DepthReader(queue, self._gauges, at_most=at_most, timeout=timeout)
        self._at_most = at_most.total_seconds()
        self._timeout = timeout.total_seconds()
        self._looking = asyncio.Lock()
        self._last: Overview | None = None
        self._again_at = 0.0

    async def look(self) -> Overview:
        """The overview. Raises what the database said when it could not be read."""
        async with self._looking:
            if self._last is None or time.monotonic() >= self._again_at:
                self._last = None
                began = time.monotonic()
                self._last = await self._read()
                ended = time.monotonic()
                self._again_at = ended + max(self._at_most, SHARE * (ended - began))
            return self._last

    async def _read(self) -> Overview:
        await self._depths.read()
        reading = self._gauges.reading
        assert reading is not None, "it was just read"
        async with asyncio.timeout(self._timeout), self._queue.connection() as connection, connection.transaction():
            await connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
            return await overview(connection, reading, self._time_zone)


# Everything below is asked with these: the time that ages are counted from, and how much is shown.
_NOW: LiteralString = "SELECT clock_timestamp()"

_TITLE: LiteralString = "tracekit.title(e.intent, e.data_tier) AS title"

# The newest steps, found from the end of the index that spans are shipped by.
_ATTEMPTS: LiteralString = """
WITH newest AS MATERIALIZED (
    SELECT at, mode, claimed_at IS NOT NULL AS ended, coalesce(data ? 'error', false) AS failed
    FROM tracekit.record ORDER BY xid DESC, seq DESC LIMIT %(steps)s
), span AS (
    SELECT CASE WHEN count(*) < %(steps)s THEN 60
                ELSE least(60, greatest(1, extract(epoch FROM %(now)s - min(at)))) END::float8 AS seconds
    FROM newest
)
SELECT mode, 60 * count(*) / seconds, 60 * count(*) FILTER (WHERE failed) / seconds
FROM newest, span
WHERE ended AND at > %(now)s - make_interval(secs => seconds) GROUP BY mode, seconds
"""

_WORKERS: LiteralString = """
SELECT id AS worker, modes, listener, greatest(0, extract(epoch FROM %(now)s - seen_at))::float8 AS seen_seconds
FROM tracekit.workers WHERE seen_at > %(now)s - interval '2 minutes' ORDER BY started_at, id
"""

# A lease ends soon: that bound keeps what is parked for days out of the index's range.
_RUNNING: LiteralString = f"""
SELECT q.task_id, e.trace_id, {_TITLE}, q.mode, q.attempt, coalesce(q.worker, '') AS worker,
       greatest(0, extract(epoch FROM %(now)s - q.claimed_at))::float8 AS seconds
FROM (SELECT * FROM tracekit.queue
      WHERE state = 'running' AND due_at < %(now)s + interval '1 day'
      ORDER BY claimed_at, task_id LIMIT {MOST_RUNNING}) AS q
JOIN tracekit.envelopes AS e ON e.id = q.task_id ORDER BY q.claimed_at, q.task_id
"""

_DEAD: LiteralString = f"""
SELECT d.task_id, e.trace_id, {_TITLE}, d.mode, d.reason, d.error_type,
       greatest(0, extract(epoch FROM %(now)s - d.died_at))::float8 AS seconds
FROM (SELECT * FROM tracekit.dead_letters WHERE resolved_at IS NULL ORDER BY died_at DESC LIMIT {MOST_DEAD}) AS d
JOIN tracekit.envelopes AS e ON e.id = d.task_id ORDER BY d.died_at DESC, d.id DESC
"""

# A plan may be restricted whose task is not.
_APPROVALS: LiteralString = f"""
SELECT w.task_id, e.trace_id, tracekit.title(e.intent, CASE w.tier WHEN 'restricted' THEN w.tier ELSE e.data_tier END)
           AS title, e.requester, w.urgent, w.deadline,
       extract(epoch FROM w.deadline - %(now)s)::float8 AS seconds
FROM (SELECT w.task_id, q.priority = 3 AS urgent, least(w.deadline, q.expires_at) AS deadline,
             w.data->>'data_tier' AS tier
      FROM tracekit.waits AS w
      JOIN tracekit.queue AS q ON (q.task_id, q.hop, q.wait_attempt) = (w.task_id, w.hop, w.attempt)
      WHERE w.closed_at IS NULL AND w.kind = 'approval' AND q.state = 'parked'
      ORDER BY least(w.deadline, q.expires_at), w.task_id LIMIT {MOST_APPROVALS}) AS w
JOIN tracekit.envelopes AS e ON e.id = w.task_id ORDER BY w.deadline, w.task_id
"""

_GIVEN_UP: LiteralString = "SELECT count(*) FROM tracekit.outbox WHERE delivered_at IS NULL AND due_at IS NULL"

_COLLECTOR: LiteralString = "SELECT EXISTS (SELECT FROM tracekit.span_shipping)"


async def overview(connection: AsyncConnection[Any], reading: Reading, time_zone: str) -> Overview:
    """What `reading` counted, and which tasks stand behind it, as the caller's transaction sees them. Days are those of
    `time_zone`.
    """
    row = await (await connection.execute(_NOW)).fetchone()
    assert row is not None, "a SELECT without FROM answers one row"
    now: datetime = row[0]
    values = {"now": now, "steps": _STEPS}
    attempts = {mode: (rate, failed) for mode, rate, failed in await _all(connection, _ATTEMPTS, values)}
    dead = sorted(_sum(reading, metrics.DEAD_LETTERS, "reason").items(), key=lambda of: (-of[1], of[0]))
    reasons = {reason: int(entries) for (reason,), entries in dead}
    approvals = _sum(reading, metrics.APPROVALS_PENDING, "urgent")
    undelivered = int(_sum(reading, metrics.NOTIFICATIONS_UNDELIVERED).get((), 0))
    # Those given up are of this moment, the others of when they were counted.
    given_up = min(undelivered, (await _all(connection, _GIVEN_UP, values))[0][0])
    oldest = _sum(reading, metrics.NOTIFICATION_OLDEST_UNDELIVERED_AGE).get(())
    unshipped = int(_sum(reading, metrics.SPANS_UNSHIPPED).get((), 0))
    today, this_week = await spending(connection, now, time_zone)
    return Overview(
        at=now,
        counted_seconds=max(0.0, time.monotonic() - reading.at),
        modes=_modes(reading, attempts),
        workers=await _rows(connection, WorkerNow, _WORKERS, values),
        running=_titled(await _rows(connection, dict, _RUNNING, values), RunningNow),
        dead=sum(reasons.values()),
        dead_by_reason=reasons,
        newest_dead=_titled(await _rows(connection, dict, _DEAD, values), DeadNow),
        approvals=int(sum(approvals.values())),
        urgent_approvals=int(approvals.get(("true",), 0)),
        next_approvals=_titled(await _rows(connection, dict, _APPROVALS, values), ApprovalNow),
        undelivered=undelivered,
        given_up=given_up,
        oldest_undelivered_seconds=oldest if undelivered > given_up else None,
        collector=(await _all(connection, _COLLECTOR, values))[0][0],
        unshipped=unshipped,
        oldest_unshipped_seconds=_sum(reading, metrics.SPAN_OLDEST_UNSHIPPED_AGE).get(()) if unshipped else None,
        today=today,
        this_week=this_week,
        budgets=await _budgets(connection),
    )


def _modes(reading: Reading, attempts: dict[str, tuple[float, float]]) -> list[ModeNow]:
    hops = _sum(reading, metrics.HOPS, "mode", "state")
    ages = _fold(reading, metrics.HOP_OLDEST_AGE, max, "mode", "state")
    workers = _sum(reading, metrics.WORKERS, "mode")
    found = {mode for mode, _ in hops} | {mode for (mode,) in workers} | set(attempts)
    return [
        ModeNow(
            mode=mode,
            ready=int(hops.get((mode, "ready"), 0)),
            scheduled=int(hops.get((mode, "scheduled"), 0)),
            running=int(hops.get((mode, "running"), 0)),
            parked=int(hops.get((mode, "parked"), 0)),
            oldest_ready_seconds=ages.get((mode, "ready")),
            workers=int(workers.get((mode,), 0)),
            attempts_per_minute=attempts.get(mode, (0.0, 0.0))[0],
            failures_per_minute=attempts.get(mode, (0.0, 0.0))[1],
        )
        for mode in sorted(found, key=lambda mode: (_MODES.index(mode) if mode in _MODES else len(_MODES), mode))
    ]


async def _budgets(connection: AsyncConnection[Any]) -> list[BudgetNow]:
    """Without the caps of tasks: each task has its own."""
    found = []
    for one in await standings(connection, make=False):
        if one.scope != "task":
            spent, reserved = one.spent or Decimal(0), one.reserved or Decimal(0)
            name = Limit(one.scope, one.subject, one.period, one.unit).name
            remaining = one.amount - spent - reserved
            found.append(BudgetNow(name, one.unit, one.amount, spent, reserved, remaining, one.used_up))
    return found


def _sum(reading: Reading, metric: Metric, *labels: str) -> dict[tuple[str, ...], float]:
    return _fold(reading, metric, sum, *labels)


def _fold(
    reading: Reading, metric: Metric, fold: Callable[[Iterable[float]], float], *labels: str
) -> dict[tuple[str, ...], float]:
    """A metric's values by these of its labels, over all others that it has."""
    places = [metric.labels.index(label) for label in labels]
    values: dict[tuple[str, ...], list[float]] = {}
    for name, given, value in reading.rows:
        if name == metric.name:
            values.setdefault(tuple(given[place] for place in places), []).append(value)
    return {key: fold(of) for key, of in values.items()}


async def _all(connection: AsyncConnection[Any], query: LiteralString, values: dict[str, Any]) -> list[Any]:
    return await (await connection.execute(query, values)).fetchall()


async def _rows(connection: AsyncConnection[Any], kind: Any, query: LiteralString, values: dict[str, Any]) -> list[Any]:
    async with connection.cursor(row_factory=class_row(kind)) as cursor:
        await cursor.execute(query, values)
        return await cursor.fetchall()


def _titled(rows: list[dict[str, Any]], kind: Any) -> list[Any]:
    """Rows as `kind`, their titles as a screen may show them."""
    return [kind(**{**row, "title": one_line(row["title"])}) for row in rows]

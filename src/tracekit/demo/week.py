"""A synthetic week: tasks and what their models spent on the seven days before today, as if they had been run then.

All of it goes through the code that real tasks go through (accept, claim, reserve, book, hand off, end), on one
connection whose clock says the time that the story is at: functions of its functions' names, in a schema that lives for
as long as a day's transaction, stand before PostgreSQL's own. Only what happens is made up. Nothing of it can be
claimed by anybody else, for a day is committed whole, when its tasks have ended.

It is marked wherever it can be seen: the surface `demo-week` and the tag `synthetic` of its tasks, `synthetic` in the
ledger, in reports, and as a label of metrics. Of its spans the roots have that surface as `tracekit.surface`, and those
of calls `tracekit.synthetic`; those of hops have neither. It takes nothing from any budget. The same seed on the same
day is the same week; only the span ids of calls differ.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from random import Random
from typing import Any, LiteralString
from zoneinfo import ZoneInfo

from psycopg import AsyncConnection
from ulid import ULID

from tracekit.config import Settings
from tracekit.cost import CallSpan, PriceBook, Report, Usage
from tracekit.cost.ledger import book, lock
from tracekit.cost.periods import midnight
from tracekit.cost.reservations import Intended, reserve
from tracekit.cost.spender import Spender
from tracekit.envelope import Envelope, Origin, Priority, TaskRequest
from tracekit.errors import TracekitError
from tracekit.queue import Done, HandOff, Position, Settlement, Submission
from tracekit.queue.changes import Changes
from tracekit.queue.claim import Ask, claim
from tracekit.queue.enqueue import enqueue
from tracekit.queue.model import LeaseExpired, Outcome
from tracekit.queue.retention import forget
from tracekit.queue.tasks import SYNTHETIC_SURFACE
from tracekit.queue.transitions import end_attempt
from tracekit.queue.turn import take_turn
from tracekit.workers.mode import scope_of

TAG = "synthetic"
"""Beside the surface: what is removed has both, since a surface is a name that an operator may choose."""
DAYS = 7
SEED = 4
_WORKER = "demo-week"
_LEASE = timedelta(minutes=1)

_CLOCK: tuple[LiteralString, ...] = (
    "CREATE SCHEMA tracekit_demo_week",
    "CREATE FUNCTION tracekit_demo_week.clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE"
    " AS $$SELECT current_setting('tracekit_demo.now')::timestamptz$$",
    "CREATE FUNCTION tracekit_demo_week.statement_timestamp() RETURNS timestamptz LANGUAGE sql STABLE"
    " AS $$SELECT current_setting('tracekit_demo.now')::timestamptz$$",
    "SET LOCAL search_path = tracekit_demo_week, pg_catalog",
)
_NO_CLOCK: tuple[LiteralString, ...] = ("SET LOCAL search_path = DEFAULT", "DROP SCHEMA tracekit_demo_week CASCADE")
_NOW: LiteralString = "SELECT set_config('tracekit_demo.now', %s, true)"
_ALONE: LiteralString = "SELECT pg_advisory_xact_lock(hashtext('tracekit.demo_week'))"
# Both marks: a surface is a name that anybody may choose, and what is found here is deleted.
_OURS: LiteralString = "SELECT id FROM tracekit.envelopes WHERE surface = %s AND %s = ANY (tags)"


class WeekError(TracekitError):
    """The synthetic week cannot be written."""

    exit_code = 2


@dataclass(frozen=True, slots=True)
class Written:
    """What was written."""

    first: date
    last: date
    time_zone: str
    seed: int
    tasks: int
    calls: int
    unpriced: int
    retries: int
    cost: Decimal


@dataclass(frozen=True, slots=True)
class _Call:
    """A model's part in a mode: what it reads and writes in thousands of tokens, give or take a half."""

    mode: str
    provider: str
    model: str
    given: float
    made: float
    times: tuple[int, int] = (1, 1)
    cached: float = 0.0
    """The share of the input that comes from a cache."""
    reasoning: float = 0.0
    """The share of the output that nobody is shown."""
    local: bool = False


@dataclass(frozen=True, slots=True)
class _Kind:
    """A kind of task, and how many of it a day has."""

    intent: str
    origin: Origin
    role: str
    persona: str
    a_day: tuple[int, int]
    hours: tuple[int, int]
    calls: tuple[_Call, ...]
    priority: Priority = Priority.NORMAL
    weekdays: bool = False


_KINDS = (
    _Kind("What is on the calendar today?", Origin.HA_VOICE, "household", "steward", (4, 7), (6, 22),
          (_Call("planner", "openai", "gpt-4o-mini", 1.5, 0.2), _Call("executor", "openai", "gpt-4o-mini", 3, 0.4))),
    _Kind("Sum up the mail of the school", Origin.OPEN_WEBUI, "household", "assistant", (2, 4), (7, 21),
          (_Call("executor", "anthropic", "claude-sonnet-4-5", 14, 0.9, (1, 3), cached=0.6),)),
    _Kind("Triage an alert: KubePodCrashLooping", Origin.OBSERVER, "system", "triager", (1, 5), (0, 24),
          (_Call("planner", "openai", "gpt-4o", 4, 0.5), _Call("executor", "openai", "gpt-4o", 9, 1.1, (1, 2)),
           _Call("reviewer", "openai", "gpt-4o-mini", 5, 0.3)), Priority.HIGH),
    _Kind("Look through what upstream has changed", Origin.SCHEDULED, "system", "maintainer", (1, 1), (3, 4),
          (_Call("executor", "anthropic", "claude-sonnet-4-5", 40, 2.5, (2, 4), cached=0.8),
           _Call("reviewer", "ollama", "qwen3:14b", 8, 1, local=True))),
    _Kind("Mend the automation of the blinds", Origin.MANUAL, "operator", "maintainer", (1, 2), (9, 23),
          (_Call("planner", "anthropic", "claude-opus-4-5", 12, 2.5, cached=0.3, reasoning=0.6),
           _Call("executor", "anthropic", "claude-opus-4-5", 30, 3, (3, 8), cached=0.7, reasoning=0.3),
           _Call("reviewer", "openai", "gpt-5-mini", 12, 1.5, reasoning=0.5)), weekdays=True),
    _Kind("Which lamp is still on?", Origin.ANDROID, "household", "steward", (3, 6), (16, 24),
          (_Call("planner", "ollama", "qwen3:14b", 1.2, 0.15, local=True),)),
)  # fmt: skip

_WAY = ("router", "planner", "guardian", "executor", "reviewer", "historian")


@dataclass(frozen=True, slots=True)
class _Told:
    """One task of the story."""

    at: datetime
    kind: _Kind
    key: str
    dies: bool
    """Its worker dies over the executor, once."""


async def write(connection: AsyncConnection[Any], settings: Settings, *, seed: int = SEED) -> Written:
    """Write the week before today, by the days of `cost.time_zone`. `connection` is in autocommit. Raises `WeekError`
    where there is one already.
    """
    zone = settings.cost.time_zone
    row = await (await connection.execute("SELECT clock_timestamp()")).fetchone()
    assert row is not None, "a SELECT without FROM answers one row"
    today = row[0].astimezone(ZoneInfo(zone)).date()
    days = [today - timedelta(days=DAYS - n) for n in range(DAYS)]
    writer = _Writer(connection, settings, Random(f"{seed}/{today}"))
    written = 0
    try:
        for number, day in enumerate(days):
            async with connection.transaction():
                await connection.execute(_ALONE)
                if number == 0 and await _ids(connection):
                    raise WeekError(
                        "there is a synthetic week in this database already", hint="`tracekit demo --week --remove`"
                    )
                for statement in _CLOCK:
                    await connection.execute(statement)
                await writer.day(list(_tell(writer.chance, day, number, zone)))
                for statement in _NO_CLOCK:
                    await connection.execute(statement)
            written += 1
    except BaseException:
        # Only what is ours: the week that was there before is not.
        if written:
            await remove(connection)
        raise
    return Written(
        days[0], days[-1], zone, seed, writer.tasks, writer.calls, writer.unpriced, writer.retries, writer.cost
    )


async def remove(connection: AsyncConnection[Any]) -> int:
    """Take all of it out of the database, as if it had never been; what was shipped to a tracing backend or scraped by
    Prometheus by then stays there. Returns how many tasks it had.
    """
    async with connection.transaction():
        await connection.execute(_ALONE)
        tasks = await _ids(connection)
        await forget(connection, tasks)
        await connection.execute("DELETE FROM tracekit.usage_totals WHERE synthetic")
    return len(tasks)


async def _ids(connection: AsyncConnection[Any]) -> list[str]:
    return [row[0] for row in await (await connection.execute(_OURS, [SYNTHETIC_SURFACE, TAG])).fetchall()]


def _tell(chance: Random, day: date, number: int, zone: str) -> Iterator[_Told]:
    """A day's tasks, in the order of time: a little more each day, and less to mend at the weekend."""
    begins, length = midnight(day, zone), midnight(day + timedelta(days=1), zone) - midnight(day, zone)
    told: list[_Told] = []
    for kind in _KINDS:
        if kind.weekdays and day.weekday() >= 5 and chance.random() < 0.6:
            continue
        count = round(chance.randint(*kind.a_day) * (1 + 0.04 * number))
        for nth in range(count):
            hour = chance.uniform(*kind.hours)
            at = begins + min(timedelta(hours=hour), length - timedelta(minutes=30))
            dies = kind.origin is not Origin.HA_VOICE and chance.random() < 0.07
            told.append(_Told(at, kind, f"{SYNTHETIC_SURFACE}/{day}/{kind.persona}-{len(told)}-{nth}", dies))
    yield from sorted(told, key=lambda one: one.at)


class _Writer:
    """Plays the story's tasks through the queue and the ledger."""

    def __init__(self, connection: AsyncConnection[Any], settings: Settings, chance: Random) -> None:
        self._connection = connection
        self._settings = settings
        self._prices = PriceBook(settings.prices)
        self.chance = chance
        self.tasks = self.calls = self.unpriced = self.retries = 0
        self.cost = Decimal(0)
        self._now = datetime.min.replace(tzinfo=UTC)

    async def day(self, told: Sequence[_Told]) -> None:
        for one in told:
            await self._task(one)
            self.tasks += 1

    async def _pass(self, seconds: float) -> None:
        await self._at(self._now + timedelta(seconds=seconds))

    async def _at(self, moment: datetime) -> None:
        self._now = moment
        await self._connection.execute(_NOW, [moment.isoformat()])

    async def _task(self, told: _Told) -> None:
        kind = told.kind
        await self._at(told.at)
        trace = ULID.from_bytes(int(told.at.timestamp() * 1000).to_bytes(6, "big") + self.chance.randbytes(10)).hex
        request = TaskRequest(intent=kind.intent, idempotency_key=told.key, priority=kind.priority)
        envelope = Envelope.seal(
            request, origin=kind.origin, surface=SYNTHETIC_SURFACE, requester=self._principal(kind.role), trace_id=trace
        )
        await enqueue(self._connection, [Submission(envelope, mode=_WAY[0], tags=(TAG,))])
        for mode, following in zip(_WAY, [*_WAY[1:], None], strict=True):
            await self._pass(self.chance.uniform(0.01, 0.4))
            at = await self._claim(mode, envelope.id)
            if told.dies and mode == "executor":
                at = await self._die(at, kind)
            await self._work(at, kind)
            outcome: Outcome = (
                HandOff(following, persona=kind.persona) if following else Done(summary=f"Done: {kind.intent}")
            )
            await take_turn(self._connection, [Settlement(at, outcome)], None)

    def _principal(self, role: str) -> str:
        named = [name for name, principal in self._settings.principals.items() if principal.role == role]
        return named[0] if named else self._settings.cli_principal

    async def _claim(self, mode: str, task_id: str) -> Position:
        # The oldest comes first, and ours is a day old at least.
        claimed = await claim(self._connection, Ask(_WORKER, {mode: 1}, _LEASE, (mode,)))
        if [one.task_id for one in claimed] != [task_id]:
            raise WeekError(
                f"a task has waited in {mode} for longer than the week goes back",
                hint="run a worker, or look at it: `tracekit tasks`",
            )
        return claimed[0]

    async def _die(self, at: Position, kind: _Kind) -> Position:
        """The first attempt makes a call and dies over the next, whose usage nobody saw; its lease ends."""
        calls = [call for call in kind.calls if call.mode == at.mode] or list(kind.calls[-1:])
        await self._call(at, calls[0])
        await self._call(at, calls[0], lost=True)
        await self._pass(_LEASE.total_seconds())
        changes = Changes(self._now)
        end_attempt(changes, at, LeaseExpired(), None, None)
        await changes.write(self._connection)
        self.retries += 1
        await self._pass(0.5)
        return await self._claim(at.mode, at.task_id)

    async def _work(self, at: Position, kind: _Kind) -> None:
        await self._pass(self.chance.uniform(0.005, 0.05))
        for call in kind.calls:
            if call.mode == at.mode:
                for _ in range(self.chance.randint(*call.times)):
                    await self._call(at, call)

    async def _call(self, at: Position, call: _Call, *, lost: bool = False) -> None:
        chance = self.chance
        given = round(1000 * call.given * chance.uniform(0.5, 1.6))
        made = round(1000 * call.made * chance.uniform(0.4, 1.8))
        read = round(given * call.cached * chance.uniform(0.7, 1.0))
        written = round((given - read) * 0.5) if call.cached and call.provider == "anthropic" else 0
        seconds = round(0.4 + made / chance.uniform(40, 90), 3)
        spender = Spender.of(at)
        usage = Usage(
            call.provider,
            call.model,
            input=0 if lost else given - read - written,
            cache_read=0 if lost else read,
            cache_write=0 if lost else written,
            output=0 if lost else made,
            reasoning=0 if lost else round(made * call.reasoning),
            local=call.local,
            seconds=None if lost else seconds,
            basis="lost" if lost else "reported",
            at=self._now,
        )
        scope = scope_of(at)
        span = CallSpan.of_the_past(usage, scope.context())
        span.say({**scope.attributes(), "tracekit.synthetic": True})
        most = Intended(call.provider, call.model, call.local, given, max(made, 4096))
        bound = self._prices.bound(Usage(call.provider, call.model, input=given, output=most.output), self._now)
        await lock(self._connection, at.task_id)
        await reserve(self._connection, spender, span.id, most, bound.cost, span.id, synthetic=True)
        await self._pass(seconds)
        priced = self._prices.price(usage, self._now)
        span.end(usage, priced)
        [booked] = await book(self._connection, spender, [Report(span.id, usage, priced, span)], synthetic=True)
        self.calls += 1
        self.unpriced += booked.cost is None
        self.cost += booked.cost or 0

"""What version 1 left in a database is right after the step to the present version, and the present program ends it.

`version_1.sql` was dumped after that version's program had made it. Where a schema comes after the present one, its
dump is to join it here.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, LiteralString

import psycopg
import pytest
from psycopg.rows import dict_row

from tests.cost.budgeting import holds_together as counters_hold_together
from tests.cost.budgeting import let_hold, limit, reserve
from tests.cost.driving import book, ledger_of, usage
from tests.queue.driving import LEASE, settle, submission, take
from tests.support.otlp import OtlpReceiver
from tests.support.postgres import ThrowawayServer
from tests.support.processes import eventually
from tests.tracing.shippers import running, shipper
from tracekit.cost import OverBudget
from tracekit.postgres import Pool, migrate, open_pool
from tracekit.postgres.schema import MIGRATIONS
from tracekit.queue import Done, Park, Queue
from tracekit.queue.audit import Extent, audit
from tracekit.queue.effects import EffectUncertain
from tracekit.tracing.otlp import collector_from_environment

DUMP = Path(__file__).parent / "version_1.sql"

_SHIFT = """
DO $$
DECLARE c record; since interval := now() - interval '2 minutes' - (SELECT max(at) FROM tracekit.events);
BEGIN
    FOR c IN SELECT table_name, column_name FROM information_schema.columns
             WHERE table_schema = 'tracekit' AND table_name <> 'schema_migrations'
               AND data_type = 'timestamp with time zone'
    LOOP
        EXECUTE format('UPDATE tracekit.%1$I SET %2$I = %2$I + %3$L::interval', c.table_name, c.column_name, since);
    END LOOP;
END $$
"""
"""As if dumped two minutes ago: the lease of the worker that was there is over, all deadlines are still to come."""

_RECORD: dict[str, LiteralString] = {
    "tasks": "SELECT * FROM tracekit.tasks ORDER BY id",
    "hops": "SELECT * FROM tracekit.hops ORDER BY task_id, hop",
    "events": "SELECT task_id, at, kind, hop, mode, coalesce(attempt, 0) AS attempt, data FROM tracekit.events"
    " ORDER BY task_id, seq",
    "spans": "SELECT trace_id, span_id, parent_span_id, task_id, source, name, kind, start_time, end_time, status,"
    " status_message, attributes, links, events FROM tracekit.spans ORDER BY trace_id, span_id",
}
"""What every version can be asked."""

Rows = list[dict[str, Any]]


def record(dsn: str) -> dict[str, Rows]:
    with psycopg.connect(dsn, row_factory=dict_row) as connection:
        return {name: connection.execute(query).fetchall() for name, query in _RECORD.items()}


@dataclass(frozen=True)
class Upgraded:
    """A database that has made the step, and what it held before."""

    dsn: str
    before: dict[str, Rows]
    shipped: set[str]
    """Ids of the spans that version 1 had shipped."""
    tokens: int
    """The greatest token that it had given out."""
    held: int
    """The token of the lease that was running."""

    def id_of(self, key: str) -> str:
        [task] = [task["id"] for task in self.before["tasks"] if task["idempotency_key"] == key]
        assert isinstance(task, str)
        return task


@pytest.fixture
async def upgraded(shared_server: ThrowawayServer, tmp_path: Path) -> Upgraded:
    dsn = shared_server.create_database()
    (tmp_path / "0001_substrate.sql").write_bytes((MIGRATIONS / "0001_substrate.sql").read_bytes())
    await migrate(dsn, directory=tmp_path)
    with psycopg.connect(dsn) as connection:
        connection.execute(DUMP.read_bytes())
        connection.execute(_SHIFT)
        shipped = connection.execute(
            "SELECT s.span_id FROM tracekit.spans AS s, tracekit.span_shipping AS c"
            " WHERE (s.xid, s.seq) <= (c.xid, c.seq)"
        ).fetchall()
        [(tokens, held)] = connection.execute(
            "SELECT max(token), max(token) FILTER (WHERE state = 'running') FROM tracekit.queue"
        ).fetchall()
    before = record(dsn)
    await migrate(dsn)
    return Upgraded(dsn, before, {row[0] for row in shipped}, tokens, held)


@pytest.fixture
async def pool(upgraded: Upgraded) -> AsyncIterator[Pool]:
    async with await open_pool(upgraded.dsn, min_size=1, max_size=4, name="test", autocommit=True) as opened:
        yield opened


async def holds_together(pool: Pool) -> None:
    async with pool.connection() as connection:
        extent, *findings = [found async for found in audit(connection)]
    assert isinstance(extent, Extent)
    assert extent.tasks > 20
    assert findings == []


async def test_the_record_says_the_same_as_before(upgraded: Upgraded, pool: Pool) -> None:
    """T11: nothing that a person, `follow` or a query could read of the past has changed; the audit is content."""
    after = record(upgraded.dsn)
    for name, rows in upgraded.before.items():
        for was, has_become in zip(rows, after[name], strict=True):
            if name == "events":
                told, tells = said(was), said(has_become)
                assert told.items() <= tells.items(), "a later version may say more"
                has_become["data"] = was["data"]
            assert has_become == was, name
    await holds_together(pool)


def said(event: dict[str, Any]) -> dict[str, str | datetime]:
    """What an event's data says: times as such, and the summary with the task's end alone, where it is told too."""
    said: dict[str, str | datetime] = {}
    for name, value in event["data"].items():
        if name in ("ready_at", "claimed_at", "due_at"):
            said[name] = datetime.fromisoformat(value)
        elif (event["kind"], name) != ("attempt.ended", "summary"):
            said[name] = json.dumps(value, sort_keys=True)
    return said


async def test_the_present_program_ends_what_version_1_began(upgraded: Upgraded, pool: Pool) -> None:
    """Each task goes on where it was: attempts, effects, waits, kept signals, dead letters (Q3, Q5, Q14, Q15)."""
    queue = Queue(pool)
    await queue.sweep()

    # A known key is a known task, also one that has ended.
    receipts = await queue.enqueue([submission(key="done"), submission(key="ready-not", mode="router")])
    assert [(receipt.task_id == upgraded.id_of("done"), receipt.duplicate) for receipt in receipts] == [
        (True, True),
        (False, False),
    ]

    # The old worker's lease has ended; its token is worth nothing any more, and new ones are greater.
    task_id = upgraded.id_of("running")
    assert await queue.heartbeat("gone", ["running"], "listening", {task_id: upgraded.held}, LEASE) == set()
    at = await take(queue, "running")
    assert (at.task_id, at.attempt, at.input) == (task_id, 3, {"x": 1})
    assert at.token > upgraded.tokens
    assert await settle(queue, at, Done(summary="third time lucky"))

    # Effects: what was done stays done, what may have been done is for somebody to look at.
    at = await take(queue, "releasing")
    assert (at.task_id, at.attempt) == (upgraded.id_of("released"), 2)
    assert await queue.begin_effect(at, "sure", uncertain="rerun") == (True, [7])
    with pytest.raises(EffectUncertain):
        await queue.begin_effect(at, "unsure", uncertain="raise")
    assert await settle(queue, at, Done())

    # Waits: one that is signalled now, one that was signalled then, and a signal that came before its wait.
    sent = await queue.signal("approval:one", {"decision": "approved"}, dedupe_key="1", sent_by="rob")
    assert sent.resumed == [upgraded.id_of("approval")]
    at = await take(queue, "waiting")
    assert at.persona == "guard"
    assert at.resumption is not None
    assert at.resumption.signal is not None
    assert (at.resumption.data, at.resumption.signal.payload) == ({"plan": "p"}, {"decision": "approved"})
    assert await settle(queue, at, Done())
    at = await take(queue, "answered")
    assert at.resumption is not None
    assert at.resumption.signal is not None
    assert (at.resumption.data, at.resumption.signal.payload) == ([1], {"result": "success"})
    assert await settle(queue, at, Done())
    assert await settle(queue, await take(queue, "early"), Park("ci", "ci:repo:early", timedelta(hours=1)))
    at = await take(queue, "early")
    assert at.resumption is not None
    assert at.resumption.signal is not None
    assert at.resumption.signal.payload == {"result": "failure"}
    assert await settle(queue, at, Done())
    assert (await queue.signal("ci:repo:def", {}, dedupe_key="run-1", sent_by="ci")).accepted is False
    await queue.signal("ci:repo:abc", {}, dedupe_key="run-3", sent_by="ci")

    # Dead letters.
    dead = {letter.task_id: letter for letter in await queue.dead_letters()}
    assert dead.keys() == {upgraded.id_of("dead"), upgraded.id_of("crashed")}
    await queue.resolve_dead(upgraded.id_of("dead"), "redriven", "rob")
    at = await take(queue, "dying")
    assert (at.task_id, at.intent) == (upgraded.id_of("dead"), "something that cannot be done")
    assert await settle(queue, at, Done())
    await queue.resolve_dead(upgraded.id_of("crashed"), "abandoned", "rob")

    # All that is left only needs somebody to do it, in the order of its priority.
    at = await take(queue, "welcoming")
    assert (at.task_id, at.trace_state) == (upgraded.id_of("ready"), "k=v")
    assert at.input == {"deep": {"list": [1, None, "ü"]}}
    assert await settle(queue, at, Done())
    modes = ["router", "retrying", "ci", "redriving", "secretive", "reviewing", "guardian", "planner"]
    while claimed := await queue.claim("w", dict.fromkeys(modes, 5), LEASE):
        for at in claimed:
            assert await settle(queue, at, Done())
        await queue.sweep()
    left = await queue.tasks(states=["open", "dead"])
    assert [(task.id, task.hop_state) for task in left] == [(upgraded.id_of("resting"), "scheduled")]
    await holds_together(pool)


_CLAIM_1: LiteralString = """
WITH picked AS (SELECT task_id FROM tracekit.queue WHERE state = 'ready' LIMIT 1 FOR UPDATE SKIP LOCKED)
UPDATE tracekit.queue AS q SET state = 'running', attempt = q.attempt + 1, token = nextval('tracekit.lease_token')
FROM picked WHERE q.task_id = picked.task_id RETURNING q.token
"""
"""How version 1 claims."""

_HELD_1: LiteralString = """
SELECT count(*) FROM tracekit.queue AS q WHERE q.token = %s AND q.state = 'running'
"""
"""How version 1 sees whether it may settle, extend its lease, or begin an effect."""


async def test_a_program_of_version_1_that_nobody_stopped_has_lost_its_leases_and_claims_nothing_Q3(
    upgraded: Upgraded, pool: Pool
) -> None:
    """That version holds no lock that a migration would see: its statements must come to nothing."""
    async with pool.connection() as connection:
        with pytest.raises(psycopg.errors.UndefinedTable):
            await connection.execute(_CLAIM_1)
        cursor = await connection.execute(_HELD_1, [upgraded.held])
        assert await cursor.fetchone() == (0,)


async def test_spans_that_version_1_had_not_shipped_are_shipped_once_and_no_other(
    upgraded: Upgraded, pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T6: what the collector has from before and what it gets now is every span once, those of new steps included."""
    queue = Queue(pool)
    await queue.sweep()
    assert await settle(queue, await take(queue, "running"), Done())
    with OtlpReceiver(tmp_path) as receiver:
        for name, value in receiver.environment().items():
            monkeypatch.setenv(name, value)
        async with running(shipper(upgraded.dsn, collector_from_environment())):
            missing = {span["span_id"] for span in record(upgraded.dsn)["spans"]} - upgraded.shipped

            async def all_came() -> bool:
                return {span for _, span in receiver.times_received()} >= missing

            await eventually(all_came, "every span comes")
        assert {span for _, span in receiver.times_received()} == missing
        assert set(receiver.times_received().values()) == {1}
    assert len(missing) > 40


async def test_d2_dashboards_read_what_version_1_left(upgraded: Upgraded, pool: Pool) -> None:
    """The views tell of the same tasks and of the same lines of the record."""
    same: dict[LiteralString, LiteralString] = {
        "SELECT id, state, ended_at FROM tracekit.tasks": "SELECT task_id, state, ended_at FROM grafana.tasks",
        "SELECT task_id, seq, kind FROM tracekit.events": "SELECT task_id, seq, kind FROM grafana.events",
        "SELECT task_id, hop, mode FROM tracekit.hops": "SELECT task_id, hop, mode FROM grafana.hops",
    }
    async with pool.connection() as connection:
        for recorded, shown in same.items():
            rows = [sorted(await (await connection.execute(query)).fetchall()) for query in (recorded, shown)]
            assert rows[0] == rows[1]
            assert len(rows[0]) > 20
        cursor = await connection.execute("SELECT FROM grafana.timeline WHERE state = 'running'")
        assert cursor.rowcount > 20


# --- from version 2 -------------------------------------------------------------------------------------------------


async def test_what_version_2_left_is_there_and_money_can_be_spent_on_it_C1_Q3(
    shared_server: ThrowawayServer, tmp_path: Path
) -> None:
    """The step to the ledger: a database that version 2 has filled says the same after it, and its open tasks spend."""
    dsn = shared_server.create_database()
    steps = sorted(MIGRATIONS.glob("*.sql"))
    for count in (1, 2):
        (tmp_path / steps[count - 1].name).write_bytes(steps[count - 1].read_bytes())
        await migrate(dsn, directory=tmp_path)
        if count == 1:
            with psycopg.connect(dsn) as connection:
                connection.execute(DUMP.read_bytes())
                connection.execute(_SHIFT)
    async with await open_pool(dsn, min_size=1, max_size=4, name="test", autocommit=True) as pool:
        queue = Queue(pool)
        # What the queue does is the same in both: tasks that end, that wait, and that are under way over the step.
        ended, waits, held = [receipt.task_id for receipt in await queue.enqueue(
            [submission("new"), submission("waiting-2"), submission("held")])]  # fmt: skip
        assert await settle(queue, await take(queue, "new"), Done(summary="before the ledger"))
        parked = await take(queue, "waiting-2")
        assert await settle(queue, parked, Park("approval", "approval:2", timedelta(hours=1), {}))
        at = await take(queue, "held")
    before = record(dsn)
    await migrate(dsn)
    after = record(dsn)
    for name, rows in before.items():
        assert after[name] == rows, name
    assert {ended, waits, held} <= {task["id"] for task in after["tasks"]}
    async with await open_pool(dsn, min_size=1, max_size=4, name="test", autocommit=True) as pool:
        queue = Queue(pool)
        ledger = ledger_of(queue)
        # The lease that was held over the step holds, and so do budgets over tasks that are older than they.
        await let_hold(queue, limit("total", "day", "requests"), 1)
        await let_hold(queue, limit("task", "task", "requests"), 5)
        await reserve(ledger, at, "k")
        await book(ledger, at, usage(key="k"))
        with pytest.raises(OverBudget):
            await reserve(ledger, at, "more")
        assert await settle(queue, at, Done())
        await queue.signal("approval:2", {"decision": "approve"}, dedupe_key="d", sent_by="rob")
        assert await settle(queue, await take(queue, "waiting-2"), Done())
        await counters_hold_together(queue)
        spent = {span["task_id"]: span["attributes"].get("tracekit.cost.usd") for span in record(dsn)["spans"]
                 if "tracekit.origin" in span["attributes"]}  # fmt: skip
        assert (spent[held], spent[ended], spent[waits]) == (0.00033, None, None)
        await holds_together(pool)

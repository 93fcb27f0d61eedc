"""What dashboards read: the views of schema `grafana`, as the role that may read them and no more."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from datetime import datetime, timedelta
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row

from tests.cost.budgeting import let_hold, limit, reserve
from tests.cost.driving import book, ledger_of, usage
from tests.queue.driving import AT_ONCE, accept, settle, submission, take
from tests.queue.test_plans import nodes
from tracekit import ids
from tracekit.cost import OverBudget
from tracekit.cost.budgets import Budget, set_budgets, standings
from tracekit.cost.limits import Limit
from tracekit.envelope import DataTier, Origin, Priority
from tracekit.postgres import Pool
from tracekit.queue import Done, GiveUp, HandOff, Notice, Park, Queue, RetryLater
from tracekit.queue.model import Failed, LeaseExpired
from tracekit.queue.outbox import Notification
from tracekit.queue.tasks import SYNTHETIC_SURFACE
from tracekit.workers.incidents import SURFACE

HOUR = timedelta(hours=1)
SECRET = "the-safe-is-behind-the-picture"


class Reader:
    """A connection of the role, with the settings that a server comes with."""

    def __init__(self, connection: psycopg.AsyncConnection[Any]) -> None:
        self.connection = connection

    async def __call__(self, query: str, *parameters: object) -> list[dict[str, Any]]:
        cursor = self.connection.cursor(row_factory=dict_row)
        await cursor.execute(query.encode(), parameters)
        return await cursor.fetchall()

    async def views(self) -> dict[str, list[str]]:
        """All of them, with their columns."""
        found = await self(
            "SELECT c.relname AS view, array_agg(a.attname::text ORDER BY a.attnum) AS columns FROM pg_class AS c"
            " JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0"
            " WHERE c.relnamespace = 'grafana'::regnamespace AND c.relkind = 'v' GROUP BY 1"
        )
        return {row["view"]: row["columns"] for row in found}


@pytest.fixture
async def read(dsn: str) -> AsyncIterator[Reader]:
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        await connection.execute("SET ROLE tracekit_grafana")
        yield Reader(connection)


# --- who may read what ----------------------------------------------------------------------------------------------


async def test_d4_the_role_reads_its_views_and_nothing_of_the_substrate(read: Reader, dsn: str) -> None:
    views = await read.views()
    assert len(views) == 14
    for view in views:
        await read(f"SELECT * FROM grafana.{view}")
    with psycopg.connect(dsn) as owner:
        columns = owner.execute(
            "SELECT format('tracekit.%I', c.relname), quote_ident(a.attname) FROM pg_attribute AS a"
            " JOIN pg_class AS c ON c.oid = a.attrelid WHERE c.relnamespace = 'tracekit'::regnamespace"
            " AND c.relkind IN ('r', 'p', 'v', 'S') AND a.attnum > 0 AND NOT a.attisdropped"
        ).fetchall()
        functions = owner.execute(
            "SELECT format('tracekit.%I', proname) FROM pg_proc WHERE pronamespace = 'tracekit'::regnamespace"
        ).fetchall()
    assert len({table for table, _ in columns}) > 25
    for table, column in columns:
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            await read(f"SELECT {column} FROM {table}")
    for (function,) in functions:
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            await read(f"SELECT {function}()")


async def test_d4_the_role_writes_nothing(read: Reader) -> None:
    for view in await read.views():
        for statement in (f"INSERT INTO grafana.{view} DEFAULT VALUES", f"DELETE FROM grafana.{view}"):
            with pytest.raises((psycopg.errors.InsufficientPrivilege, psycopg.errors.ObjectNotInPrerequisiteState)):
                await read(statement)
    for statement in ("CREATE TABLE grafana.mine (n int)", "CREATE TABLE public.mine (n int)"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            await read(statement)


async def everything(queue: Queue, tier: DataTier, said: str) -> list[str]:
    """Tasks whose every text says `said`: the ids of one that is done, one that is dead and one that waits."""
    tasks = []
    fields: dict[str, Any] = {"intent": f"do {said}", "input": {"text": said}, "data_tier": tier}
    tasks.append(await accept(queue, "router", retry_policy=AT_ONCE, **fields))
    await settle(queue, await take(queue), Failed("ValueError", f"failed over {said}"))
    await queue.sweep()
    at = await take(queue)
    assert await queue.begin_effect(at, f"write {said}", uncertain="rerun") == (False, None)
    result = {"url": f"https://git.example/{said}/pull/7", "title": said, "state": said}
    await queue.record_effect(at, f"write {said}", result)
    await settle(queue, at, RetryLater(timedelta(0), f"later, {said}"))
    await queue.sweep()
    at = await take(queue)
    notice = Notice("approval", f"may I {said}", f"this: {said}", data={"links": said})
    wait = Park("approval", f"approval:{at.task_id}", HOUR, data={"plan": said, "data_tier": tier.value}, notice=notice)
    await settle(queue, at, wait)
    await queue.signal(f"approval:{at.task_id}", {"decision": "approve", "reason": said}, dedupe_key="1", sent_by="rob")
    await settle(queue, await take(queue), HandOff("ci", {"text": said}))
    at = await take(queue, "ci")
    run = {"url": f"https://git.example/{said}/runs/1", "title": said}
    await settle(queue, at, Park("ci", f"ci:{at.task_id}", HOUR, data=run))
    await queue.signal(f"ci:{at.task_id}", {**run, "why": said}, dedupe_key="1", sent_by="github")
    await settle(queue, await take(queue, "ci"), Done(summary=f"did {said}"))

    tasks.append(await accept(queue, "planner", **fields))
    await settle(queue, await take(queue, "planner"), GiveUp(f"cannot {said}"))
    tasks.append(await accept(queue, "guardian", priority=Priority.URGENT, **fields))
    at = await take(queue, "guardian")
    await settle(queue, at, Park("approval", f"approval:{at.task_id}", HOUR, data={"plan": said}, notice=notice))
    await queue.enqueue([submission("observer", **fields, tags=("t",))])

    async def refuse(_: Notification) -> None:
        raise RuntimeError(f"no way to tell of {said}")

    while await queue.deliver(refuse):
        pass
    return tasks


async def test_p8_t10_of_a_restricted_task_no_text_is_shown_anywhere(queue: Queue, read: Reader) -> None:
    done, dead, waiting = await everything(queue, DataTier.RESTRICTED, SECRET)
    for view in await read.views():
        for row in await read(f"SELECT v::text AS text FROM grafana.{view} AS v"):
            assert SECRET not in row["text"], view
    [task] = await read("SELECT * FROM grafana.tasks WHERE task_id = %s", done)
    assert (task["title"], task["summary"], task["state"]) == ("(restricted)", "(restricted)", "done")
    [letter] = await read("SELECT * FROM grafana.dead_letters WHERE task_id = %s", dead)
    assert (letter["title"], letter["error"], letter["error_type"]) == ("(restricted)", "(restricted)", "given_up")
    [approval] = await read("SELECT * FROM grafana.approvals WHERE task_id = %s", waiting)
    assert (approval["title"], approval["decision"]) == ("(restricted)", "pending")
    assert {row["error"] for row in await read("SELECT * FROM grafana.attempts WHERE task_id = %s", done)} == {
        None,
        "(restricted)",
    }
    changes = await read("SELECT title, url, state FROM grafana.changes WHERE task_id = %s", done)
    assert changes == 2 * [{"title": "(restricted)", "url": None, "state": "(restricted)"}]
    details = await read("SELECT DISTINCT detail FROM grafana.events WHERE detail IS NOT NULL")
    assert details == [{"detail": "(restricted)"}]


async def test_d2_of_any_other_task_it_is(queue: Queue, read: Reader) -> None:
    """So the test before this one would see it."""
    done, dead, waiting = await everything(queue, DataTier.INTERNAL, "the dishes")

    async def shows(view: str, task_id: str) -> bool:
        rows = await read(f"SELECT v::text AS text FROM grafana.{view} AS v WHERE task_id = %s", task_id)
        return any("the dishes" in row["text"] for row in rows)

    for view in ("tasks", "attempts", "events", "approvals", "notifications"):
        assert await shows(view, done), view
    assert await shows("dead_letters", dead)
    assert await shows("approvals", waiting)
    changes = await read("SELECT kind, title, url, state FROM grafana.changes WHERE task_id = %s ORDER BY kind", done)
    assert changes == []  # an address has no spaces


async def test_d2_changes_lead_to_where_they_are_seen(queue: Queue, read: Reader) -> None:
    done, *_ = await everything(queue, DataTier.INTERNAL, "dishes")
    changes = await read("SELECT kind, title, url, state FROM grafana.changes WHERE task_id = %s ORDER BY kind", done)
    assert changes == [
        {"kind": "ci", "title": "dishes", "url": "https://git.example/dishes/runs/1", "state": "signal"},
        {"kind": "pull_request", "title": "dishes", "url": "https://git.example/dishes/pull/7", "state": "dishes"},
    ]


async def test_p8_a_restricted_plan_of_another_task_has_no_title(queue: Queue, read: Reader) -> None:
    await accept(queue, intent=SECRET)
    await settle(queue, await take(queue), Park("approval", "k", HOUR, data={"data_tier": "restricted"}))
    assert [row["title"] for row in await read("SELECT title FROM grafana.approvals")] == ["(restricted)"]


# --- what they say --------------------------------------------------------------------------------------------------


async def test_d2_a_task_its_attempts_and_its_timeline_agree(queue: Queue, read: Reader) -> None:
    long = "turn on\n\n the  light " + 200 * "x"
    task_id = await accept(queue, intent=long, priority=Priority.HIGH, retry_policy=AT_ONCE)
    await settle(queue, await take(queue), Failed("ValueError", "no"))
    await queue.sweep()
    await settle(queue, await take(queue), LeaseExpired())
    await settle(queue, await take(queue), HandOff("guardian", persona="butler"))
    await settle(queue, await take(queue, "guardian"), Park("approval", "a", HOUR))
    await queue.signal("a", {"decision": "defer"}, dedupe_key="1", sent_by="rob")
    at = await take(queue, "guardian")
    [now] = await read("SELECT * FROM grafana.tasks")
    assert (now["state"], now["mode"], now["persona"], now["queue_state"]) == ("open", "guardian", "butler", "running")
    assert (now["hops"], now["attempts"], now["retries"], now["ended_at"]) == (2, 5, 2, None)
    [running] = await read("SELECT * FROM grafana.attempts WHERE ended_at IS NULL")
    assert (running["attempt"], running["persona"], running["outcome"]) == (2, "butler", "running")
    await settle(queue, at, Done(summary="the light is on"))

    [task] = await read("SELECT * FROM grafana.tasks")
    assert task["title"] == "turn on the light " + 101 * "x" + "…"
    assert (task["task_id"], task["state"], task["mode"], task["priority"]) == (task_id, "done", "guardian", "high")
    assert (task["hops"], task["attempts"], task["retries"], task["queue_state"]) == (2, 5, 2, None)
    assert task["seconds"] == (task["ended_at"] - task["created_at"]).total_seconds()
    attempts = await read("SELECT * FROM grafana.attempts ORDER BY claimed_at")
    assert [row["outcome"] for row in attempts] == ["failed", "lease_expired", "handed_off", "parked", "done"]
    assert [row["error_type"] for row in attempts] == ["ValueError", "lease_expired", None, None, None]
    for name in ("queue_seconds", "run_seconds"):
        assert task[name] == pytest.approx(sum(row[name] for row in attempts))
    [approval] = await read("SELECT * FROM grafana.approvals")
    assert (approval["decision"], approval["decided_by"]) == ("deferred", "rob")
    assert task["approval_seconds"] == approval["wait_seconds"] > 0
    timeline = await read("SELECT hop, mode, state FROM grafana.timeline ORDER BY at, state <> 'scheduled'")
    assert [tuple(row.values()) for row in timeline] == [
        (1, "router", "ready"),
        (1, "router", "running"),
        (1, "router", "scheduled"),
        (1, "router", "ready"),
        (1, "router", "running"),
        (1, "router", "ready"),
        (1, "router", "running"),
        (2, "guardian", "ready"),
        (2, "guardian", "running"),
        (2, "guardian", "parked"),
        (2, "guardian", "ready"),
        (2, "guardian", "running"),
        (2, "guardian", "done"),
    ]
    hops = await read("SELECT hop, mode, persona FROM grafana.hops ORDER BY hop")
    assert [tuple(row.values()) for row in hops] == [(1, "router", None), (2, "guardian", "butler")]


async def test_d2_a_task_is_where_the_queue_has_it(queue: Queue, read: Reader) -> None:
    """Waiting, resting, parked, dead, redriven, expired, abandoned: state, mode and the last of its timeline."""
    found: dict[str, tuple[str, str | None]] = {}
    for name, ending in {
        "resting": RetryLater(HOUR, "later"),
        "parked": Park("ci", "x", HOUR),
        "dying": GiveUp("no"),
        "again": GiveUp("no"),
        "abandoned": GiveUp("no"),
        "late": Park("approval", "late", timedelta(0), on_deadline="expire"),
    }.items():
        task_id = await accept(queue, name)
        await settle(queue, await take(queue, name), ending)  # type: ignore[arg-type]
        if name in ("again", "abandoned"):
            await queue.resolve_dead(task_id, "redriven" if name == "again" else "abandoned", "rob")
    await queue.sweep()
    await accept(queue, "waiting")
    for row in await read("SELECT * FROM grafana.tasks"):
        last = await read(
            "SELECT state FROM grafana.timeline WHERE task_id = %s ORDER BY at DESC LIMIT 1", row["task_id"]
        )
        found[row["mode"]] = row["state"], row["queue_state"]
        assert last == [{"state": row["state"] if row["state"] != "open" else row["queue_state"]}], row["mode"]
    assert found == {
        "resting": ("open", "scheduled"),
        "parked": ("open", "parked"),
        "dying": ("dead", None),
        "again": ("open", "ready"),
        "abandoned": ("abandoned", None),
        "late": ("expired", None),
        "waiting": ("open", "ready"),
        "guardian": ("open", "ready"),  # review tasks
    }
    assert [row["decision"] for row in await read("SELECT decision FROM grafana.approvals")] == ["expired"]
    letters = await read("SELECT mode, resolution, resolved_by FROM grafana.dead_letters ORDER BY mode")
    assert [tuple(row.values()) for row in letters] == [
        ("abandoned", "abandoned", "rob"),
        ("again", "redriven", "rob"),
        ("dying", None, None),
    ]


async def test_d2_events_are_the_record(queue: Queue, pool: Pool, read: Reader) -> None:
    """The same lines under the same numbers as `follow` shows."""
    await everything(queue, DataTier.INTERNAL, "dishes")
    at = await accept_and_take(queue)
    await book(ledger_of(queue), at, usage())
    columns = "task_id, seq, at, kind, hop, mode, attempt"
    async with pool.connection() as connection:
        cursor = await connection.execute(
            f"SELECT {columns}, data->>'outcome' AS outcome FROM tracekit.events ORDER BY task_id, seq"
        )
        recorded = await cursor.fetchall()
    shown = await read(f"SELECT {columns}, outcome FROM grafana.events ORDER BY task_id, seq")
    assert [tuple(row.values()) for row in shown] == recorded
    assert {row[3] for row in recorded} >= {"task.accepted", "attempt.ended", "task.ended", "usage.booked", "task.dead"}


async def accept_and_take(queue: Queue) -> Any:
    await accept(queue)
    return await take(queue)


async def test_c1_spend_is_each_call_as_it_is_known_now_and_a_task_is_their_sum(queue: Queue, read: Reader) -> None:
    at = await accept_and_take(queue)
    ledger = ledger_of(queue)
    await book(ledger, at, usage("unknown", key="k"))
    await book(ledger, at, usage(cache_read=3, reasoning=2))
    first = await read("SELECT calls, unpriced_calls, tokens, cost_usd, synthetic FROM grafana.tasks")
    await book(ledger, at, usage("unknown", key="k", output=5))
    [task] = await read("SELECT calls, unpriced_calls, tokens, cost_usd FROM grafana.tasks")
    spend = await read("SELECT * FROM grafana.spend ORDER BY model")
    assert [(row["model"], row["tokens"], row["cost_usd"] is None) for row in spend] == [
        ("m-1", 33, False),
        ("unknown", 15, True),
    ]
    assert (task["calls"], task["unpriced_calls"], task["tokens"]) == (2, 1, 48)
    assert task["cost_usd"] == spend[0]["cost_usd"] == first[0]["cost_usd"]
    assert (first[0]["tokens"], first[0]["synthetic"]) == (63, False)
    assert {row["trace_id"] for row in spend} == {at.trace_id}
    for made_up in ({"surface": SYNTHETIC_SURFACE}, {"tags": ("synthetic",)}):
        task_id = await accept(queue, **made_up)
        [listed] = await read("SELECT synthetic FROM grafana.tasks WHERE task_id = %s", task_id)
        assert listed["synthetic"] == (await queue.task(task_id)).synthetic == ("surface" in made_up)
    [unspent] = await read("SELECT calls, tokens, cost_usd FROM grafana.tasks WHERE task_id = %s", await accept(queue))
    assert unspent == {"calls": 0, "tokens": 0, "cost_usd": None}


async def test_c3_budgets_are_those_that_hold_in_their_present_period(queue: Queue, pool: Pool, read: Reader) -> None:
    def limit(scope: Any, subject: str, period: Any, amount: int | None) -> Budget:
        return Budget(Limit(scope, subject, period, "tokens"), amount, "refuse", "Europe/Berlin", "rob")  # type: ignore[arg-type]

    async with pool.connection() as connection:
        await set_budgets(connection, [limit("total", "", "day", 100), limit("mode", "router", "week", 50)])
        await set_budgets(connection, [limit("total", "", "day", 200), limit("mode", "planner", "day", 5)])
        await set_budgets(connection, [limit("task", "", "task", 9), limit("mode", "planner", "day", None)])
    await book(ledger_of(queue), await accept_and_take(queue), usage())
    rows = await read("SELECT * FROM grafana.budgets ORDER BY scope, period")
    columns = ("scope", "subject", "amount", "spent", "remaining", "used_up")
    assert [tuple(row[name] for name in columns) for row in rows] == [
        ("mode", "router", 50, 30, 20, False),
        ("task", "", 9, None, None, False),
        ("total", "", 200, 30, 170, False),
    ]
    before = {row["scope"]: (row["begins"], row["ends"]) for row in rows}
    # A day or a week in which nothing was counted yet has the same bounds.
    async with pool.connection() as connection:
        await connection.execute("DELETE FROM tracekit.budget_counters")
    rows = await read("SELECT * FROM grafana.budgets ORDER BY scope, period")
    assert {row["scope"]: (row["begins"], row["ends"]) for row in rows} == before
    assert [row["spent"] for row in rows] == [0, None, 0]


async def test_c3_a_budget_is_used_up_once_a_call_found_no_room_or_all_is_spent(
    queue: Queue, pool: Pool, read: Reader
) -> None:
    week = limit("total", "week", "tokens")
    at, ledger = await accept_and_take(queue), ledger_of(queue)

    async def used_up() -> bool:
        [row] = await read("SELECT used_up FROM grafana.budgets")
        async with pool.connection() as connection:
            [standing] = await standings(connection)
        assert row["used_up"] == standing.used_up, "views and commands say the same"
        return standing.used_up

    await let_hold(queue, week, 100)
    await book(ledger, at, usage())
    assert not await used_up()
    with pytest.raises(OverBudget):
        await reserve(ledger, at, "k")
    assert await used_up()
    for amount, expected in ((1000, False), (31, False), (30, True), (0, False)):
        await let_hold(queue, week, amount)
        assert await used_up() is expected


async def test_d2_incidents_are_firing_alerts(queue: Queue, pool: Pool, read: Reader) -> None:
    for status in ("firing", "resolved"):
        await accept(queue, input={"alert": {"status": status}}, intent=f"Alert {status}", origin=Origin.OBSERVER)
    await accept(queue, intent="no alert")
    async with pool.connection() as connection:
        await connection.execute("UPDATE tracekit.envelopes SET surface = %s WHERE origin = 'observer'", [SURFACE])
    await settle(queue, await take(queue), Done())
    [incident] = await read("SELECT * FROM grafana.incidents")
    assert incident["title"] == "Alert firing"
    assert incident["ended_at"] > incident["at"]


async def test_d2_workers_tables_and_notifications_are_shown(queue: Queue, pool: Pool, read: Reader) -> None:
    await everything(queue, DataTier.INTERNAL, "dishes")
    await queue.heartbeat("w1", ["router", "planner"], "listening", {}, HOUR)
    async with pool.connection() as connection:
        await connection.execute("UPDATE tracekit.workers SET seen_at = seen_at - interval '3 min' WHERE id = 'w1'")
        await connection.execute(
            "UPDATE tracekit.outbox SET due_at = NULL, delivered_at = CASE WHEN kind = 'approval' THEN"
            " created_at + interval '5 s' END"
        )
    workers = await read("SELECT worker, mode, alive FROM grafana.workers ORDER BY mode")
    assert [tuple(row.values()) for row in workers] == [("w1", "planner", False), ("w1", "router", False)]
    states = await read("SELECT DISTINCT kind, state, seconds FROM grafana.notifications WHERE state = 'delivered'")
    assert states == [{"kind": "approval", "state": "delivered", "seconds": 5.0}]
    given_up = await read("SELECT DISTINCT state, last_error FROM grafana.notifications WHERE kind = 'dead_letter'")
    assert given_up == [{"state": "given_up", "last_error": "RuntimeError: no way to tell of dishes"}]
    tables = {row["table"]: row for row in await read("SELECT * FROM grafana.tables")}
    assert tables["record"]["bytes"] > 0
    assert not [name for name in tables if name.startswith("record_2")]


# --- how they are read ----------------------------------------------------------------------------------------------

TASKS = 20_000


async def fill(connection: psycopg.AsyncConnection[Any]) -> datetime:
    """20,000 tasks of three lines each, over as many minutes, with all that tasks have; the time of the last."""
    async with connection.transaction():
        await connection.execute(
            "INSERT INTO tracekit.envelopes (id, trace_id, origin, surface, requester, intent, priority, destructive,"
            "  idempotency_key, retry_policy, data_tier, mode, input, created_at)"
            " SELECT (grafana.tasks_of(trace))[1], trace, 'manual', 'test', 'rob', repeat('x', 200), n %% 4, false,"
            "  n::text, '{}', 'internal', 'router', 'null', at"
            " FROM generate_series(1, %(tasks)s) AS n,"
            "  LATERAL (SELECT now() - make_interval(mins => %(tasks)s - n)) AS t(at),"
            "  LATERAL (SELECT to_hex((extract(epoch FROM at) * 1000)::bigint)) AS h(millis),"
            "  LATERAL (SELECT lpad(millis, 12, '0') || left(md5(n::text), 20)) AS i(trace)",
            {"tasks": TASKS},
        )
        await connection.execute(
            "INSERT INTO tracekit.record (task_id, at, kind, hop, mode, attempt, worker, outcome, ready_at, claimed_at,"
            "  next_hop, next_mode, end_state)"
            " SELECT id, created_at + make_interval(secs => line), 'attempt.ended', line, 'm' || line, 1, 'w', 'done',"
            "  created_at, created_at, CASE WHEN line < 3 THEN line + 1 END, CASE WHEN line < 3 THEN 'next' END,"
            "  CASE line WHEN 3 THEN 'done' END"
            " FROM tracekit.envelopes, generate_series(1, 3) AS line ORDER BY 2"
        )
        for statement in (
            "INSERT INTO tracekit.waits (task_id, hop, attempt, kind, key, data, deadline, on_deadline, opened_at,"
            "  closed_at, resolution) SELECT id, 1, 1, CASE priority WHEN 0 THEN 'ci' ELSE 'approval' END, id,"
            "  '{\"url\": \"https://git.example/runs/1\"}', created_at, 'expire', created_at, created_at, 'deadline'"
            " FROM tracekit.envelopes ORDER BY created_at",
            "INSERT INTO tracekit.outbox (task_id, recipient, kind, urgent, title, body, created_at, delivered_at)"
            " SELECT id, 'operator', 'x', false, 'x', 'x', created_at, created_at FROM tracekit.envelopes"
            " ORDER BY created_at",
            "INSERT INTO tracekit.effects (task_id, step, hop, attempt, started_at, finished_at, result)"
            " SELECT id, 's', 1, 1, created_at, created_at, '{\"url\": \"https://git.example/pull/1\"}'"
            " FROM tracekit.envelopes ORDER BY created_at",
            "INSERT INTO tracekit.usage (task_id, key, version, hop, attempt, mode, requester, origin, provider, model,"
            "  local, input_tokens, cache_read_tokens, cache_write_tokens, output_tokens, reasoning_tokens, requests,"
            "  price_source, basis, held, at, booked_at)"
            " SELECT id, 'k', 1, 1, 1, 'executor', 'rob', 'manual', 'p', 'm', false, 1, 0, 0, 1, 0, 1, 'unpriced',"
            "  'reported', true, created_at, created_at FROM tracekit.envelopes ORDER BY created_at",
            "INSERT INTO tracekit.queue (task_id, hop, mode, priority, state, created_at, ready_at, max_attempts)"
            " SELECT id, 4, 'm', 1, 'ready', created_at, created_at, 3 FROM tracekit.envelopes"
            " ORDER BY created_at DESC LIMIT 2000",
        ):
            await connection.execute(statement.encode())
    await connection.execute("VACUUM ANALYZE")  # sums the pages up, as autovacuum does
    cursor = await connection.execute("SELECT max(created_at) FROM tracekit.envelopes")
    [last] = await cursor.fetchone() or [None]
    assert isinstance(last, datetime)
    return last


def read_of(plan: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """Tables, and how many rows each node of a plan has read of one, those that it passed over among them."""
    passed = ("Rows Removed by Filter", "Rows Removed by Index Recheck")
    for node in nodes(plan):
        if "Relation Name" in node:
            rows = node["Actual Rows"] + sum(node.get(name, 0) for name in passed)
            yield node["Relation Name"], rows * node["Actual Loops"]


async def most_read(connection: psycopg.AsyncConnection[Any], query: str) -> dict[str, float]:
    """Of each table the most rows that one node of the plan has read."""
    cursor = await connection.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {query}".encode())
    [[explained]] = [row async for row in cursor]
    found: dict[str, float] = {}
    for table, rows in read_of(explained[0]["Plan"]):
        found[table] = max(found.get(table, 0), rows)
    return found


TIMES = {
    "tasks": "created_at",
    "hops": "created_at",
    "attempts": "ended_at",
    "events": "at",
    "spend": "at",
    "approvals": "opened_at",
    "notifications": "created_at",
    "changes": "at",
    "incidents": "at",
}
"""Of each view the time by which a range of it is found."""


async def test_d4_a_trace_and_a_range_of_time_are_found_without_reading_the_record(dsn: str) -> None:
    """Each view that is of tasks, asked for one trace of 20,000 and for two of their 333 hours, unprepared, with the
    settings that a server comes with.
    """
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        last = await fill(connection)
        cursor = await connection.execute("SELECT trace_id FROM tracekit.envelopes ORDER BY created_at DESC OFFSET 500")
        [trace] = await cursor.fetchone() or [""]
        await connection.execute("SET ROLE tracekit_grafana")
        await connection.execute("SET jit = off")
        views = await Reader(connection).views()
        of_tasks = [view for view, columns in views.items() if "task_id" in columns]
        assert len(of_tasks) == 11
        for view in of_tasks:
            found = await most_read(
                connection, f"SELECT * FROM grafana.{view} WHERE task_id = ANY (grafana.tasks_of('{trace}'))"
            )
            print(f"{view} by trace: {found}")
            assert max(found.values(), default=0) < 50, (view, found)
        for hours_ago in (2, 200):
            begins = last - timedelta(hours=hours_ago)
            window = f"BETWEEN '{begins.isoformat()}' AND '{(begins + 2 * HOUR).isoformat()}'"
            for view, time in TIMES.items():
                found = await most_read(connection, f"SELECT * FROM grafana.{view} WHERE {time} {window}")
                print(f"{view} by time, {hours_ago} h ago: {found}")
                # The queue is as large as what is open. Calls have no index by when they were booked.
                found.pop("queue", None)
                found.pop("usage" if view == "events" else "", None)
                assert max(found.values(), default=0) < TASKS / 5, (view, found)


async def test_d4_the_tasks_of_a_trace_are_found_by_what_its_id_is(queue: Queue, read: Reader) -> None:
    traces = [ids.new_trace_id() for _ in range(200)] + ["0" * 31 + "1", "7" + "f" * 31, "f" * 32]
    for trace in traces:
        [row] = await read("SELECT grafana.tasks_of(%s) AS tasks", trace)
        assert row["tasks"] == [ids.task_id_of(trace)]
    continued = [
        await accept(queue, trace_id=traces[0], parent_span_id="b7ad6b7169203331", key=key) for key in ("one", "two")
    ]
    [row] = await read("SELECT grafana.tasks_of(%s) AS tasks", traces[0])
    assert set(row["tasks"]) == {*continued, ids.task_id_of(traces[0])}
    for nonsense in ("", "x", traces[0].upper(), traces[0][:-1], traces[0] + "0", "'; DROP"):
        assert await read("SELECT grafana.tasks_of(%s) AS tasks", nonsense) == [{"tasks": []}]


def test_t10_no_view_shows_what_may_hold_anything(dsn: str) -> None:
    """No view shows a column of JSON or of an input: what may be in there nobody can say."""
    with psycopg.connect(dsn) as connection:
        found = connection.execute(
            "SELECT c.relname, a.attname FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid"
            " WHERE c.relnamespace = 'grafana'::regnamespace AND c.relkind = 'v' AND a.attnum > 0"
            " AND a.atttypid IN ('json'::regtype, 'jsonb'::regtype)"
        ).fetchall()
    assert found == []

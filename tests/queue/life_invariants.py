"""What must be true of the database after every step, and how it is read: everything in one statement, the audit in
another.

`check` asks for both: that the tables are what the model expects, and that they hold together by themselves, whatever
the model says.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, LiteralString

from psycopg import AsyncConnection

from tests.queue.life_model import LEASE_OVER, Fact, Life, Span, Task, review_key
from tracekit import ids
from tracekit.queue.checks import AUDIT, statement

Row = dict[str, Any]

_TABLES: dict[LiteralString, LiteralString] = {
    "tasks": "id",
    "queue": "task_id",
    "events": "seq",
    "waits": "task_id, hop, attempt",
    "signals": "id",
    "effects": "task_id, step",
    "dead_letters": "id",
    "outbox": "id",
    "spans": "task_id, span_id",
}
"""Tables and views, each with its order."""

_READ: LiteralString = "SELECT jsonb_build_object('now', jsonb_build_array(clock_timestamp())"
for _name, _order in _TABLES.items():
    _READ += (
        f", '{_name}', (SELECT coalesce(jsonb_agg(to_jsonb(t) ORDER BY {_order}), '[]') FROM tracekit.{_name} AS t)"
    )
_READ += ")"

# Planning it takes ten times as long as running it.
_AUDIT = statement(AUDIT, whole=True)
_WHOLE = {"since": None, "until": None, "lag": timedelta(0)}

Record = dict[str, list[Row]]
"""All rows of `_TABLES`, by its names."""


async def read(connection: AsyncConnection[Any]) -> tuple[datetime, Record]:
    """The database's time, and all that it holds."""
    cursor = await connection.execute(_READ, prepare=True)
    row = await cursor.fetchone()
    assert row is not None
    record: Record = row[0]
    [now] = record.pop("now")
    return _time(str(now)), record


def _time(moment: str) -> datetime:
    return datetime.fromisoformat(moment)


async def check(connection: AsyncConnection[Any], life: Life, before: Record | None, *, untouched: bool) -> Record:
    """All invariants. `before`: what was there before the step; `untouched`: it must have changed nothing."""
    now, record = await read(connection)
    if untouched:
        assert record == before, "a write that was to change nothing"
    _agrees(life, now, record)
    _each_task_is_in_one_place(life, record)
    _each_claim_has_one_end(life, record)
    _one_root(record)
    _dead_letters_tell_and_are_reviewed_once(record)
    _the_first_decision_wins(record)
    if before is not None:
        _the_past_stays(before, record)
    if record != before:  # What it looks at is what was read.
        cursor = await connection.execute(_AUDIT, _WHOLE, prepare=True)
        assert await cursor.fetchall() == [], "the audit finds something"
    return record


# --- what the model expects -----------------------------------------------------------------------------------------


def _agrees(life: Life, now: datetime, record: Record) -> None:
    """The rows are those of the model, none more and none less."""
    tasks = list(life.tasks.values())
    sent = {s["id"]: (s["key"], s["dedupe_key"]) for s in record["signals"]}

    def left(moment: str | None) -> int | None:
        return None if moment is None else round((_time(moment) - now) / timedelta(hours=1))

    def to(hour: int | None) -> int | None:
        return None if hour is None else hour - life.clock

    _same(
        "queue",
        {
            q["task_id"]: (
                q["hop"], q["mode"], q["priority"], q["state"], q["attempt"], q["max_attempts"], q["worker"],
                q["token"] if q["state"] == "running" else None, q["wait_attempt"], left(q["due_at"]),
                left(q["expires_at"]),
            )
            for q in record["queue"]
        },
        {
            t.id: (
                t.hop, t.mode, t.rank, t.state, t.attempt, t.allowed, t.worker,
                t.token if t.state == "running" else None, t.wait and t.wait.attempt, to(t.due), to(t.binding),
            )
            for t in tasks if t.live
        },
    )  # fmt: skip
    _same(
        "tasks",
        {
            t["id"]: (
                t["state"], t["origin"], t["idempotency_key"], t["trace_id"], t["parent_span_id"], t["priority"],
                t["destructive"], tuple(t["tags"]), t["review_of"], left(t["expires_at"]),
            )
            for t in record["tasks"]
        },
        {
            t.id: (
                "open" if t.live else t.state, t.origin, t.key, t.trace_id, t.parent, t.rank,
                t.destructive, t.tags, t.review_of, to(t.ttl),
            )
            for t in tasks
        },
    )  # fmt: skip
    _agree_lines(tasks, record)
    _same(
        "waits",
        {
            (w["task_id"], w["hop"], w["attempt"]): (
                w["kind"], w["key"], w["data"], w["on_deadline"], w["resolution"], w["closed_at"] is not None,
                sent.get(w["signal_id"]),
            )
            for w in record["waits"]
        },
        {
            (t.id, w.hop, w.attempt): (
                w.kind, w.key, w.data, w.on_deadline, w.resolution, w.resolution is not None,
                w.fact and (w.key, w.fact.dedupe_key),
            )
            for t in tasks for w in t.waits
        },
    )  # fmt: skip
    facts: dict[str, list[Fact]] = {}
    for s in record["signals"]:
        facts.setdefault(s["key"], []).append(Fact(s["dedupe_key"], s["payload"], s["sent_by"]))
    _same("signals", facts, life.facts)
    _same(
        "effects",
        {
            (e["task_id"], e["step"]): (e["hop"], e["attempt"], e["finished_at"] is not None, e["result"])
            for e in record["effects"]
        },
        life.effects,
    )
    _same(
        "dead_letters",
        {
            (d["task_id"], d["hop"]): (
                d["mode"], d["reason"], d["error_type"], d["error"], d["attempts"], d["trace_id"],
                d["review_task_id"], d["resolution"], d["resolved_by"], d["resolved_at"] is not None,
            )
            for d in record["dead_letters"]
        },
        {
            (d.task_id, d.hop): (
                d.mode, d.reason, d.error_type, d.error, d.attempts, d.trace_id,
                d.review, d.resolution, d.resolved_by, d.resolution is not None,
            )
            for d in life.letters
        },
    )  # fmt: skip
    _same(
        "outbox",
        Counter(
            (
                n["task_id"],
                n["kind"],
                n["urgent"],
                n["recipient"],
                n["data"].get("trace_id"),
                n["data"].get("review_task"),
            )
            for n in record["outbox"]
        ),
        Counter(
            (task_id, kind, urgent, "operator", said["trace_id"], said.get("review_task"))
            for task_id, kind, urgent, said in life.notices
        ),
    )
    _same(
        "spans",
        {s["span_id"]: _span(s) for s in record["spans"]},
        {span_id: span for t in tasks for span_id, span in t.spans.items()},
    )


def _same(table: str, found: Mapping[Any, Any], expected: Mapping[Any, Any]) -> None:
    """Fails with what differs: pairs of what is there and what should be."""
    keys = [*found, *(key for key in expected if key not in found)]
    differ = {key: (found.get(key), expected.get(key)) for key in keys if found.get(key) != expected.get(key)}
    assert not differ, f"{table}: {differ}"


def _agree_lines(tasks: list[Task], record: Record) -> None:
    """Of each task the same lines in the same order, each saying at least what the model's says."""
    found: dict[str, list[Row]] = {}
    for event in record["events"]:
        found.setdefault(event["task_id"], []).append(event)
    assert found.keys() == {task.id for task in tasks}
    for task in tasks:
        lines = found[task.id]
        said = [(e["kind"], e["hop"], e["mode"], e["attempt"]) for e in lines]
        assert said == [line[:4] for line in task.lines], f"events: {said}, not {task.lines}"
        for event, line in zip(lines, task.lines, strict=True):
            assert {name: event["data"].get(name) for name in line[4]} == line[4], f"events: {event}, not {line}"


def _span(row: Row) -> Span:
    said = row["attributes"]
    return Span(row["name"], row["parent_span_id"], said.get("tracekit.outcome"), said.get("error.type"))


# --- what holds whatever the model expects --------------------------------------------------------------------------


def _each_task_is_in_one_place(life: Life, record: Record) -> None:
    """Nothing accepted is lost, and nothing is in two places (Q1, Q3)."""
    queued = Counter(row["task_id"] for row in record["queue"])
    dead = Counter(row["task_id"] for row in record["dead_letters"] if row["resolved_at"] is None)
    ended = Counter(row["task_id"] for row in record["events"] if row["kind"] == "task.ended")
    accepted = {row["id"] for row in record["tasks"]}
    assert accepted == {row["task_id"] for row in record["events"] if row["kind"] == "task.accepted"}
    assert queued + dead + ended == Counter(accepted)
    for row in record["tasks"]:
        place = "open" if queued[row["id"]] else "dead" if dead[row["id"]] else None
        assert row["state"] == place or (place is None and row["ended_at"] is not None)
    running = [row["token"] for row in record["queue"] if row["state"] == "running"]
    assert len(set(running)) == len(running), "two hops run under one token"
    assert {row["token"] for row in record["queue"]} <= {0, *(at.token for at in life.claims)}


def _each_claim_has_one_end(life: Life, record: Record) -> None:
    """Each claim that is over has one line and one span, and they are numbered without a gap (Q4, T2, T4)."""
    claims = {(at.task_id, at.hop, at.attempt): at for at in life.claims}
    assert len(claims) == len(life.claims), "two claims have one number"
    running = {(q["task_id"], q["hop"], q["attempt"]) for q in record["queue"] if q["state"] == "running"}
    lines = [row for row in record["events"] if row["kind"] == "attempt.ended"]
    assert Counter((row["task_id"], row["hop"], row["attempt"]) for row in lines) == Counter(claims.keys() - running)
    assert running <= claims.keys()
    spans = Counter(row["span_id"] for row in record["spans"] if row["kind"] == 5)
    assert spans == Counter(claims[claim].span_id for claim in claims.keys() - running)
    for _, of_hop in itertools.groupby(sorted(claims), lambda claim: claim[:2]):
        numbers = [attempt for _, _, attempt in of_hop]
        assert numbers == list(range(1, len(numbers) + 1))
    for row in lines:
        at = claims[row["task_id"], row["hop"], row["attempt"]]
        assert (row["data"]["worker"], row["mode"]) == (at.worker, at.mode)
        if row["data"]["outcome"] == LEASE_OVER:
            [span] = [span for span in record["spans"] if span["span_id"] == at.span_id]
            assert (span["attributes"]["error.type"], span["status"]) == (LEASE_OVER, 2)


def _one_root(record: Record) -> None:
    """The root is there once, and only of a task that has ended; every span has the task's trace (T1, T5)."""
    assert len({row["span_id"] for row in record["spans"]}) == len(record["spans"])
    tasks = {row["id"]: row for row in record["tasks"]}
    roots = {ids.root_span_id(task_id): task for task_id, task in tasks.items()}
    found = [row["span_id"] for row in record["spans"] if row["span_id"] in roots]
    assert sorted(found) == sorted(root for root, task in roots.items() if task["ended_at"] is not None)
    for span in record["spans"]:
        assert span["trace_id"] == tasks[span["task_id"]]["trace_id"]
        assert _time(span["start_time"]) <= _time(span["end_time"])


def _dead_letters_tell_and_are_reviewed_once(record: Record) -> None:
    """Each says why, how often and in which trace; each has one review task, that of a review task has none (Q15)."""
    tasks = {row["id"]: row for row in record["tasks"]}
    reviews = Counter(row["review_of"] for row in tasks.values() if row["review_of"])
    assert reviews == Counter(
        row["task_id"] for row in record["dead_letters"] if not tasks[row["task_id"]]["review_of"]
    )
    named = [row["review_task_id"] for row in record["dead_letters"] if row["review_task_id"]]
    assert len(set(named)) == len(named) == reviews.total()
    for row in record["dead_letters"]:
        dead, review = tasks[row["task_id"]], tasks.get(row["review_task_id"])
        assert row["reason"]
        assert row["error_type"]
        assert row["error"]
        assert row["trace_id"] == dead["trace_id"]
        ended = [e for e in record["events"] if (e["task_id"], e["hop"]) == (row["task_id"], row["hop"])]
        assert row["attempts"] == sum(e["kind"] == "attempt.ended" for e in ended) > 0
        if review is None:
            assert dead["review_of"]
        else:
            assert (review["review_of"], review["priority"]) == (dead["id"], dead["priority"])
            assert review["idempotency_key"] == review_key(dead["id"], row["hop"])


def _the_first_decision_wins(record: Record) -> None:
    """A fact counts once. A wait ends with a fact of its key: the first, if it came before the wait (Q14)."""
    facts = record["signals"]
    assert len({(row["key"], row["dedupe_key"]) for row in facts}) == len(facts)
    for wait in record["waits"]:
        of_key = [row["id"] for row in facts if row["key"] == wait["key"]]
        if wait["resolution"] == "signal":
            assert wait["signal_id"] in of_key
            opened = _time(wait["opened_at"])
            earlier = [row["id"] for row in facts if row["id"] in of_key and _time(row["received_at"]) < opened]
            assert not earlier or wait["signal_id"] == earlier[0]
        else:
            assert wait["signal_id"] is None
        if wait["closed_at"] is None:
            assert of_key == [], "it waits for what has been said"


def _the_past_stays(before: Record, record: Record) -> None:
    """Lines, spans, facts, recorded results, dead letters and notices are added to, and never change."""
    for name in ("events", "spans", "signals", "outbox"):
        key = "span_id" if name == "spans" else "seq" if name == "events" else "id"
        now = {row[key]: row for row in record[name]}
        for row in before[name]:
            assert now.get(row[key]) == row, f"{name}: what was written has changed"
    effects = {(row["task_id"], row["step"]): row for row in record["effects"]}
    for row in before["effects"]:
        assert row["finished_at"] is None or effects[row["task_id"], row["step"]] == row, "a result has changed"
    letters = {row["id"]: row for row in record["dead_letters"]}
    for row in before["dead_letters"]:
        assert row["resolution"] is None or letters[row["id"]] == row, "a decision has changed"
    ended = {row["id"]: row["state"] for row in record["tasks"]}
    for row in before["tasks"]:
        assert row["ended_at"] is None or ended[row["id"]] == row["state"], "what had ended goes on"
    last = max((row["seq"] for row in before["events"]), default=0)
    known = {row["seq"] for row in before["events"]}
    assert all(row["seq"] in known or row["seq"] > last for row in record["events"]), "a line before lines"

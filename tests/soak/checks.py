"""What must hold when a soak is over. Each check answers with what does not."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path

from psycopg import AsyncConnection

from tests.faults.database import rows
from tests.soak.modes import MAY_DIE, STEPS, signal_key
from tracekit.postgres import Pool
from tracekit.queue.audit import Finding, audit

FEW = 5
"""Examples in one finding."""


def lines_of(path: Path) -> list[list[str]]:
    """The words of each line; none where nobody has written anything yet."""
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


def some(things: object) -> str:
    listed = sorted(map(str, things))  # type: ignore[call-overload]
    return ", ".join(listed[:FEW]) + (f" and {len(listed) - FEW} more" if len(listed) > FEW else "")


async def nothing_left(pool: Pool) -> list[str]:
    """No lease, no wait, no dead letter, no row in the hot table (Q2, Q14, Q15)."""
    found = []
    for state, count in await rows(pool, "SELECT state, count(*) FROM tracekit.queue GROUP BY state ORDER BY state"):
        found.append(f"left in the queue: {count} {state}")
    for kind, count in await rows(
        pool, "SELECT kind, count(*) FROM tracekit.waits WHERE closed_at IS NULL GROUP BY kind ORDER BY kind"
    ):
        found.append(f"left open: {count} waits for {kind}")
    for mode, count in await rows(
        pool, "SELECT mode, count(*) FROM tracekit.dead_letters WHERE resolved_at IS NULL GROUP BY mode ORDER BY mode"
    ):
        found.append(f"left in the DLQ: {count} of {mode}")
    for state, count in await rows(
        pool, "SELECT state, count(*) FROM tracekit.tasks WHERE state IN ('open', 'dead') GROUP BY state"
    ):
        found.append(f"left unfinished: {count} tasks are {state}")
    return found


async def accepted_ended_once(pool: Pool, receipts: Path) -> list[str]:
    """Whatever has a receipt is there under its first id, and has ended exactly once (Q1, Q5)."""
    found = []
    ids: dict[str, set[str]] = defaultdict(set)
    for words in lines_of(receipts):
        if words[0] == "task":
            _, task_id, _, key = words
            ids[key].add(task_id)
    if several := {key for key, known in ids.items() if len(known) > 1}:
        found.append(f"{len(several)} keys got receipts of several tasks: {some(several)}")
    accepted = {task_id for known in ids.values() for task_id in known}
    there = {row[0] for row in await rows(pool, "SELECT id FROM tracekit.tasks")}
    if lost := accepted - there:
        found.append(f"{len(lost)} accepted tasks are lost: {some(lost)}")
    ended = dict(
        await rows(pool, "SELECT task_id, count(*) FROM tracekit.events WHERE kind = 'task.ended' GROUP BY task_id")
    )
    if never := there - ended.keys():
        found.append(f"{len(never)} tasks never ended: {some(never)}")
    if twice := {task_id for task_id, times in ended.items() if times > 1}:
        found.append(f"{len(twice)} tasks ended more than once: {some(twice)}")
    doubled = await rows(
        pool,
        "SELECT task_id || '/' || hop || '/' || attempt FROM tracekit.events WHERE kind = 'attempt.ended'"
        " GROUP BY task_id, hop, attempt HAVING count(*) > 1",
    )
    if doubled:
        found.append(f"{len(doubled)} attempts ended more than once: {some(row[0] for row in doubled)}")
    return found


async def ends_are_right(pool: Pool) -> list[str]:
    """Each task ended as its kind may (Q4, Q7)."""
    found = []
    for mode, state, count in await rows(
        pool,
        "SELECT h.mode, t.state, count(*) FROM tracekit.tasks AS t JOIN tracekit.hops AS h ON h.task_id = t.id"
        " AND h.hop = 1 GROUP BY 1, 2 ORDER BY 1, 2",
    ):
        allowed = {"done"} | ({"abandoned"} if mode in MAY_DIE else set()) | ({"expired"} if mode == "chain" else set())
        if state not in allowed:
            found.append(f"{count} tasks of {mode} ended {state}")
    for mode, reason, count in await rows(
        pool, "SELECT mode, reason, count(*) FROM tracekit.dead_letters GROUP BY 1, 2 ORDER BY 1, 2"
    ):
        if mode not in MAY_DIE:
            found.append(f"{count} tasks of {mode} died: {reason}")
    reviews = await rows(
        pool,
        "SELECT d.task_id FROM tracekit.dead_letters AS d LEFT JOIN tracekit.tasks AS r ON r.id = d.review_task_id"
        " WHERE r.review_of IS DISTINCT FROM d.task_id",
    )
    if reviews:
        found.append(f"{len(reviews)} deaths have no review task: {some(row[0] for row in reviews)}")
    return found


async def signals_counted(pool: Pool, receipts: Path) -> list[str]:
    """A signal that was taken is kept, once; one that came first ended its wait (Q14)."""
    found = []
    sent = {signal_key(words[1]) for words in lines_of(receipts) if words[0] == "signal"}
    kept = Counter(row[0] for row in await rows(pool, "SELECT key FROM tracekit.signals WHERE key LIKE 'soak:%%'"))
    if lost := sent - kept.keys():
        found.append(f"{len(lost)} signals are lost: {some(lost)}")
    if twice := {key for key, times in kept.items() if times > 1}:
        found.append(f"{len(twice)} signals are kept twice: {some(twice)}")
    missed = await rows(
        pool,
        "SELECT w.task_id FROM tracekit.waits AS w JOIN tracekit.signals AS s ON s.key = w.key"
        " WHERE s.received_at < w.opened_at AND w.resolution IS DISTINCT FROM 'signal'",
    )
    if missed:
        found.append(f"{len(missed)} waits missed a signal that was there before them: {some(r[0] for r in missed)}")
    untrue = await rows(
        pool,
        "SELECT t.id FROM tracekit.tasks AS t JOIN tracekit.hops AS h ON h.task_id = t.id AND h.mode = 'parker'"
        " WHERE t.state = 'done' AND NOT EXISTS (SELECT FROM tracekit.waits AS w"
        "   WHERE w.task_id = t.id AND w.resolution = t.summary)",
    )
    if untrue:
        found.append(f"{len(untrue)} handlers were told another end of their wait: {some(row[0] for row in untrue)}")
    return found


async def deeds_are_on_record(pool: Pool, ledger: Path) -> list[str]:
    """What the world saw is what is recorded: none missing, none from a late worker, none repeated unasked (Q3, Q5)."""
    found = []
    deeds = [(task_id, step, int(hop), int(attempt)) for task_id, step, hop, attempt in lines_of(ledger)]
    if twice := {deed for deed, times in Counter(deeds).items() if times > 1}:
        found.append(f"{len(twice)} deeds were done twice by one attempt: {some(twice)}")
    last = {(task_id, step): (hop, attempt) for task_id, step, hop, attempt in sorted(deeds, key=lambda d: d[2:])}
    recorded = {
        (task_id, step): (hop, attempt)
        for task_id, step, hop, attempt in await rows(
            pool, "SELECT task_id, step, hop, attempt FROM tracekit.effects WHERE finished_at IS NOT NULL"
        )
    }
    if unlike := {place for place, by in recorded.items() if last.get(place) != by}:
        found.append(f"{len(unlike)} recorded effects are not the last deed: {some(unlike)}")
    done = await rows(
        pool,
        "SELECT t.id, h.mode FROM tracekit.tasks AS t JOIN tracekit.hops AS h ON h.task_id = t.id AND h.hop = 1"
        " WHERE t.state = 'done' AND h.mode IN ('deeds', 'once')",
    )
    due = {(task_id, step) for task_id, mode in done for step in (STEPS if mode == "deeds" else ("once",))}
    if missing := due - recorded.keys():
        found.append(f"{len(missing)} effects of finished tasks have no record: {some(missing)}")
    redriven = Counter(
        row[0] for row in await rows(pool, "SELECT task_id FROM tracekit.dead_letters WHERE resolution = 'redriven'")
    )
    times = Counter(task_id for task_id, step, _, _ in deeds if step == "once")
    if repeated := {task_id for task_id, count in times.items() if count > 1 + redriven[task_id]}:
        found.append(f"{len(repeated)} deeds were repeated that must not be: {some(repeated)}")
    return found


async def audited(connection: AsyncConnection) -> list[str]:
    """The record holds together (T11)."""
    found = [
        f"audit: {one.check}: {one.task_id} {one.detail}" async for one in audit(connection) if isinstance(one, Finding)
    ]
    return found[:FEW] + ([f"audit: {len(found) - FEW} more findings"] if len(found) > FEW else [])

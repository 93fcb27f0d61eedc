"""The soak's short form, and proof that its reckoning finds what it looks for."""

from __future__ import annotations

import json
import os
from datetime import timedelta
from pathlib import Path
from typing import LiteralString

import pytest

from tests.queue.driving import accept, settle, take
from tests.soak import checks
from tests.soak.modes import signal_key
from tests.soak.watching import flat, rss
from tests.support.processes import Process
from tracekit.postgres import Pool
from tracekit.queue import Done, GiveUp, Park, Queue

SEED = 20_261_123


async def execute(pool: Pool, statement: LiteralString) -> None:
    async with pool.connection() as connection:
        await connection.execute(statement)


def show_logs(directory: Path) -> None:
    for log in sorted(directory.glob("*.log")):
        print(f"--- {log.name}\n{log.read_text(errors='replace')[-3000:]}")


# It lasts until each fault has happened, and most of that is processes that start: on a busy machine that takes long.
@pytest.mark.timeout(900)
async def test_a_short_soak_through_every_fault_leaves_nothing_behind_Q1_Q2_Q3_Q4_Q5_Q10_Q14_Q15_T11(
    tmp_path: Path,
) -> None:
    options = ("--minutes=0.1", f"--seed={SEED}", "--every=0.4", "--rate=30", "--json")
    async with await Process.start("tests.soak", *options, log=tmp_path / "progress") as soak:
        status = await soak.gone(within=850)
    assert soak.lines, soak.log[-4000:]
    report = json.loads(soak.lines[-1])
    for name, number in report["numbers"].items():
        print(f"{name}: {number:g}")
    if report["kept"]:
        show_logs(Path(report["kept"]))
    assert report["findings"] == []
    assert status == 0
    # It was no idle time: each kind of fault, each kind of end. Whom a fault finds idle loses nothing, so that
    # attempts are lost has tests of its own, at each point of a hop's life.
    numbers = report["numbers"]
    for fault in ("kill", "freeze", "leave", "deafen", "cut", "kill enqueuer", "stop server"):
        assert numbers[f"fault: {fault}"] > 0
    for much in ("attempts failed", "waits ended by a signal", "dead letters redriven"):
        assert numbers[much] > 0
    assert numbers["tasks"] > 50


# --- the reckoning finds what it looks for ----------------------------------------------------------------------------


async def test_the_reckoning_finds_what_was_left(queue: Queue, pool: Pool) -> None:
    assert await checks.nothing_left(pool) == []
    for _ in range(4):
        await accept(queue)
    await take(queue)
    await settle(queue, await take(queue), Park("ci", "ci:1", timedelta(minutes=1)))
    await settle(queue, await take(queue), GiveUp("enough"))
    assert await checks.nothing_left(pool) == [
        "left in the queue: 1 parked",
        "left in the queue: 2 ready",  # the last one, and the review of the dead one
        "left in the queue: 1 running",
        "left open: 1 waits for ci",
        "left in the DLQ: 1 of router",
        "left unfinished: 1 tasks are dead",
        "left unfinished: 4 tasks are open",
    ]


async def test_the_reckoning_finds_what_was_lost_or_ended_twice(queue: Queue, pool: Pool, tmp_path: Path) -> None:
    receipts = tmp_path / "receipts"
    done = await accept(queue)
    await settle(queue, await take(queue), Done())
    receipts.write_text(f"task {done} router key-1\ntask {done} router key-1\n")
    assert await checks.accepted_ended_once(pool, receipts) == []

    unfinished = await accept(queue)
    receipts.write_text(f"task {done} router key-1\ntask 01NEVER router key-1\ntask {unfinished} router key-2\n")
    # The schema does not let an end be written twice.
    await execute(pool, "ALTER TABLE tracekit.events RENAME TO events_once")
    await execute(
        pool,
        "CREATE VIEW tracekit.events AS SELECT * FROM tracekit.events_once UNION ALL"
        " SELECT * FROM tracekit.events_once WHERE kind IN ('task.ended', 'attempt.ended')",
    )
    assert await checks.accepted_ended_once(pool, receipts) == [
        "1 keys got receipts of several tasks: key-1",
        "1 accepted tasks are lost: 01NEVER",
        f"1 tasks never ended: {unfinished}",
        f"1 tasks ended more than once: {done}",
        f"1 attempts ended more than once: {done}/1/1",
    ]


async def test_the_reckoning_finds_an_end_that_is_not_right(queue: Queue, pool: Pool) -> None:
    await accept(queue, "doomed")
    await settle(queue, await take(queue, "doomed"), Done("abandoned"))
    await accept(queue, "slow")
    await settle(queue, await take(queue, "slow"), Done())
    assert await checks.ends_are_right(pool) == []
    await accept(queue, "slow")
    await settle(queue, await take(queue, "slow"), Done("failed"))
    await accept(queue, "chain")
    await settle(queue, await take(queue, "chain"), GiveUp("enough"))
    await execute(pool, "UPDATE tracekit.dead_letters SET review_task_id = NULL")
    found = await checks.ends_are_right(pool)
    assert "1 tasks of slow ended failed" in found
    assert "1 tasks of chain died: given_up" in found
    assert any(finding.startswith("1 deaths have no review task") for finding in found)


async def test_the_reckoning_finds_a_signal_that_was_lost_or_missed(queue: Queue, pool: Pool, tmp_path: Path) -> None:
    receipts = tmp_path / "receipts"
    receipts.write_text("signal known\n")
    await queue.signal(signal_key("known"), {}, dedupe_key="run", sent_by="github")
    parked = await accept(queue, "parker")
    await settle(queue, await take(queue, "parker"), Park("ci", signal_key("known"), timedelta(minutes=1)))
    await settle(queue, await take(queue, "parker"), Done(summary="signal"))
    assert await checks.signals_counted(pool, receipts) == []

    receipts.write_text("signal known\nsignal forgotten\n")
    await queue.signal(signal_key("known"), {}, dedupe_key="another run", sent_by="github")
    await execute(pool, "UPDATE tracekit.waits SET resolution = 'deadline'")
    assert await checks.signals_counted(pool, receipts) == [
        "1 signals are lost: soak:forgotten",
        "1 signals are kept twice: soak:known",
        f"1 waits missed a signal that was there before them: {parked}",
        f"1 handlers were told another end of their wait: {parked}",
    ]


async def test_the_reckoning_finds_deeds_that_are_not_on_record(queue: Queue, pool: Pool, tmp_path: Path) -> None:
    ledger = tmp_path / "ledger"
    ids = {}
    for mode in ("deeds", "once"):
        ids[mode] = await accept(queue, mode)
        at = await take(queue, mode)
        for step in ("a", "b", "c") if mode == "deeds" else ("once",):
            await queue.begin_effect(at, step, uncertain="raise")
            await queue.record_effect(at, step, None)
        await settle(queue, at, Done())
    lines = [f"{ids['deeds']} {step} 1 1\n" for step in "abc"] + [f"{ids['once']} once 1 1\n"]
    ledger.write_text("".join(lines))
    assert await checks.deeds_are_on_record(pool, ledger) == []

    # A late worker's deed, one that was done again unasked, one that nobody did, and one without a record.
    ledger.write_text("".join([*lines[:2], f"{ids['deeds']} b 1 2\n", lines[3], lines[3]]))
    await execute(pool, "DELETE FROM tracekit.effects WHERE step = 'a'")
    found = await checks.deeds_are_on_record(pool, ledger)
    assert [finding.split(":")[0] for finding in found] == [
        "1 deeds were done twice by one attempt",
        "2 recorded effects are not the last deed",
        "1 effects of finished tasks have no record",
        "1 deeds were repeated that must not be",
    ]


async def test_the_reckoning_asks_the_audit_T11(queue: Queue, pool: Pool) -> None:
    parked = await accept(queue)
    await settle(queue, await take(queue), Park("ci", "ci:1", timedelta(minutes=1)))
    async with pool.connection() as connection:
        assert await checks.audited(connection) == []
        await connection.execute("DELETE FROM tracekit.queue")
        found = await checks.audited(connection)
    assert any(finding.startswith("audit: ") and parked in finding for finding in found)


def test_what_grows_is_not_flat() -> None:
    warming_up = [float(n) for n in range(10)] + [10.0] * 30
    assert flat(warming_up, slack=0.5)
    assert not flat([float(n) for n in range(40)], slack=5)


def test_the_memory_of_a_process_is_seen() -> None:
    assert rss(os.getpid()) > 10_000_000
    assert rss(2**22 + 1) == 0, "no process has this id"

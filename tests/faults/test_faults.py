"""The fault test: tasks through worker processes that are killed, on a server that is stopped, and nothing is lost."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg

from tests.faults.breaking import BreakableServer
from tests.faults.conftest import StartWorker
from tests.faults.database import rows, value
from tests.faults.modes import parker_key, read_ledger
from tests.faults.running import BATCH_SPANS
from tests.queue.driving import AT_ONCE, submission
from tests.support.otlp import OtlpReceiver
from tests.support.processes import ALL_DAY, Process, background, eventually
from tracekit import ids
from tracekit.postgres import Pool, open_pool
from tracekit.queue import Queue, Receipt, Submission

SEED = 20_260_730
TASKS = 500
KILLS = 6
WORKERS = 3
LEASE, SWEEP = 2.0, 0.2
POISONED = 66
"""The exit status of a worker that a poison task ended."""

PATIENT = AT_ONCE.model_copy(update={"max_attempts": 12})
"""An innocent task may be under way in many a worker that is killed."""
BRIEF = AT_ONCE.model_copy(update={"max_attempts": 2})

DATABASE_ERRORS = (psycopg.Error, TimeoutError, OSError)


@dataclass
class Slot:
    """A place where a worker process runs; when one ends, whyever, the next is started."""

    dsn: str
    start: StartWorker
    process: Process | None = None
    died: dict[str, float] = field(default_factory=dict)
    """Worker ids, and when their process was gone."""
    statuses: Counter[int] = field(default_factory=Counter)

    async def keep(self) -> None:
        while True:
            self.process = await self.start(self.dsn, ready=False)
            status = await self.process.gone(within=600)
            self.statuses[status] += 1
            if self.process.lines:
                self.died[self.process.lines[0]] = time.time()

    @property
    def serves(self) -> bool:
        return self.process is not None and bool(self.process.lines) and self.process.returncode is None

    def kill(self) -> None:
        assert self.process is not None
        self.process.send(signal.SIGKILL)


def submissions(chance: random.Random) -> list[Submission]:
    """500 tasks of every kind, in an order of `chance`'s."""
    kinds: list[tuple[str, dict[str, Any]]] = [
        *[("fast", {})] * 190,
        *[("slow", {"seconds": chance.uniform(0.1, 0.8)}) for _ in range(90)],
        *[("raising", {"failures": chance.randrange(3)}) for _ in range(50)],
        *[("effectful", {})] * 90,
        *[("chain", {"hops": chance.randrange(1, 5)}) for _ in range(48)],
        *[("parker", {})] * 30,
        *[("poison", {})] * 2,
    ]
    chance.shuffle(kinds)
    assert len(kinds) == TASKS
    return [
        submission(mode, work, key=f"fault-{number}", retry_policy=BRIEF if mode == "poison" else PATIENT)
        for number, (mode, work) in enumerate(kinds)
    ]


async def stubborn_enqueue(queue: Queue, offered: Sequence[Submission]) -> list[Receipt]:
    """As a client does it: until there is a receipt, with the same keys."""
    while True:
        try:
            return await queue.enqueue(offered)
        except DATABASE_ERRORS:
            await asyncio.sleep(0.1)


async def stubborn_signal(queue: Queue, task_id: str) -> None:
    while True:
        try:
            await queue.signal(parker_key(task_id), task_id, dedupe_key="run", sent_by="github")
            return
        except DATABASE_ERRORS:
            await asyncio.sleep(0.1)


async def test_500_tasks_through_killed_workers_and_a_stopped_server_Q1_Q2_Q3_Q4_Q5_Q8_Q14_T2_T4_T5_T6(
    breakable: BreakableServer, breakable_dsn: str, start_worker: StartWorker, ledger: Path, tmp_path: Path,
    monkeypatch: Any,
) -> None:  # fmt: skip
    chance = random.Random(SEED)
    print(f"\nseed {SEED}")
    began = time.monotonic()
    with OtlpReceiver(tmp_path) as receiver:
        for name, setting in receiver.environment().items():
            monkeypatch.setenv(name, setting)
        pool = await open_pool(breakable_dsn, min_size=2, max_size=6, name="test", autocommit=True)
        async with pool:
            story = Story(pool, breakable, chance, [Slot(breakable_dsn, start_worker) for _ in range(WORKERS)])
            await story.happen()
            await asyncio.to_thread(receiver.wait, distinct=await story.spans_written())
            await story.leave()
            received = receiver.spans()
            await check_tasks(pool, story, ledger)
            await check_trace(pool, story, received)
    print(f"{time.monotonic() - began:.0f} s in all")


class Story:
    """What happens, and what is remembered of it."""

    def __init__(self, pool: Pool, server: BreakableServer, chance: random.Random, slots: list[Slot]) -> None:
        self.pool = pool
        self.queue = Queue(pool)
        self.server = server
        self.chance = chance
        self.slots = slots
        self.receipts: dict[str, str] = {}
        """Task ids and the mode they entered by."""
        self.outage = (0.0, 0.0)

    async def happen(self) -> None:
        self.keeping = background(*(slot.keep() for slot in self.slots))
        await self.keeping.__aenter__()
        async with background(enqueuing := asyncio.create_task(self._enqueue())):
            for number in range(KILLS):
                await self._until_ended((number + 1) * TASKS // (KILLS + 2))
                serving = [slot for slot in self.slots if slot.serves]
                if serving:
                    self.chance.choice(serving).kill()
                if number == KILLS // 2:
                    self.outage = (time.time(), 0.0)
                    await self.server.stop()
                    await self.server.start()
                    self.outage = (self.outage[0], time.time())
            await enqueuing
        poison = {task_id for task_id, mode in self.receipts.items() if mode == "poison"}
        await self._until_ended(TASKS - len(poison))
        await eventually(self._all_dead(poison), "poison tasks are in the DLQ")
        self.dead = await self.queue.dead_letters(limit=TASKS)
        for entry in self.dead:
            await self.queue.resolve_dead(entry.task_id, "abandoned", "rob")
        await eventually(self._nothing_left, "all that is left ends")

    async def leave(self) -> None:
        """All workers go by themselves."""
        served = [slot.process for slot in self.slots]
        await self.keeping.__aexit__(None, None, None)
        for process in served:
            assert process is not None
            await process.prints()  # one that is only starting does not hear yet
            process.send(signal.SIGTERM)
        for process in served:
            assert process is not None
            assert await process.gone() == 0, process.log[-4000:]

    async def spans_written(self) -> int:
        return int(await value(self.pool, "SELECT count(*) FROM tracekit.spans"))

    async def _enqueue(self) -> None:
        offered = submissions(self.chance)
        while offered:
            batch, offered = offered[:10], offered[10:]
            receipts = await stubborn_enqueue(self.queue, batch)
            for receipt, one in zip(receipts, batch, strict=True):
                self.receipts[receipt.task_id] = one.mode
                if one.mode == "parker":
                    # Some signals are there before their wait.
                    await stubborn_signal(self.queue, receipt.task_id)
            await self._until_ended(len(self.receipts) - 100)

    async def _until_ended(self, count: int) -> None:
        async def so_many() -> bool:
            with suppress(*DATABASE_ERRORS):
                ended = "SELECT count(*) FROM tracekit.tasks WHERE state NOT IN ('open', 'dead')"
                return bool(await value(self.pool, ended) >= count)
            return False

        await eventually(so_many, f"{count} tasks have ended", within=ALL_DAY)

    def _all_dead(self, poison: set[str]) -> Any:
        async def look() -> bool:
            found = await rows(self.pool, "SELECT id FROM tracekit.tasks WHERE state = 'dead'")
            return {row[0] for row in found} >= poison

        return look

    async def _nothing_left(self) -> bool:
        return not await rows(self.pool, "SELECT FROM tracekit.tasks WHERE state IN ('open', 'dead')")


async def check_tasks(pool: Pool, story: Story, ledger: Path) -> None:
    """None lost, none ended twice, each attempt on record."""
    tasks = dict(await rows(pool, "SELECT id, state FROM tracekit.tasks"))
    reviews = dict(await rows(pool, "SELECT review_of, id FROM tracekit.tasks WHERE review_of IS NOT NULL"))
    assert len(story.receipts) == TASKS
    assert set(tasks) == set(story.receipts) | set(reviews.values())
    poison = {task_id for task_id, mode in story.receipts.items() if mode == "poison"}
    assert {task_id for task_id, state in tasks.items() if state != "done"} == poison

    # Q4: the poison tasks, and only they, used up their attempts.
    last_words = ("attempts_exhausted", BRIEF.max_attempts, "lease_expired")
    buried = {entry.task_id: (entry.reason, entry.attempts, entry.error_type) for entry in story.dead}
    assert buried == dict.fromkeys(poison, last_words)
    assert set(reviews) == poison

    ended = dict(
        await rows(pool, "SELECT task_id, count(*) FROM tracekit.events WHERE kind = 'task.ended' GROUP BY task_id")
    )
    assert ended == dict.fromkeys(tasks, 1)

    attempts: dict[tuple[str, int], list[int]] = defaultdict(list)
    found = await rows(
        pool, "SELECT task_id, hop, attempt FROM tracekit.events WHERE kind = 'attempt.ended' ORDER BY seq"
    )
    for task_id, hop, attempt in found:
        attempts[task_id, hop].append(attempt)
    assert all(numbers == list(range(1, len(numbers) + 1)) for numbers in attempts.values())
    # Each hop ended once in something that is not another try, and the one after it was begun then.
    finals = await rows(
        pool,
        "SELECT task_id, hop, count(*) FROM tracekit.events WHERE kind = 'attempt.ended'"
        " AND data->>'outcome' IN ('handed_off', 'done') GROUP BY 1, 2",
    )
    hops = await rows(pool, "SELECT task_id, hop FROM tracekit.hops")
    assert {(task_id, hop): count for task_id, hop, count in finals} == {
        (task_id, hop): 1 for task_id, hop in hops if task_id not in poison
    }

    # What the world saw is on record: each deed belongs to an attempt, at most one an attempt, none after its record.
    deeds = [deed for deed in read_ledger(ledger) if story.receipts[deed[0]] == "effectful"]
    assert max(Counter(deeds).values()) == 1
    recorded = {
        (task_id, step): attempt
        for task_id, step, attempt in await rows(
            pool, "SELECT task_id, step, attempt FROM tracekit.effects WHERE finished_at IS NOT NULL"
        )
    }
    effectful = {task_id for task_id, mode in story.receipts.items() if mode == "effectful"}
    assert set(recorded) == {(task_id, step) for task_id in effectful for step in ("a", "b", "c")}
    last = {(task_id, step): attempt for task_id, step, attempt in sorted(deeds, key=lambda deed: deed[2])}
    assert last == recorded
    assert all(attempt in attempts[task_id, 1] for task_id, _, attempt in deeds)

    # Q14: each parked task came back by its signal, once.
    parkers = [task_id for task_id, mode in story.receipts.items() if mode == "parker"]
    summaries = dict(await rows(pool, "SELECT id, summary FROM tracekit.tasks WHERE id = ANY(%s)", parkers))
    assert summaries == {task_id: task_id for task_id in parkers}

    await print_recovery(pool, story, sum(map(len, attempts.values())), len(deeds) - len(recorded))


async def print_recovery(pool: Pool, story: Story, attempts: int, repeated: int) -> None:
    died = {worker: when for slot in story.slots for worker, when in slot.died.items()}
    lost = await rows(
        pool,
        "SELECT lost.data->>'worker', extract(epoch FROM lost.at)::float8,"
        "  extract(epoch FROM (next.data->>'claimed_at')::timestamptz)::float8"
        " FROM tracekit.events AS lost LEFT JOIN tracekit.events AS next ON (next.task_id, next.hop, next.attempt) ="
        "  (lost.task_id, lost.hop, lost.attempt + 1) AND next.kind = 'attempt.ended'"
        " WHERE lost.kind = 'attempt.ended' AND lost.data->>'outcome' = 'lease_expired'",
    )
    stopped, back = story.outage
    # While the server is away nobody can sweep: such a recovery begins when it is back.
    since = {worker: back if when < back and when > stopped - LEASE else when for worker, when in died.items()}
    swept = [at - since[worker] for worker, at, _ in lost if worker in died]
    claimed = [at - since[worker] for worker, _, at in lost if worker in died and at]
    assert len(lost) > 0
    assert len(swept) > 0
    statuses = sum((slot.statuses for slot in story.slots), Counter[int]())
    first = await value(
        pool,
        "SELECT extract(epoch FROM min(at))::float8 FROM tracekit.events"
        " WHERE kind = 'attempt.ended' AND at > to_timestamp(%s)",
        back,
    )
    print(
        f"{attempts} attempts, {len(lost)} of them lost with {sum(statuses.values())} workers"
        f" ({statuses[POISONED]} poisoned, {statuses[-signal.SIGKILL]} killed); {repeated} deeds repeated\n"
        f"ready again {max(swept):.2f} s after a worker's death at most (lease {LEASE:g} s, sweep {SWEEP:g} s),"
        f" claimed {max(claimed, default=0.0):.2f} s after it\n"
        f"the server was away for {back - stopped:.2f} s; first settlement {first - back:.2f} s after it was back"
    )
    assert statuses[POISONED] > 0
    assert statuses[-signal.SIGKILL] > 0


async def check_trace(pool: Pool, story: Story, received: list[dict[str, Any]]) -> None:
    """The collector has every span of the record, each has its parent, and only a shipper's death repeats some."""
    times = Counter((span["trace_id"], span["span_id"]) for span in received)
    written = await rows(pool, "SELECT trace_id, span_id FROM tracekit.spans")
    assert len(set(written)) == len(written)
    assert set(times) == set(written)
    deaths = sum(sum(slot.statuses.values()) for slot in story.slots) + 1  # and the server's
    repeated = sum(times.values()) - len(times)
    print(f"{len(times)} spans, {repeated} received twice with {deaths} deaths (at most {BATCH_SPANS} each)")
    assert repeated <= deaths * BATCH_SPANS

    orphans = [
        (span["name"], span["trace_id"])
        for span in received
        if span["parent_span_id"] and (span["trace_id"], span["parent_span_id"]) not in times
    ]
    assert orphans == []
    by_id = {(span["trace_id"], span["span_id"]): span for span in received}
    roots = sorted(place for place, span in by_id.items() if not span["parent_span_id"])
    tasks = await rows(pool, "SELECT id, trace_id FROM tracekit.tasks")
    assert roots == sorted((trace_id, ids.root_span_id(task_id)) for task_id, trace_id in tasks)
    ended = await rows(
        pool,
        "SELECT t.trace_id, e.task_id, e.hop, e.attempt, e.data->>'outcome' FROM tracekit.events AS e"
        " JOIN tracekit.tasks AS t ON t.id = e.task_id WHERE e.kind = 'attempt.ended'",
    )
    for trace_id, task_id, hop, attempt, outcome in ended:
        span = by_id[trace_id, ids.attempt_span_id(task_id, hop, attempt)]
        assert span["parent_span_id"] == ids.send_span_id(task_id, hop)
        assert (span["attributes"].get("error.type") == "lease_expired") == (outcome == "lease_expired")
        retry_of = [link["span_id"] for link in span["links"] if link["attributes"]["tracekit.link"] == "retry_of"]
        assert retry_of == ([ids.attempt_span_id(task_id, hop, attempt - 1)] if attempt > 1 else [])
    assert sum(span["name"].startswith("process ") for span in by_id.values()) == len(ended)

"""The life of a hop as a model, run against the real queue: whatever happens in whatever order, they agree.

Here are the steps there are: each asks the queue and the model (`life_model`) for the same, with what `life_strategies`
draws. What must hold after every step is in `life_invariants`. Every example begins with an empty database.

`HYPOTHESIS_MAX_EXAMPLES=5000 python -m pytest --hypothesis-profile=search tests/queue/test_state_machine.py` looks
longer, and elsewhere each time.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Iterable, Sequence
from datetime import timedelta
from typing import Any, Literal, TypeVar

import hypothesis.strategies as st
import psycopg
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.queue.driving import submission
from tests.queue.life_invariants import Record, check
from tests.queue.life_model import Fact, Life, hours
from tests.queue.life_strategies import (
    KEYS,
    MODES,
    WORKERS,
    Drawn,
    batches,
    effects,
    endings,
    frees,
    inputs,
    leases,
    offers,
    picked,
    possible,
    turns,
)
from tests.support.database import EMPTY
from tracekit.envelope import RetryPolicy
from tracekit.postgres import Pool, open_pool
from tracekit.queue import (
    Done,
    HandOff,
    LeaseLost,
    Position,
    Queue,
    QueueError,
    Settlement,
)
from tracekit.queue.audit import Finding, audit
from tracekit.queue.claim import Ask
from tracekit.queue.effects import EffectUncertain
from tracekit.queue.model import Ending
from tracekit.queue.transitions import REVIEW_TTL

EXAMPLES = int(os.environ.get("HYPOTHESIS_MAX_EXAMPLES", "40"))
STEPS = 40

T = TypeVar("T")


class HopLife(RuleBasedStateMachine):
    """Several workers, dying and late ones, signals early, late and twice, deadlines, retries, redrive."""

    def __init__(self, runner: asyncio.Runner, pool: Pool) -> None:
        super().__init__()
        self.runner = runner
        self.pool = pool
        self.queue = Queue(pool)
        self.life = Life()
        self.begun: list[tuple[Position, str]] = []
        """Effects that somebody is about to record or undo."""
        self.before: Record | None = None
        self.untouched = False
        self.facts, self.steps = 0, 0
        self.run(self._execute(EMPTY))

    def run(self, awaitable: Awaitable[T]) -> T:
        async def waited() -> T:
            return await awaitable

        return self.runner.run(waited())

    async def _execute(self, statement: str, *values: Any) -> list[Any]:
        async with self.pool.connection() as connection:
            cursor = await connection.execute(statement.encode(), values or None)
            return await cursor.fetchall() if cursor.description else []

    @invariant()
    def everything_holds(self) -> None:
        self.run(self._check())

    async def _check(self) -> None:
        async with self.pool.connection() as connection:
            self.before = await check(connection, self.life, self.before, untouched=self.untouched)
            self.untouched = False
            self.steps += 1
            if self.steps % 20 == 0:
                # Each step asks what the audit asks; here is the audit itself.
                assert [found async for found in audit(connection) if isinstance(found, Finding)] == []

    # --- what is drawn, made of what there is -----------------------------------------------------------------------

    def pick(self, drawn: tuple[int, bool]) -> Position | None:
        number, late = drawn
        chosen = self.life.lost if late else self.life.held
        return chosen[-1 - number % len(chosen)] if chosen else None

    def settlements(self, batch: Iterable[Drawn]) -> list[Settlement]:
        picks = ((self.pick(drawn), ending) for drawn, ending in batch)
        return [Settlement(at, possible(at, ending)) for at, ending in picks if at]

    def settled(self, settlements: Sequence[Settlement]) -> list[Settlement]:
        """The model's part of a batch: those whose lease is lost."""
        lost = [one for one in settlements if not self.life.settle(one.position, one.ending)]
        self.filed()
        self.run(self._rest())
        return lost

    def filed(self) -> None:
        """The model learns the ids of the review tasks that it expects."""
        if keys := self.life.reviews_due:
            found = self.run(
                self._execute(
                    "SELECT idempotency_key, id, trace_id FROM tracekit.tasks WHERE idempotency_key = ANY(%s)", keys
                )
            )
            assert sorted(key for key, _, _ in found) == sorted(keys), "a dead task has not one review task"
            filed = {key: (task_id, trace_id) for key, task_id, trace_id in found}
            self.life.adopt_reviews(filed, hours(REVIEW_TTL), RetryPolicy().max_attempts)

    async def _rest(self) -> None:
        """A failed review task rests for seconds, as the default policy says; the model knows only hours."""
        if any(task.review_of and task.state == "scheduled" for task in self.life.tasks.values()):
            await self._execute(
                "UPDATE tracekit.queue SET due_at = clock_timestamp()"
                " WHERE state = 'scheduled' AND due_at - clock_timestamp() BETWEEN '0' AND '10 minutes'"
            )

    # --- callers ----------------------------------------------------------------------------------------------------

    @initialize(offers=offers)
    def first(self, offers: list[dict[str, Any]]) -> None:
        self.enqueue(offers)

    @precondition(lambda self: sum(task.live for task in self.life.tasks.values()) < 6)
    @rule(offers=offers)
    def more(self, offers: list[dict[str, Any]]) -> None:
        self.enqueue(offers)

    def enqueue(self, offers: list[dict[str, Any]]) -> None:
        self.life.begin_step()
        offered = [submission(**offer) for offer in offers]
        receipts = self.run(self.queue.enqueue(offered))
        expected = [self.life.enqueue(one) for one in offered]
        assert [(receipt.task_id, receipt.duplicate) for receipt in receipts] == expected
        for receipt in receipts:
            assert receipt.trace_id == self.life.tasks[receipt.task_id].trace_id
        self.untouched = all(duplicate for _, duplicate in expected)

    @precondition(lambda self: self.facts < 10)
    @rule(key=st.sampled_from(KEYS), dedupe_key=st.sampled_from(["first", "second"]), twice=st.booleans())
    def signal(self, key: str, dedupe_key: str, twice: bool) -> None:
        self.untouched = True
        for _ in range(2 if twice else 1):
            self.facts += 1
            fact = Fact(dedupe_key, {"n": self.facts}, f"sender {self.facts}")
            sent = self.run(self.queue.signal(key, fact.payload, dedupe_key=dedupe_key, sent_by=fact.sent_by))
            news, stands, woken = self.life.signal(key, fact)
            assert (sent.accepted, set(sent.resumed), len(sent.resumed)) == (news, woken, len(woken))
            assert (sent.first.key, sent.first.payload, sent.first.sent_by) == (key, stands.payload, stands.sent_by)
            self.untouched &= not news

    @precondition(lambda self: any(task.state == "dead" for task in self.life.tasks.values()))
    @rule(
        number=st.integers(0, 5),
        dead=st.sampled_from([True, True, True, False]),
        resolution=st.sampled_from(["redriven", "abandoned"]),
    )
    def resolve(self, number: int, dead: bool, resolution: Literal["redriven", "abandoned"]) -> None:
        self.life.begin_step()
        chosen = [task for task in self.life.tasks.values() if task.state == "dead" or not dead]
        task = chosen[number % len(chosen)]
        if task.state == "dead":
            self.run(self.queue.resolve_dead(task.id, resolution, "rob"))
            self.life.resolve(task, resolution, "rob")
        else:
            self.untouched = True
            with pytest.raises(QueueError, match=f"is {'open' if task.live else task.state}, not dead"):
                self.run(self.queue.resolve_dead(task.id, resolution, "rob"))

    # --- workers ----------------------------------------------------------------------------------------------------

    @rule(**turns)
    def ada_works(self, **drawn: Any) -> None:
        self.work("ada", **drawn)

    @rule(**turns)
    def bob_works(self, **drawn: Any) -> None:
        self.work("bob", **drawn)

    @rule(**turns)
    def cyd_works(self, **drawn: Any) -> None:
        self.work("cyd", **drawn)

    def work(
        self,
        worker: str,
        passed: int,
        batch: list[Drawn],
        free: dict[str, int],
        lease: timedelta,
        by_age: bool,
        sweeps: bool,
        effect: dict[str, Any] | None,
        ends: list[Ending],
    ) -> None:
        """Ends some claims and takes others of several modes, in one round; of what it took it ends as many as `ends`
        are. It may be its last step.
        """
        self.wait(passed)
        moved = self.sweep() if sweeps else 0
        self.life.begin_step()
        settlements = self.settlements(batch)
        if settlements:
            turn = self.run(self.queue.turn(settlements, Ask(worker, free, lease, free if by_age else ())))
            assert turn.lost == self.settled(settlements)
            assert turn.claimed is not None
            taken, lost = turn.claimed, turn.lost
        else:
            taken, lost = self.run(self.queue.claim(worker, free, lease, by_age=by_age)), []
        self.life.claim(worker, free, hours(lease), taken, by_age=by_age)
        if effect and taken:
            self._effect(taken[0], **effect)
        self.untouched = len(lost) == len(settlements) and not (taken or moved or passed)
        if ended := [Settlement(at, possible(at, ending)) for at, ending in zip(taken, ends, strict=False)]:
            self.life.begin_step()
            assert self.run(self.queue.settle(ended)) == self.settled(ended) == []

    @precondition(lambda self: self.life.claims)
    @rule(batch=batches)
    def settle(self, batch: list[Drawn]) -> None:
        self.life.begin_step()
        settlements = self.settlements(batch)
        lost = self.run(self.queue.settle(settlements))
        assert lost == self.settled(settlements)
        self.untouched = len(lost) == len(settlements)

    @precondition(lambda self: self.life.held)
    @rule(
        worker=st.sampled_from(WORKERS),
        batch=batches,
        free=frees,
        where=st.sampled_from(["queue", "record", "dead_letters", "waits", "outbox"]),
    )
    def dies_in_a_turn(self, worker: str, batch: list[Drawn], free: dict[str, int], where: str) -> None:
        """Its connection ends when it comes to write to `where`: each end is there whole, or not at all (Q8)."""
        self.life.begin_step()
        settlements = self.settlements(batch)
        ask = Ask(worker, free, timedelta(hours=1))
        taken = self.run(self._cut(settlements, ask, where))
        known = self.run(
            self._execute("SELECT task_id, hop, attempt FROM tracekit.events WHERE kind = 'attempt.ended'")
        )
        held = [one for one in settlements if self.life.holds(one.position)]
        written = [one for one in held if (one.position.task_id, one.position.hop, one.position.attempt) in known]
        self.settled(written)
        if taken is not None:
            assert written == held
            self.life.claim(worker, free, 1, taken, by_age=False)
        self.untouched = not written and not taken

    async def _cut(self, settlements: Sequence[Settlement], ask: Ask, where: str) -> list[Position] | None:
        """What a turn claims that does not write to `where`; None: it does, and was ended there."""
        async with self.pool.connection() as blocker, blocker.transaction():
            if where == "queue":
                # A row that the turn does not write it would only pass over.
                tasks = [one.position.task_id for one in settlements if self.life.holds(one.position)][-1:]
                await blocker.execute("SELECT FROM tracekit.queue WHERE task_id = ANY(%s) FOR UPDATE", [tasks])
            else:
                await blocker.execute(f"LOCK TABLE tracekit.{where} IN SHARE MODE".encode())
            turn = asyncio.create_task(self.queue.turn(settlements, ask))
            while not turn.done():
                await blocker.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_locks"
                    " WHERE NOT granted AND pg_backend_pid() = ANY(pg_blocking_pids(pid))"
                )
                await asyncio.sleep(0)
        try:
            return (await turn).claimed
        except psycopg.OperationalError:
            return None

    @precondition(lambda self: self.life.held)
    @rule(picks=st.lists(picked, min_size=1, max_size=3), lease=leases)
    def heartbeat(self, picks: list[tuple[int, bool]], lease: timedelta) -> None:
        """For some of a worker's leases: what it does not name runs out."""
        if named := [at for at in map(self.pick, picks) if at]:
            worker = named[0].worker or ""
            leases = {at.task_id: at for at in named if at.worker == worker}
            tokens = {task_id: at.token for task_id, at in leases.items()}
            held = self.run(self.queue.heartbeat(worker, MODES, "listening", tokens, lease))
            assert held == self.life.heartbeat(list(leases.values()), hours(lease))
            self.untouched = not held

    @precondition(lambda self: self.life.claims)
    @rule(pick=picked, drawn=effects)
    def effect(self, pick: tuple[int, bool], drawn: dict[str, Any]) -> None:
        self._effect(self.pick(pick) or self.life.claims[-1], **drawn)

    def _effect(self, at: Position, step: str, uncertain: str, then: str, result: Any) -> None:
        """It is begun; and recorded, or undone, or somebody dies."""
        expected = self.life.begin_effect(at, step, uncertain)
        self.untouched = expected != (False, None)
        if isinstance(expected, str):
            with pytest.raises(LeaseLost if expected == "lost" else EffectUncertain):
                self.run(self.queue.begin_effect(at, step, uncertain=uncertain))
            return
        assert self.run(self.queue.begin_effect(at, step, uncertain=uncertain)) == expected
        if not self.untouched and then == "leave":
            self.begun.append((at, step))
        elif not self.untouched:
            assert self._end_effect(at, step, then, result)

    @precondition(lambda self: self.begun)
    @rule(number=st.integers(0, 5), then=st.sampled_from(["record", "undo"]), result=inputs)
    def late_effect(self, number: int, then: str, result: Any) -> None:
        """Who seemed dead comes back to what was begun."""
        at, step = self.begun.pop(-1 - number % len(self.begun))
        known = self.life.effects.get((at.task_id, step))
        self.untouched = not self._end_effect(at, step, then, result) or known is None or known[2]

    def _end_effect(self, at: Position, step: str, then: str, result: Any) -> bool:
        if then == "record":
            call, holds = self.queue.record_effect(at, step, result), self.life.record_effect(at, step, result)
        else:
            call, holds = self.queue.undo_effect(at, step), self.life.undo_effect(at, step)
        if holds:
            self.run(call)
        else:
            with pytest.raises(LeaseLost):
                self.run(call)
        return holds

    # --- time -------------------------------------------------------------------------------------------------------

    @rule(passed=st.integers(0, 2), swept=st.booleans())
    def time_passes(self, passed: int, swept: bool) -> None:
        """The database's times move instead of its clock: what was due in some hours is due so much sooner."""
        self.wait(passed)
        moved = self.sweep() if swept else 0
        self.untouched = not (passed or moved)

    @precondition(lambda self: self.life.held)
    @rule(pick=picked, worker=st.sampled_from(WORKERS), lease=leases, ending=endings)
    def freezes(self, pick: tuple[int, bool], worker: str, lease: timedelta, ending: Ending) -> None:
        """Whoever has that claim says nothing until its lease is over, and somebody else takes the hop. Then he wakes,
        and can do nothing to it (Q3).
        """
        at = self.pick(pick) or self.life.held[0]
        task = self.life.tasks[at.task_id]
        if task.state == "running" and task.due is not None:
            self.wait(max(0, task.due - self.life.clock))
        self.sweep()
        free = {task.mode: 3}
        taken = self.run(self.queue.claim(worker, free, lease))
        self.life.claim(worker, free, hours(lease), taken, by_age=False)
        self.run(self._check())
        for late in (Done(), HandOff("a"), possible(at, ending)):
            assert len(self.run(self.queue.settle([Settlement(at, late)]))) == 1
        assert self.run(self.queue.heartbeat(at.worker or "", MODES, "deaf", {at.task_id: at.token}, lease)) == set()
        with pytest.raises(LeaseLost):
            self.run(self.queue.record_effect(at, "charge", "late"))
        self.untouched = True

    def wait(self, passed: int) -> None:
        """So many hours."""
        if time := timedelta(hours=passed):
            self.run(self._pass(time))
            self.life.clock += passed
            # Workers write back what they were told with the claim.
            self.life.claims = [
                at._replace(expires_at=at.expires_at and at.expires_at - time) for at in self.life.claims
            ]

    def sweep(self) -> int:
        self.life.begin_step()
        moved = self.run(self.queue.sweep())
        assert moved == self.life.sweep()
        self.filed()
        return moved

    async def _pass(self, time: timedelta) -> None:
        async with self.pool.connection() as connection, connection.pipeline():
            await connection.execute(
                "UPDATE tracekit.queue SET due_at = due_at - %(t)s, expires_at = expires_at - %(t)s", {"t": time}
            )
            await connection.execute(
                "UPDATE tracekit.envelopes SET expires_at = expires_at - %s WHERE expires_at IS NOT NULL", [time]
            )
            await connection.execute("UPDATE tracekit.waits SET deadline = deadline - %s", [time])


@pytest.mark.timeout(600 + 3 * EXAMPLES)  # Finding the shortest way to a failure takes some minutes.
def test_the_queue_agrees_with_its_model_after_every_step_Q2_Q3_Q4_Q5_Q6_Q7_Q8_Q14_Q15_T1_T2_T3_T4_T5_T11(
    dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    # Connections are cut on purpose, and psycopg says so each time.
    caplog.set_level(logging.ERROR, logger="psycopg")
    with asyncio.Runner() as runner:
        pool = runner.run(open_pool(dsn, min_size=2, max_size=4, name="model", autocommit=True))
        try:
            run_state_machine_as_test(
                lambda: HopLife(runner, pool),  # type: ignore[arg-type]
                settings=settings(
                    max_examples=EXAMPLES,
                    stateful_step_count=STEPS,
                    deadline=None,
                    print_blob=True,
                    report_multiple_bugs=False,
                    phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
                    suppress_health_check=list(HealthCheck),
                ),
            )
        finally:
            runner.run(pool.close())

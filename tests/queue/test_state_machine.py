"""The life of a hop as a model, run against the real queue: whatever happens in whatever order, they agree."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.queue.driving import AT_ONCE, submission
from tracekit.envelope import Priority
from tracekit.postgres import Pool, open_pool
from tracekit.queue import Done, GiveUp, HandOff, Park, Position, Queue, RetryLater, Settlement
from tracekit.queue.audit import Finding, audit
from tracekit.queue.model import Ending, Failed, Released

_examples = itertools.count()

HELD = timedelta(hours=1)


@dataclass
class Model:
    """What the design page says of a task."""

    rank: int
    order: int
    """Of its hop's creation: first in, first out inside a priority."""
    mode: str
    state: str = "ready"
    hop: int = 1
    attempt: int = 0
    allowed: int = AT_ONCE.max_attempts
    token: int = 0
    key: str = ""
    tokens: list[int] = field(default_factory=list)


class HopLife(RuleBasedStateMachine):
    """Several workers, dying and late ones, signals early, late and twice, deadlines, retries, redrive."""

    dsn: str

    claims: Bundle[Position] = Bundle("claims")
    """Every claim ever made: current ones and stale ones."""
    dead: Bundle[str] = Bundle("dead")

    def __init__(self) -> None:
        super().__init__()
        self.example = next(_examples)
        self.first_mode = f"m{self.example}"
        self.second_mode = f"n{self.example}"
        self.tasks: dict[str, Model] = {}
        self.facts: set[str] = set()
        self.order = itertools.count()
        self.runner = asyncio.Runner()
        self.pool: Pool = self.run(open_pool(self.dsn, min_size=1, max_size=2, name="model", autocommit=True))
        self.queue = Queue(self.pool)

    def run(self, coroutine: Any) -> Any:
        return self.runner.run(coroutine)

    def teardown(self) -> None:
        try:
            findings = self.run(self._audit())
            self.run(self.pool.close())
        finally:
            self.runner.close()
        assert not findings

    async def _audit(self) -> list[Finding]:
        async with self.pool.connection() as connection:
            return [found async for found in audit(connection) if isinstance(found, Finding)]

    def key(self, number: int) -> str:
        return f"{self.first_mode}:{number}"

    def ready(self, mode: str) -> list[str]:
        waiting = [(-m.rank, m.order, task) for task, m in self.tasks.items() if m.mode == mode and m.state == "ready"]
        return [task for _, _, task in sorted(waiting)]

    @rule(priority=st.sampled_from(Priority), number=st.integers(0, 5))
    def enqueue(self, priority: Priority, number: int) -> None:
        offered = submission(self.first_mode, priority=priority, key=self.key(number))
        receipt = self.run(self.queue.enqueue([offered]))[0]
        assert receipt.duplicate == (receipt.task_id in self.tasks)
        if not receipt.duplicate:
            self.tasks[receipt.task_id] = Model(priority.rank, next(self.order), self.first_mode)

    @rule(target=claims, second=st.booleans(), many=st.integers(1, 3), dies=st.booleans())
    def claim(self, second: bool, many: int, dies: bool) -> Any:
        mode = self.second_mode if second else self.first_mode
        expected = self.ready(mode)[:many]
        taken = self.run(self.queue.claim("w", {mode: many}, timedelta(0) if dies else HELD))
        assert {position.task_id for position in taken} == set(expected)
        for position in taken:
            model = self.tasks[position.task_id]
            model.attempt += 1
            model.state = "doomed" if dies else "running"
            assert position.attempt == model.attempt
            assert position.max_attempts == model.allowed
            assert position.token > max([0, *model.tokens])
            model.token = position.token
            model.tokens.append(position.token)
        return multiple(*taken)

    @rule(
        position=consumes(claims),
        ending=st.sampled_from(
            [Done(), Done("failed"), HandOff("second"), Failed("Boom", "it broke"), GiveUp("no"), Released()]
        )
        | st.just(RetryLater(timedelta(0), "later")),
    )
    def settle(self, position: Position, ending: Ending) -> None:
        if isinstance(ending, HandOff):
            ending = HandOff(self.second_mode)
        if self._settled(position, ending):
            self._ended(self.tasks[position.task_id], ending)

    @rule(position=consumes(claims), number=st.integers(0, 3), late=st.booleans(), expires=st.booleans())
    def park(self, position: Position, number: int, late: bool, expires: bool) -> None:
        within = timedelta(0) if late else HELD
        ending = Park("ci", self.key(number), within, on_deadline="expire" if expires else "resume")
        if self._settled(position, ending):
            model = self.tasks[position.task_id]
            model.key = self.key(number)
            if model.key in self.facts:
                model.state, model.allowed = "ready", model.allowed + 1
            else:
                model.state = ("overdue-expire" if expires else "overdue") if late else "parked"

    def _settled(self, position: Position, ending: Ending) -> bool:
        model = self.tasks[position.task_id]
        # A lease that has ended still holds until a sweep says so.
        holds = model.state in ("running", "doomed") and model.token == position.token
        lost = self.run(self.queue.settle([Settlement(position, ending)]))
        assert (not lost) == holds
        return holds

    def _ended(self, model: Model, ending: Ending) -> None:
        match ending:
            case Done():
                model.state = "ended"
            case HandOff():
                model.state, model.mode, model.hop = "ready", self.second_mode, model.hop + 1
                model.attempt, model.allowed, model.order = 0, AT_ONCE.max_attempts, next(self.order)
            case Failed():
                model.state = "scheduled" if model.attempt < model.allowed else "dead"
            case GiveUp():
                model.state = "dead"
            case Released():
                model.state, model.allowed = "ready", model.allowed + 1
            case RetryLater():
                model.state, model.allowed = "scheduled", model.allowed + 1

    @rule(number=st.integers(0, 3), twice=st.booleans())
    def signal(self, number: int, twice: bool) -> None:
        key = self.key(number)
        for _ in range(2 if twice else 1):
            sent = self.run(self.queue.signal(key, {"n": number}, dedupe_key="fact", sent_by="test"))
            assert sent.accepted == (key not in self.facts)
            if not sent.accepted:
                assert sent.resumed == []
                continue
            self.facts.add(key)
            waiting = ("parked", "overdue", "overdue-expire")
            resumed = [task for task, m in self.tasks.items() if m.state in waiting and m.key == key]
            assert sorted(sent.resumed) == sorted(resumed)
            for task in resumed:
                self.tasks[task].state = "ready"
                self.tasks[task].allowed += 1

    @rule()
    def sweep(self) -> None:
        self.run(self.queue.sweep())
        for model in self.tasks.values():
            match model.state:
                case "scheduled":
                    model.state = "ready"
                case "doomed":
                    model.state = "ready" if model.attempt < model.allowed else "dead"
                case "overdue":
                    model.state, model.allowed = "ready", model.allowed + 1
                case "overdue-expire":
                    model.state = "ended"

    @precondition(lambda self: any(model.state == "dead" for model in self.tasks.values()))
    @rule(data=st.data(), redriven=st.booleans())
    def resolve(self, data: st.DataObject, redriven: bool) -> None:
        task = data.draw(st.sampled_from(sorted(t for t, m in self.tasks.items() if m.state == "dead")))
        self.run(self.queue.resolve_dead(task, "redriven" if redriven else "abandoned", "rob"))
        model = self.tasks[task]
        model.state = "ready" if redriven else "ended"
        if redriven:
            model.hop, model.attempt, model.allowed = model.hop + 1, 0, AT_ONCE.max_attempts
            model.order = next(self.order)

    @invariant()
    def the_queue_is_where_the_model_says(self) -> None:
        places = {
            "ready": "ready", "scheduled": "scheduled", "running": "running", "doomed": "running", "parked": "parked",
            "overdue": "parked", "overdue-expire": "parked",
        }  # fmt: skip
        for task, model in self.tasks.items():
            found = self.run(self.queue.task(task))
            assert found.hop_state == places.get(model.state), (task, model)
            if found.hop_state:
                assert (found.state, found.mode, found.hop, found.attempt) == (
                    "open", model.mode, model.hop, model.attempt,
                )  # fmt: skip
            else:
                assert (found.state == "dead") == (model.state == "dead")


def test_the_queue_agrees_with_its_model_Q2_Q3_Q4_Q5_Q6_Q14_Q15(dsn: str) -> None:
    HopLife.dsn = dsn
    run_state_machine_as_test(
        HopLife,
        settings=settings(
            max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )

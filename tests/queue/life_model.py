"""What the design page says of tasks, in memory: the steps there are, and what each must leave behind.

Nothing here talks to the database. Each method is told of one step that the queue was asked for, and changes what is
expected: where each task is, its record, its spans, the DLQ, and what people are told.

Time is the model's own: whole hours, which pass only when the test says so (and moves the database's times by as many).
A rest after a failure is over at once, every other time that is given is some hours.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Literal

from tracekit import ids
from tracekit.queue import Done, GiveUp, HandOff, Park, Position, RetryLater, Submission
from tracekit.queue.model import Ending, Failed, Released

Said = dict[str, Any]
"""What a row must say among other things."""

LEASE_OVER = "lease_expired"


def hours(length: timedelta) -> int:
    return round(length / timedelta(hours=1))


@dataclass(frozen=True)
class Fact:
    """A signal as it was first sent."""

    dedupe_key: str
    payload: Any
    sent_by: str


@dataclass
class Wait:
    """What a hop is parked on, or came back from."""

    hop: int
    attempt: int
    kind: str
    key: str
    data: Any
    on_deadline: str
    resolution: str | None = None
    fact: Fact | None = None


@dataclass
class Letter:
    """An entry of the DLQ."""

    task_id: str
    trace_id: str
    hop: int
    mode: str
    reason: str
    error_type: str
    error: str
    attempts: int
    review: str | None = None
    resolution: str | None = None
    resolved_by: str | None = None


@dataclass(frozen=True)
class Span:
    name: str
    parent: str | None
    outcome: str | None = None
    error_type: str | None = None


@dataclass
class Task:
    """A task, its place, and what must be found of its past."""

    id: str
    trace_id: str
    parent: str | None
    origin: str
    key: str
    rank: int
    retries: int
    review_of: str | None
    mode: str
    input: Any
    order: int
    """Of its hop's creation: first in, first out inside a priority. Those of one step share a number."""
    ttl: int | None
    """The hour at which its time to live ends."""
    binding: int | None
    """The same for as long as it binds."""
    allowed: int
    persona: str | None = None
    destructive: bool = False
    tags: tuple[str, ...] = ()
    state: str = "ready"
    """As in the queue; or `dead`, or how it ended."""
    hop: int = 1
    attempt: int = 0
    token: int = 0
    worker: str | None = None
    due: int | None = None
    """The hour at which a lease, a rest or a wait is over."""
    wait: Wait | None = None
    waits: list[Wait] = field(default_factory=list)
    lines: list[tuple[str, int, str, int | None, Said]] = field(default_factory=list)
    """(kind, hop, mode, attempt, what it says)"""
    spans: dict[str, Span] = field(default_factory=dict)

    @property
    def live(self) -> bool:
        return self.state in ("ready", "scheduled", "running", "parked")

    def line(self, kind: str, **said: Any) -> Said:
        self.lines.append((kind, self.hop, self.mode, self.attempt, said))
        return said

    def creation(self) -> str:
        return ids.send_span_id(self.id, self.hop)

    def enter(self, hop: int, mode: str, order: int) -> None:
        """A new hop begins, with its attempts unspent."""
        self.state, self.hop, self.mode, self.order = "ready", hop, mode, order
        self.attempt, self.allowed, self.worker, self.due, self.wait = 0, self.retries, None, None, None
        self.spans[self.creation()] = Span(f"send {mode}", ids.root_span_id(self.id))

    def move(self, state: str, *, due: int | None = None, unheld: bool = False) -> None:
        """The same hop is somewhere else; `unheld`: the claim is not held against its attempts."""
        self.state, self.due, self.worker, self.allowed = state, due, None, self.allowed + unheld

    def end(self, outcome: str) -> None:
        self.state, self.worker, self.due = outcome, None, None
        self.line("task.ended", outcome=outcome)
        self.spans[ids.root_span_id(self.id)] = Span(f"task {self.origin}", self.parent, outcome)


class Life:
    """All tasks of one example."""

    def __init__(self) -> None:
        self.clock = 0
        self.tasks: dict[str, Task] = {}
        self.facts: dict[str, list[Fact]] = {}
        self.effects: dict[tuple[str, str], tuple[int, int, bool, Any]] = {}
        """(task, step) to (hop, attempt, whether it is recorded, its result)"""
        self.letters: list[Letter] = []
        self.notices: list[tuple[str, str, bool, Said]] = []
        """(task, kind, urgent, what it says)"""
        self.claims: list[Position] = []
        self._keys: dict[tuple[str, str], str] = {}
        self._unadopted: list[tuple[Letter, list[Said]]] = []
        self._moments = itertools.count(1)
        self.moment = 0

    def begin_step(self) -> None:
        self.moment = next(self._moments)

    # --- what callers do --------------------------------------------------------------------------------------------

    def enqueue(self, offered: Submission) -> tuple[str, bool]:
        """The id that its key stands for from now on, and whether it did before."""
        envelope = offered.envelope
        known = self._keys.setdefault((envelope.origin.value, envelope.idempotency_key), envelope.id)
        if known != envelope.id:
            return known, True
        ttl = self.clock + hours(envelope.ttl) if envelope.ttl else None
        self._accept(
            Task(
                envelope.id, envelope.trace_id, envelope.parent_span_id, envelope.origin.value,
                envelope.idempotency_key, envelope.priority.rank, envelope.retry_policy.max_attempts, None,
                offered.mode, offered.input, self.moment, ttl, ttl, envelope.retry_policy.max_attempts,
            )
        )  # fmt: skip
        return envelope.id, False

    def _accept(self, task: Task) -> None:
        self.tasks[task.id] = task
        task.lines.append(("task.accepted", 1, task.mode, None, {"origin": task.origin}))
        task.enter(1, task.mode, self.moment)

    def signal(self, key: str, fact: Fact) -> tuple[bool, Fact, set[str]]:
        """Whether it is news, the fact as it stands, and the tasks that it wakes."""
        facts = self.facts.setdefault(key, [])
        for known in facts:
            if known.dedupe_key == fact.dedupe_key:
                return False, known, set()
        facts.append(fact)
        woken = [t for t in self.tasks.values() if t.state == "parked" and t.wait and t.wait.key == key]
        for task in woken:
            self._close_wait(task, "signal", fact)
            task.move("ready", unheld=True)
        return True, fact, {task.id for task in woken}

    def resolve(self, task: Task, resolution: Literal["redriven", "abandoned"], by: str) -> None:
        """A dead task is taken up again, or ends; its review task hears of it."""
        letter = next(entry for entry in self.letters if entry.task_id == task.id and entry.resolution is None)
        letter.resolution, letter.resolved_by = resolution, by
        task.spans[ids.review_span_id(task.id, task.hop)] = Span("wait dlq", task.creation())
        dead_hop = task.hop
        if resolution == "redriven":
            task.line("task.redriven", by=by, next={"hop": task.hop + 1, "mode": task.mode})
            task.enter(task.hop + 1, task.mode, self.moment)
            task.binding = None
            for begun in [at for at, effect in self.effects.items() if at[0] == task.id and not effect[2]]:
                del self.effects[begun]
        else:
            task.end("abandoned")
        self.signal(review_key(task.id, dead_hop), Fact("resolution", {"resolution": resolution}, by))

    # --- what workers do --------------------------------------------------------------------------------------------

    def holds(self, at: Position) -> bool:
        """A lease that is over still holds until a sweep says so."""
        task = self.tasks[at.task_id]
        return task.state == "running" and task.token == at.token

    @property
    def held(self) -> list[Position]:
        return [at for at in self.claims if self.holds(at)]

    @property
    def lost(self) -> list[Position]:
        """Claims that are not held any more; those whose hop runs again come last."""
        lost = [at for at in self.claims if not self.holds(at)]
        return sorted(lost, key=lambda at: self.tasks[at.task_id].state == "running")

    def claimable(self, mode: str, *, by_age: bool) -> list[tuple[int, int]]:
        """What orders the claims of a mode, (minus its rank, its order), of each hop that may be taken."""
        return sorted(self._rank(t, by_age) for t in self.tasks.values() if t.mode == mode and self._ready(t))

    def _ready(self, task: Task) -> bool:
        return task.state == "ready" and (task.binding is None or task.binding > self.clock)

    @staticmethod
    def _rank(task: Task, by_age: bool) -> tuple[int, int]:
        return (0 if by_age else -task.rank), task.order

    def claim(
        self, worker: str, free: Mapping[str, int], lease: int, taken: Sequence[Position], *, by_age: bool
    ) -> None:
        """A worker was given `taken`: those and in that state, it must have been."""
        for mode, most in free.items():
            of_mode = [self.tasks[at.task_id] for at in taken if at.mode == mode]
            assert all(map(self._ready, of_mode)), "what was claimed was not ready"
            first = self.claimable(mode, by_age=by_age)[:most]
            assert sorted(self._rank(task, by_age) for task in of_mode) == first, "others came before these"
        assert {at.mode for at in taken} <= free.keys()
        assert len({at.task_id for at in taken}) == len(taken), "a hop was taken twice"
        newest = max((at.token for at in self.claims), default=0)
        for at in taken:
            task = self.tasks[at.task_id]
            task.state, task.attempt, task.token, task.worker = "running", task.attempt + 1, at.token, worker
            task.due = self.clock + lease
            assert at.token > newest, "a token that is not greater than all before it"
            assert (
                at.hop, at.mode, at.attempt, at.max_attempts, at.worker, at.rank, at.persona, at.input, at.destructive,
                at.tags, at.review_of, at.trace_id, at.span_id,
            ) == (
                task.hop, task.mode, task.attempt, task.allowed, worker, task.rank, task.persona, task.input,
                task.destructive, task.tags, task.review_of, task.trace_id,
                ids.attempt_span_id(task.id, task.hop, task.attempt),
            )  # fmt: skip
            self._resumption(at, task.wait)
        assert len({at.token for at in taken}) == len(taken), "a token was given twice"
        self.claims.extend(taken)

    @staticmethod
    def _resumption(at: Position, wait: Wait | None) -> None:
        came = at.resumption
        if came is None or wait is None:
            assert came is None
            assert wait is None
            return
        assert (came.kind, came.key, came.data) == (wait.kind, wait.key, wait.data)
        signal = came.signal and (came.signal.key, came.signal.payload, came.signal.sent_by)
        assert signal == (wait.fact and (wait.key, wait.fact.payload, wait.fact.sent_by))

    def heartbeat(self, leases: Sequence[Position], lease: int) -> set[int]:
        """The tokens that are still held."""
        held = [at for at in leases if self.holds(at)]
        for at in held:
            self.tasks[at.task_id].due = self.clock + lease
        return {at.token for at in held}

    def begin_effect(self, at: Position, step: str, uncertain: str) -> tuple[bool, Any] | str:
        """What the handler is told, or why it is refused."""
        if not self.holds(at):
            return "lost"
        known = self.effects.get((at.task_id, step))
        if known and known[2]:
            return True, known[3]
        if known and uncertain == "raise":
            return "uncertain"
        self.effects[at.task_id, step] = at.hop, at.attempt, False, None
        return False, None

    def record_effect(self, at: Position, step: str, result: Any) -> bool:
        """Whether the lease is still held; then the result is recorded, if it is the first."""
        if not self.holds(at):
            return False
        begun = self.effects.get((at.task_id, step))
        if begun and not begun[2]:
            self.effects[at.task_id, step] = begun[0], begun[1], True, result
            self.tasks[at.task_id].line("effect.recorded", step=step)
        return True

    def undo_effect(self, at: Position, step: str) -> bool:
        """Whether the lease is still held; then it is as though it had never been begun, unless it is recorded."""
        if not self.holds(at):
            return False
        begun = self.effects.get((at.task_id, step))
        if begun and not begun[2]:
            del self.effects[at.task_id, step]
        return True

    def settle(self, at: Position, ending: Ending) -> bool:
        """Whether the lease is still held; then the attempt has ended so."""
        if not self.holds(at):
            return False
        task = self.tasks[at.task_id]
        match ending:
            case Done():
                self._attempt(task, ending.outcome)
                task.end(ending.outcome)
                if ending.notify:
                    self._notice(task, f"task_{ending.outcome}")
            case HandOff():
                self._attempt(task, "handed_off", next={"hop": task.hop + 1, "mode": ending.mode})
                task.enter(task.hop + 1, ending.mode, self.moment)
                task.input, task.persona = ending.input, ending.persona or task.persona
                task.destructive |= ending.destructive
                task.tags = tuple(sorted({*task.tags, *ending.tags}))
                task.binding = None if ending.beyond_ttl else task.binding
            case RetryLater():
                self._attempt(task, "retry_later", reason=ending.reason)
                if ending.extend_ttl and task.binding is not None and task.ttl is not None:
                    task.binding, task.ttl = task.binding + hours(ending.delay), task.ttl + hours(ending.delay)
                task.move("scheduled", due=self.clock + hours(ending.delay), unheld=True)
                task.wait = None
            case GiveUp():
                self._attempt(task, "given_up", "given_up", ending.reason)
                self._die(task, "given_up", "given_up", ending.reason)
            case Failed():
                self._fail(task, "failed", ending.error_type, ending.message)
            case Released():
                self._attempt(task, "released")
                task.move("ready", unheld=True)
            case Park():
                self._park(task, ending)
        return True

    # --- what time does ---------------------------------------------------------------------------------------------

    def sweep(self) -> int:
        """Until nothing is due; how many tasks moved."""
        moved = 0
        while True:
            late = [t for t in self._waiting() if t.binding is not None and t.binding <= self.clock]
            for task in late:
                self._expire(task)
            due = [t for t in self.tasks.values() if t.live and t.due is not None and t.due <= self.clock]
            for task in due:
                self._act(task)
            if not late and not due:
                return moved
            moved += len(late) + len(due)

    def _waiting(self) -> Iterator[Task]:
        return (task for task in self.tasks.values() if task.live and task.state != "running")

    def _act(self, task: Task) -> None:
        if task.state == "running":
            self._fail(task, LEASE_OVER, LEASE_OVER, "the worker died or could not be reached; its lease ended")
        elif task.state == "scheduled":
            task.move("ready")
        elif task.wait and task.wait.on_deadline == "expire":
            self._expire(task)
        else:
            self._close_wait(task, "deadline")
            task.move("ready", unheld=True)

    def _expire(self, task: Task) -> None:
        """It ends unexecuted, and the operator is told."""
        if task.state == "parked":
            self._close_wait(task, "deadline")
        if task.state == "ready":
            span = ids.queue_span_id(task.id, task.hop, task.attempt + 1)
            task.spans[span] = Span(f"wait queue {task.mode}", task.creation())
        task.end("expired")
        self._notice(task, "task_expired")

    # --- ends -------------------------------------------------------------------------------------------------------

    def _attempt(self, task: Task, outcome: str, error_type: str | None = None, error: str = "", **said: Any) -> None:
        """A claim has ended: one line, one span, and the wait before it."""
        if error_type:
            said["error"] = {"type": error_type, "message": error}
        task.line("attempt.ended", outcome=outcome, worker=task.worker, **said)
        at = task.id, task.hop, task.attempt
        task.spans[ids.queue_span_id(*at)] = Span(f"wait queue {task.mode}", task.creation())
        task.spans[ids.attempt_span_id(*at)] = Span(f"process {task.mode}", task.creation(), outcome, error_type)

    def _fail(self, task: Task, outcome: str, error_type: str, message: str) -> None:
        self._attempt(task, outcome, error_type, message)
        if task.attempt >= task.allowed:
            self._die(task, "attempts_exhausted", error_type, message)
        elif error_type == LEASE_OVER:
            task.move("ready")
        else:
            task.move("scheduled", due=self.clock)

    def _die(self, task: Task, reason: str, error_type: str, error: str) -> None:
        task.state, task.worker, task.due = "dead", None, None
        letter = Letter(task.id, task.trace_id, task.hop, task.mode, reason, error_type, error, task.attempt)
        self.letters.append(letter)
        line = task.line("task.dead", reason=reason, error_type=error_type, review_task=None)
        told = self._notice(task, "dead_letter", review_task=None)
        if not task.review_of:
            self._unadopted.append((letter, [line, told]))

    def _park(self, task: Task, ending: Park) -> None:
        self._attempt(task, "parked")
        wait = Wait(task.hop, task.attempt, ending.kind, ending.key, ending.data, ending.on_deadline)
        task.wait = wait
        task.waits.append(wait)
        if known := self.facts.get(ending.key):
            # It came before the wait: the first one decides. Such a wait takes no time and has no span.
            wait.resolution, wait.fact = "signal", known[0]
            task.line("wait.closed", wait=wait.kind, resolution="signal", sent_by=known[0].sent_by)
            task.move("ready", unheld=True)
            return
        task.move("parked", due=self.clock + hours(ending.within))
        if ending.notice:
            self._notice(task, ending.notice.kind, ending.notice.urgent, trace_id=None)

    def _close_wait(self, task: Task, resolution: str, fact: Fact | None = None) -> None:
        wait = task.wait
        assert wait is not None
        wait.resolution, wait.fact = resolution, fact
        task.line(
            "wait.closed", wait=wait.kind, resolution=resolution, sent_by=fact and fact.sent_by, parked_by=wait.attempt
        )
        span = ids.wait_span_id(task.id, wait.hop, wait.attempt)
        task.spans[span] = Span(f"wait {wait.kind}", task.creation())

    def _notice(self, task: Task, kind: str, urgent: bool | None = None, **said: Any) -> Said:
        said = {"trace_id": task.trace_id, **said}
        self.notices.append((task.id, kind, task.rank == 3 if urgent is None else urgent, said))
        return said

    # --- review tasks -----------------------------------------------------------------------------------------------

    @property
    def reviews_due(self) -> list[str]:
        """The idempotency keys of the review tasks that the step must have filed."""
        return [review_key(letter.task_id, letter.hop) for letter, _ in self._unadopted]

    def adopt_reviews(self, filed: Mapping[str, tuple[str, str]], ttl: int, retries: int) -> None:
        """The review tasks as they were found: (id, trace) by idempotency key."""
        for letter, told in self._unadopted:
            key = review_key(letter.task_id, letter.hop)
            letter.review, trace_id = filed[key]
            for said in told:
                said["review_task"] = letter.review
            dead = self.tasks[letter.task_id]
            asked = {"review": {"task_id": dead.id, "hop": letter.hop, "reason": letter.reason}}
            until = self.clock + ttl
            self._accept(
                Task(
                    letter.review, trace_id, None, "observer", key, dead.rank, retries, dead.id, "guardian", asked,
                    self.moment, until, until, retries,
                )
            )  # fmt: skip
        self._unadopted.clear()


def review_key(task_id: str, hop: int) -> str:
    """The key of a review task, and of the signal that tells it what became of the dead one."""
    return f"dlq:{task_id}/{hop}"

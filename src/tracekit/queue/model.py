"""What the queue hands out and takes back.

The life of a hop, which is one row of `tracekit.queue` until its task ends::

              enqueue / hand off / redrive
                        │
                        ▼        due                 claim
    scheduled ────────────────► ready ─────────────────────────► running
        ▲                        ▲ ▲                             │ │ │ │
        │                        │ │  released, or lease expired │ │ │ │
        │                        │ └─────────────────────────────┘ │ │ │
        │  retry, retry later    │ signal or deadline              │ │ │
        └────────────────────────┼─────────────────────────────────┘ │ │
                                 │            park                   │ │
                               parked ◄──────────────────────────────┘ │
                                                                       │
                                       done · hand off · dead ─────────┘

A hop that is `ready`, `scheduled` or `parked` past its task's ttl ends `expired` without being claimed again.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Literal, NamedTuple

from tracekit import ids
from tracekit.envelope import DataTier, Priority, RetryPolicy
from tracekit.errors import TracekitError

Json = Any
"""What `json.dumps` takes."""

MAX_PAYLOAD = 1_048_576
"""Bytes of a hop's input, a signal's payload or an effect's result, as JSON."""

EndState = Literal["done", "failed", "expired", "rejected", "abandoned"]


class QueueError(TracekitError):
    """Something that the queue refuses."""


class LeaseLost(QueueError):
    """The lease is not held any more: somebody else may have the hop, and nothing was written."""

    def __init__(self, task_id: str) -> None:
        super().__init__(f"the lease on task {task_id} is lost", hint="the hop runs elsewhere; stop working on it")


class PayloadRefused(QueueError):
    """A value that cannot be kept: too large, or not JSON that PostgreSQL can hold."""

    exit_code = 2


class TaskNotFound(QueueError):
    """No task has this id or trace id, or a prefix of one fits several."""

    exit_code = 4


@dataclass(frozen=True, slots=True)
class Signal:
    """What ended a wait: a fact that somebody sent."""

    key: str
    payload: Json
    sent_by: str
    received_at: datetime


@dataclass(frozen=True, slots=True)
class Resumption:
    """How a parked hop came back: by a signal, or by its deadline (then `signal` is None)."""

    kind: str
    key: str
    data: Json
    opened_at: datetime
    signal: Signal | None


class Position(NamedTuple):
    """Where a live task is: its row in the queue with what the record needs of task and hop.

    A worker gets it with its claim, the sweep reads the same under the row's lock. A tuple, since one is made for each
    hop: a dataclass takes ten times as long.
    """

    task_id: str
    trace_id: str
    trace_state: str
    origin: str
    surface: str
    requester: str
    intent: str
    rank: int
    destructive: bool
    data_tier: DataTier
    retry_policy: RetryPolicy
    tags: tuple[str, ...]
    review_of: str | None
    task_created_at: datetime
    hop: int
    mode: str
    persona: str | None
    hop_created_at: datetime
    ready_at: datetime
    due_at: datetime | None
    state: str
    expires_at: datetime | None
    attempt: int
    max_attempts: int
    token: int
    worker: str | None
    claimed_at: datetime | None
    wait_attempt: int | None
    input: Json = None
    resumption: Resumption | None = None
    """The wait that the hop is parked on (its `signal` None) or came back from."""

    @property
    def span_id(self) -> str:
        """The span of the current attempt, fixed at its claim."""
        return ids.attempt_span_id(self.task_id, self.hop, self.attempt)

    @property
    def root_span_id(self) -> str:
        """The span of the whole task."""
        return ids.root_span_id(self.task_id)

    @property
    def priority(self) -> Priority:
        """The priority, from its rank."""
        return list(Priority)[self.rank]


# --- what a handler may answer --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class HandOff:
    """The hop is finished and the task goes on in `mode`."""

    mode: str
    input: Json = None
    persona: str | None = None
    """None: the persona stays."""
    destructive: bool = False
    """Raises the task's own flag; False leaves it as it is."""
    tags: tuple[str, ...] = ()
    """Added to the task's."""
    beyond_ttl: bool = False
    """The deed is done: what follows (review, summary) is due even after the ttl."""


@dataclass(frozen=True, slots=True)
class Done:
    """The task ends."""

    outcome: EndState = "done"
    summary: str = ""
    """One or two sentences for a person."""
    notify: bool = False
    """Tell the operator the summary."""


@dataclass(frozen=True, slots=True)
class RetryLater:
    """Not now: the hop comes back after `delay`. Not held against its attempts."""

    delay: timedelta
    reason: str
    extend_ttl: bool = False
    """The task's ttl moves by `delay` too: a person asked for the rest."""


@dataclass(frozen=True, slots=True)
class GiveUp:
    """No attempt will do better: to the DLQ, with the reason."""

    reason: str


@dataclass(frozen=True, slots=True)
class Park:
    """Wait for a signal on `key`, at most until `within` has passed. Not held against the attempts.

    A key names one fact for ever (`approval:<plan>`, `ci:<repository>:<sha>`): a signal that was sent before the wait
    opened ends it at once.
    """

    kind: str
    key: str
    within: timedelta
    data: Json = None
    """What whoever decides must see. Kept with the wait."""
    on_deadline: Literal["resume", "expire"] = "resume"
    """At the deadline the hop comes back without a signal, or the task ends `expired`."""
    notice: Notice | None = None


@dataclass(frozen=True, slots=True)
class Notice:
    """Something that a person must be told, delivered after the commit that says so."""

    kind: str
    title: str
    body: str
    urgent: bool = False
    recipient: str = "operator"
    """`operator` or `requester`: a role that the configuration resolves to people."""
    data: dict[str, Json] = field(default_factory=dict)

    def row(self, task_id: str) -> dict[str, Json]:
        """The columns of the outbox, as JSON data."""
        return {
            "task_id": task_id,
            "recipient": self.recipient,
            "kind": self.kind,
            "urgent": self.urgent,
            "title": self.title,
            "body": self.body,
            "data": self.data,
        }


Outcome = HandOff | Done | RetryLater | GiveUp | Park


@dataclass(frozen=True, slots=True)
class Failed:
    """The handler raised, timed out, or answered nonsense."""

    error_type: str
    message: str


@dataclass(frozen=True, slots=True)
class Released:
    """The worker gave its lease back unfinished (SIGTERM). Not held against the attempts."""


@dataclass(frozen=True, slots=True)
class LeaseExpired:
    """The worker died or could not be reached; only the sweep says so."""


Setback = RetryLater | GiveUp | Park | Failed | Released | LeaseExpired
"""The ends of an attempt after which the hop is not finished."""

Ending = Outcome | Setback
"""How an attempt can end."""


@dataclass(frozen=True, slots=True)
class Settlement:
    """One attempt's end, to be written under its lease's token."""

    position: Position
    ending: Ending
    text: str | None = None
    """What a hand-off gives to the next hop, as JSON, once it has been checked."""


@dataclass(frozen=True, slots=True)
class Wakeup:
    """Something that a sleeping process would like to know: a hop is ready, or (mode None) a task has ended."""

    task_id: str
    trace_id: str
    traceparent: str
    mode: str | None
    rank: int


@dataclass(frozen=True, slots=True)
class Receipt:
    """The answer to an enqueue. Once it is given, the task survives any crash."""

    task_id: str
    trace_id: str
    duplicate: bool
    """The idempotency key was known: this is the first task's receipt."""
    created_at: datetime

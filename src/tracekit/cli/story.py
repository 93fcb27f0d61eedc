"""A task's record as a story: hops, and in each the attempts, the waits and the rests, with their times.

Built from the record's lines and the task as it stands; every time in it is the database's.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Literal

from tracekit.queue.tasks import Event, Task

TOKEN_KINDS = ("input", "cache_read", "cache_write", "output")

Kind = Literal["queue", "work", "wait", "rest", "dlq"]


@dataclass(slots=True)
class Stretch:
    """A stretch of a task's time. `end` None: it goes on."""

    kind: Kind
    start: datetime
    end: datetime | None
    failed: bool = False

    def length(self, now: datetime) -> timedelta:
        """How long it took, or has taken by `now`."""
        return max(timedelta(0), (self.end or now) - self.start)


@dataclass(slots=True)
class Part:
    """One thing in a hop: an attempt, a wait, or the time that it lay dead."""

    kind: Literal["attempt", "wait", "dlq", "queue"]
    name: str
    stretches: list[Stretch] = field(default_factory=list)
    outcome: str | None = None
    """How it ended; None while it goes on."""
    who: str | None = None
    """The worker of an attempt, the sender of what ended a wait."""
    error: tuple[str, str] | None = None
    reason: str | None = None
    until: datetime | None = None
    """When a rest, a wait or a lease ends."""
    effects: list[str] = field(default_factory=list)
    calls: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Calls of models by their keys, each as it is known now."""


@dataclass(slots=True)
class HopStory:
    """One visit to one mode."""

    number: int
    mode: str
    since: datetime
    """When it came into being."""
    persona: str | None = None
    parts: list[Part] = field(default_factory=list)
    over: bool = False

    @property
    def stretches(self) -> list[Stretch]:
        """All of its time, in order."""
        return [stretch for part in self.parts for stretch in part.stretches]


@dataclass(slots=True)
class Totals:
    """Where the time went."""

    total: timedelta
    working: timedelta
    queued: timedelta
    resting: timedelta
    waits: dict[str, timedelta]
    dead: timedelta
    attempts: int
    retries: int
    hops: int
    calls: int = 0
    """Of models."""
    unpriced: int = 0
    tokens: int = 0
    cost: Decimal = Decimal(0)
    """US dollars of the calls that have a price."""

    @property
    def waiting(self) -> timedelta:
        """All that was not work."""
        return self.queued + self.resting + self.dead + sum(self.waits.values(), timedelta(0))


class Story:
    """A task's whole way so far. Lines are added once each, in order; `at` says how it stands."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def add(self, events: Iterable[Event]) -> None:
        """Take in the next lines of the record."""
        self.events.extend(events)

    def at(self, task: Task) -> list[HopStory]:
        """The hops as of this reading of the task: what the record says, and what is going on now."""
        hops: dict[int, HopStory] = {}
        for event in self.events:
            _tell(hops, event)
        _live(hops, task)
        return [hops[number] for number in sorted(hops)]


def totals(hops: list[HopStory], task: Task) -> Totals:
    """Where a task's time went, up to its end or `task.now`."""
    now = task.ended_at or task.now
    spent: dict[Kind, timedelta] = {kind: timedelta(0) for kind in ("queue", "work", "wait", "rest", "dlq")}
    waits: dict[str, timedelta] = {}
    calls: list[dict[str, Any]] = []
    attempts = retries = 0
    for hop in hops:
        tried = [part for part in hop.parts if part.kind == "attempt"]
        attempts += len(tried)
        retries += sum(part.error is not None for part in tried[:-1])
        for part in hop.parts:
            calls += part.calls.values()
            for stretch in part.stretches:
                length = stretch.length(now)
                spent[stretch.kind] += length
                if stretch.kind == "wait":
                    waits[part.name] = waits.get(part.name, timedelta(0)) + length
    return Totals(
        total=now - task.created_at,
        working=spent["work"],
        queued=spent["queue"],
        resting=spent["rest"],
        waits=waits,
        dead=spent["dlq"],
        attempts=attempts,
        retries=retries,
        hops=len(hops),
        calls=len(calls),
        unpriced=sum(call.get("cost") is None for call in calls),
        tokens=sum(call[f"{kind}_tokens"] for call in calls for kind in TOKEN_KINDS),
        cost=sum((Decimal(call["cost"]) for call in calls if call.get("cost") is not None), Decimal(0)),
    )


def _tell(hops: dict[int, HopStory], event: Event) -> None:
    hop = hops.setdefault(event.hop or 1, HopStory(event.hop or 1, event.mode or "?", event.at))
    data = event.data
    match event.kind:
        case "attempt.ended":
            _attempt(hop, event)
            following = data.get("next")
            if following:
                hop.over = True
                hops.setdefault(following["hop"], HopStory(following["hop"], following["mode"], event.at, hop.persona))
        case "wait.closed":
            for part in reversed(hop.parts):
                if part.kind == "wait" and part.outcome is None:
                    part.outcome, part.who = data.get("resolution"), data.get("sent_by")
                    part.stretches[-1].end = event.at
                    break
        case "effect.recorded":
            # It is recorded during the attempt, whose end comes later.
            _part_of(hop, event.attempt).effects.append(str(data.get("step")))
        case "usage.booked":
            # A later report of a call takes the place of the one before.
            calls = _part_of(hop, event.attempt).calls
            if calls.get(data["key"], {"version": 0})["version"] < data["version"]:
                calls[data["key"]] = data
        case "task.dead":
            hop.over = True
            hop.parts.append(Part("dlq", "DLQ", [Stretch("dlq", event.at, None, True)], reason=data.get("review_task")))
        case "task.redriven":
            _leave_dlq(hop, event, "redriven")
            number = data.get("hop", hop.number + 1)
            hops.setdefault(number, HopStory(number, hop.mode, event.at, hop.persona))
        case "task.ended":
            hop.over = True
            if data.get("outcome") == "abandoned":
                _leave_dlq(hop, event, "abandoned")
            if not hop.parts:
                hop.parts.append(Part("queue", "queue", [Stretch("queue", hop.since, event.at)], outcome="expired"))
            for part in hop.parts:
                for stretch in part.stretches:
                    stretch.end = min(stretch.end, event.at) if stretch.end else event.at
        case _:
            pass


def _leave_dlq(hop: HopStory, event: Event, outcome: str) -> None:
    for part in hop.parts:
        if part.kind == "dlq" and part.outcome is None:
            part.outcome, part.who = outcome, event.data.get("by")
            part.stretches[-1].end = event.at


def _attempt(hop: HopStory, event: Event) -> None:
    data = event.data
    hop.persona = data.get("persona") or hop.persona
    part = _part_of(hop, event.attempt)
    ready_at, claimed_at = datetime.fromisoformat(data["ready_at"]), datetime.fromisoformat(data["claimed_at"])
    error = data.get("error")
    part.error = (str(error.get("type")), str(error.get("message"))) if error else None
    part.outcome, part.who, part.reason = data["outcome"], data.get("worker"), data.get("reason")
    _end_rest(hop, part, ready_at)
    part.stretches += [Stretch("queue", ready_at, claimed_at), Stretch("work", claimed_at, event.at, bool(error))]
    if data.get("due_at"):
        part.until = datetime.fromisoformat(data["due_at"])
        part.stretches.append(Stretch("rest", event.at, part.until))
    if wait := data.get("wait"):
        deadline = datetime.fromisoformat(wait["deadline"])
        hop.parts.append(Part("wait", wait["kind"], [Stretch("wait", event.at, None)], until=deadline))


def _part_of(hop: HopStory, attempt: int | None) -> Part:
    name = f"attempt {attempt}"
    for part in hop.parts:
        if part.kind == "attempt" and part.name == name:
            return part
    hop.parts.append(Part("attempt", name))
    return hop.parts[-1]


def _end_rest(hop: HopStory, part: Part, at: datetime) -> None:
    """A rest ends when the hop is ready again, which its next attempt says."""
    before = [earlier for earlier in hop.parts if earlier is not part and earlier.kind == "attempt"]
    if before and before[-1].stretches and before[-1].stretches[-1].kind == "rest":
        before[-1].stretches[-1].end = at


def _live(hops: dict[int, HopStory], task: Task) -> None:
    if task.hop is None or task.mode is None:
        return
    hop = hops.setdefault(task.hop, HopStory(task.hop, task.mode, task.ready_at or task.created_at))
    match task.hop_state:
        case "running":
            assert task.ready_at is not None
            assert task.claimed_at is not None
            part = _part_of(hop, task.attempt)
            _end_rest(hop, part, task.ready_at)
            part.who, part.until = task.worker, task.due_at
            part.stretches = [Stretch("queue", task.ready_at, task.claimed_at), Stretch("work", task.claimed_at, None)]
        case "ready":
            assert task.ready_at is not None
            waiting = Part("queue", "queue", [Stretch("queue", task.ready_at, None)])
            _end_rest(hop, waiting, task.ready_at)
            hop.parts.append(waiting)
        case "scheduled":
            # Its rest was planned when the last attempt ended; it may end later than planned, not sooner.
            for part in reversed(hop.parts):
                if part.stretches and part.stretches[-1].kind == "rest":
                    part.stretches[-1].end = None
                    break
        case _:
            pass

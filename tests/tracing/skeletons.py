"""The spans that a task must have, said by hand from what happened to it, to be held against the view."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from psycopg.rows import dict_row

from tests.tracing.writing import RECEIVED
from tracekit import ids
from tracekit.queue import Position, Queue
from tracekit.queue.tasks import Event
from tracekit.tracing import semconv
from tracekit.tracing.spans import SpanKind, StatusCode

Span = dict[str, Any]


async def written(queue: Queue, task_id: str) -> list[Span]:
    """The spans of a task in the order of shipping, without the numbers of their rows."""
    async with queue.connection() as connection, connection.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(
            "SELECT trace_id, span_id, parent_span_id, task_id, source, name, kind, start_time, end_time, status,"
            " status_message, attributes, links, events FROM tracekit.spans WHERE task_id = %s"
            " ORDER BY xid, seq, start_time, span_id",
            [task_id],
        )
        return await cursor.fetchall()


def by_id(spans: Sequence[Span]) -> dict[str, Span]:
    """By their ids, of which each is there once."""
    found = {span["span_id"]: span for span in spans}
    assert len(found) == len(spans), "an id is there twice"
    return found


@dataclass
class Skeleton:
    """What is expected of a task. Each method adds one span."""

    task_id: str
    trace_id: str
    spans: list[Span] = field(default_factory=list)

    def _add(
        self,
        span_id: str,
        parent: str | None,
        name: str,
        kind: SpanKind,
        times: tuple[datetime, datetime],
        attributes: Mapping[str, Any],
        links: Sequence[tuple[str, str]] = (),
        status: tuple[StatusCode, str] = (StatusCode.UNSET, ""),
    ) -> None:
        self.spans.append(
            {
                "trace_id": self.trace_id,
                "span_id": span_id,
                "parent_span_id": parent,
                "task_id": self.task_id,
                "source": "skeleton",
                "name": name,
                "kind": kind,
                "start_time": times[0],
                "end_time": times[1],
                "status": status[0],
                "status_message": status[1],
                "attributes": {name: value for name, value in attributes.items() if value is not None},
                "links": [link(self.trace_id, span, why) for span, why in links],
                "events": [],
            }
        )

    def send(self, hop: int, mode: str, at: datetime, handed_off_by: tuple[int, int] | None = None) -> None:
        """A hop's creation, by the attempt (hop, number) that handed on, or whose hop was redriven."""
        self._add(
            ids.send_span_id(self.task_id, hop),
            ids.root_span_id(self.task_id),
            f"send {mode}",
            SpanKind.PRODUCER,
            (at, at),
            {
                semconv.MESSAGING_SYSTEM: semconv.SYSTEM,
                semconv.MESSAGING_OPERATION: "send",
                semconv.MESSAGING_OPERATION_TYPE: "send",
                semconv.MESSAGING_DESTINATION: mode,
                semconv.MESSAGING_MESSAGE_ID: f"{self.task_id}/{hop}",
                semconv.TASK_ID: self.task_id,
                semconv.HOP: hop,
                semconv.MODE: mode,
            },
            [(ids.attempt_span_id(self.task_id, *handed_off_by), "handed_off_by")] if handed_off_by else [],
        )

    def receive(self, began: datetime, accepted: datetime) -> None:
        """The request that brought the task, which is `RECEIVED`."""
        self._add(
            ids.receive_span_id(self.task_id),
            ids.root_span_id(self.task_id),
            RECEIVED.name,
            SpanKind.SERVER,
            (began, accepted),
            {semconv.TASK_ID: self.task_id, **RECEIVED.attributes},
        )

    def queued(self, hop: int, attempt: int, mode: str, persona: str | None, start: datetime, end: datetime) -> None:
        """The wait for a worker."""
        self._wait(
            ids.queue_span_id(self.task_id, hop, attempt),
            f"wait queue {mode}",
            (hop, mode, persona),
            (start, end),
            {semconv.WAIT_KIND: "queue", semconv.ATTEMPT: attempt},
        )

    def attempt(self, at: Position, ended: datetime, outcome: str, error: str | None = None, message: str = "") -> None:
        """A claim as its worker got it, and the wait that it ended."""
        assert at.claimed_at is not None
        self.queued(at.hop, at.attempt, at.mode, at.persona, at.ready_at, at.claimed_at)
        send = ids.send_span_id(self.task_id, at.hop)
        links = [(send, "creation")]
        if at.attempt > 1:
            links.append((ids.attempt_span_id(self.task_id, at.hop, at.attempt - 1), "retry_of"))
        self._add(
            ids.attempt_span_id(self.task_id, at.hop, at.attempt),
            send,
            f"process {at.mode}",
            SpanKind.CONSUMER,
            (at.claimed_at, ended),
            {
                semconv.TASK_ID: self.task_id,
                semconv.HOP: at.hop,
                semconv.MODE: at.mode,
                semconv.PERSONA: at.persona,
                semconv.ATTEMPT: at.attempt,
                semconv.MESSAGING_SYSTEM: semconv.SYSTEM,
                semconv.MESSAGING_OPERATION: "process",
                semconv.MESSAGING_OPERATION_TYPE: "process",
                semconv.MESSAGING_DESTINATION: at.mode,
                semconv.MESSAGING_MESSAGE_ID: f"{self.task_id}/{at.hop}",
                semconv.MESSAGING_CLIENT_ID: at.worker,
                semconv.OUTCOME: outcome,
                semconv.ERROR_TYPE: error,
            },
            links,
            (StatusCode.ERROR, message) if error else (StatusCode.UNSET, ""),
        )

    def waited(self, at: Position, kind: str, resolution: str, start: datetime, end: datetime) -> None:
        """The wait that the attempt `at` parked its hop on."""
        self._wait(
            ids.wait_span_id(self.task_id, at.hop, at.attempt),
            f"wait {kind}",
            (at.hop, at.mode, at.persona),
            (start, end),
            {semconv.WAIT_KIND: kind, semconv.WAIT_RESOLUTION: resolution},
            [(ids.attempt_span_id(self.task_id, at.hop, at.attempt), "parked_by")],
        )

    def dead(self, at: Position, resolution: str, start: datetime, end: datetime) -> None:
        """The time in the DLQ, which `at` was the last attempt before."""
        self._wait(
            ids.review_span_id(self.task_id, at.hop),
            "wait dlq",
            (at.hop, at.mode, at.persona),
            (start, end),
            {semconv.WAIT_KIND: "dlq", semconv.WAIT_RESOLUTION: resolution},
            [(ids.attempt_span_id(self.task_id, at.hop, at.attempt), "parked_by")],
        )

    def root(
        self,
        start: datetime,
        end: datetime,
        outcome: str,
        status: StatusCode,
        parent: str | None = None,
        **told: str,
    ) -> None:
        """The whole task. `told`: what it has other than a test's usual task."""
        usual = {
            semconv.ORIGIN: "manual",
            semconv.SURFACE: "test",
            semconv.REQUESTER: "rob",
            semconv.PRIORITY: "normal",
            semconv.DATA_TIER: "internal",
        }
        other = {f"tracekit.{name}": value for name, value in told.items()}
        self._add(
            ids.root_span_id(self.task_id),
            parent,
            f"task {other.get(semconv.ORIGIN, 'manual')}",
            SpanKind.INTERNAL,
            (start, end),
            {semconv.TASK_ID: self.task_id, **usual, **other, semconv.OUTCOME: outcome},
            status=(status, ""),
        )

    def _wait(
        self,
        span_id: str,
        name: str,
        where: tuple[int, str, str | None],
        times: tuple[datetime, datetime],
        attributes: Mapping[str, Any],
        links: Sequence[tuple[str, str]] = (),
    ) -> None:
        hop, mode, persona = where
        self._add(
            span_id,
            ids.send_span_id(self.task_id, hop),
            name,
            SpanKind.INTERNAL,
            times,
            {
                semconv.TASK_ID: self.task_id,
                semconv.HOP: hop,
                semconv.MODE: mode,
                semconv.PERSONA: persona,
                **attributes,
            },
            links,
        )


def link(trace_id: str, span_id: str, why: str) -> dict[str, Any]:
    return {"trace_id": trace_id, "span_id": span_id, "attributes": {semconv.LINK: why}}


@dataclass(frozen=True)
class Times:
    """When the lines of a task's record were written, in order."""

    lines: list[tuple[str, datetime]]

    @classmethod
    def of(cls, events: Sequence[Event]) -> Times:
        return cls([(event.kind, event.at) for event in events])

    def __call__(self, kind: str, number: int = 0) -> datetime:
        """Of the line of that kind and number, from 0."""
        return [at for found, at in self.lines if found == kind][number]

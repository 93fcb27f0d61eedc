"""What a worker counts and measures of its hops, at a price that a hop of a millisecond can bear."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import Any

from tracekit import instruments
from tracekit.envelope import Priority
from tracekit.metrics import begin
from tracekit.queue import Position
from tracekit.workers.approvals import KIND, PAST, read_verdict

EXEMPLAR_EVERY = 0.1
"""Seconds between exemplars of one series. A panel shows one a bucket and scrape, and making one costs ten times as
much as counting.
"""


class Meters:
    """The worker's instruments. Looking a series up by its labels costs more than adding to it: each is kept."""

    def __init__(self, modes: Sequence[str], outcomes: Sequence[str]) -> None:
        begin(instruments.ATTEMPTS, modes, outcomes)
        for counter in (instruments.RETRIES, instruments.LEASES_LOST):
            begin(counter, modes)
        self._in_flight = cache(instruments.IN_FLIGHT.labels)
        self._retries = cache(instruments.RETRIES.labels)
        self._attempts = cache(instruments.ATTEMPTS.labels)
        self._leases_lost = cache(instruments.LEASES_LOST.labels)
        self._tasks_ended = cache(instruments.TASKS_ENDED.labels)
        self._waits = cache(lambda mode: _Sampled(instruments.HOP_QUEUE_WAIT.labels(mode)))
        self._durations = cache(lambda mode, outcome: _Sampled(instruments.HOP_DURATION.labels(mode, outcome)))

    def notified(self, seconds: float) -> None:
        """A claim that a NOTIFY brought about came back with something."""
        instruments.NOTIFY_TO_CLAIM.observe(seconds)

    def claimed(self, positions: Sequence[Position]) -> None:
        """Hops begin."""
        for mode, count in Counter([position.mode for position in positions]).items():
            self._in_flight(mode).inc(count)
        for position in positions:
            if position.claimed_at:
                waited = (position.claimed_at - position.ready_at).total_seconds()
                self._waits(position.mode).observe(max(0.0, waited), position)
            if position.attempt > 1:
                self._retries(position.mode).inc()
                # The first claim after the wait: there is one, wherever the decision came from.
                if position.wait_attempt == position.attempt - 1:
                    _decided(position)

    def ended(self, ends: Sequence[tuple[Position, str, float]]) -> None:
        """The ends of hops are written, or their leases lost: each with its outcome and the seconds that it took."""
        for (mode, outcome), count in Counter([(position.mode, outcome) for position, outcome, _ in ends]).items():
            self._in_flight(mode).dec(count)
            self._attempts(mode, outcome).inc(count)
        for position, outcome, seconds in ends:
            self._durations(position.mode, outcome).observe(seconds, position)

    def task_ended(self, position: Position, state: str) -> None:
        """The end of a task is written."""
        self._tasks_ended(state, "true" if position.destructive else "false").inc()

    def lost(self, position: Position) -> None:
        """A lease is lost."""
        self._leases_lost(position.mode).inc()


def _decided(position: Position) -> None:
    wait = position.resumption
    if wait is None or wait.kind != KIND:
        return
    verdict = read_verdict(wait.signal.payload) if wait.signal else None
    instruments.approval_is_over(
        PAST[verdict.decision] if verdict else "cancelled",
        position.priority is Priority.URGENT,
        (position.ready_at - wait.opened_at).total_seconds(),
        instruments.exemplar(position.trace_id, position.span_id),
    )


class _Sampled:
    """A histogram's series that gets an exemplar now and then."""

    def __init__(self, series: Any) -> None:
        self._series = series
        self._last = 0.0

    def observe(self, seconds: float, position: Position) -> None:
        now = time.monotonic()
        if now - self._last < EXEMPLAR_EVERY:
            self._series.observe(seconds)
            return
        self._last = now
        self._series.observe(seconds, instruments.exemplar(position.trace_id, position.span_id))

"""The instruments of this process, made from the catalogue: what counts, and what `/metrics` shows.

Process-wide, as a process is what Prometheus scrapes. What is read from the database is in `DATABASE`, a snapshot that
`tracekit.workers.depths` renews: no scrape waits for PostgreSQL.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from tracekit import metrics

REGISTRY = CollectorRegistry()

ATTEMPTS = metrics.ATTEMPTS.counter(REGISTRY)
RETRIES = metrics.RETRIES.counter(REGISTRY)
LEASES_LOST = metrics.LEASES_LOST.counter(REGISTRY)
TASKS_ENDED = metrics.TASKS_ENDED.counter(REGISTRY)
APPROVALS_DECIDED = metrics.APPROVALS_DECIDED.counter(REGISTRY)
APPROVAL_WAIT = metrics.APPROVAL_WAIT.histogram(REGISTRY)
HOP_DURATION = metrics.HOP_DURATION.histogram(REGISTRY)
HOP_QUEUE_WAIT = metrics.HOP_QUEUE_WAIT.histogram(REGISTRY)
NOTIFY_TO_CLAIM = metrics.NOTIFY_TO_CLAIM.histogram(REGISTRY)
LISTENER_STATE = metrics.LISTENER_STATE.gauge(REGISTRY)
IN_FLIGHT = metrics.IN_FLIGHT.gauge(REGISTRY)
SWEPT = metrics.SWEPT.counter(REGISTRY)
INGRESS_TASKS = metrics.INGRESS_TASKS.counter(REGISTRY)
INGRESS_REFUSALS = metrics.INGRESS_REFUSALS.counter(REGISTRY)
SPAN_EXPORT_FAILURES = metrics.SPAN_EXPORT_FAILURES.counter(REGISTRY)
NOTIFICATIONS = metrics.NOTIFICATIONS.counter(REGISTRY)
NOTIFICATIONS_GIVEN_UP = metrics.NOTIFICATIONS_GIVEN_UP.counter(REGISTRY)

LISTENER_STATES = ("starting", "listening", "polling")


def listener_is(state: str) -> None:
    """Show the state of the queue's listener: 1 for it, 0 for the others."""
    for known in {*LISTENER_STATES, state}:
        LISTENER_STATE.labels(known).set(known == state)


def approval_is_over(decision: str, urgent: bool, seconds: float, exemplar: dict[str, str] | None = None) -> None:
    """Count a round of asking a person: what came of it, how long after the asking, and the trace that it was in."""
    APPROVALS_DECIDED.labels(decision, str(urgent).lower()).inc(exemplar=exemplar)
    APPROVAL_WAIT.labels(decision).observe(max(0.0, seconds), exemplar)


def exemplar(trace_id: str, span_id: str) -> dict[str, str]:
    """The exemplar that leads from a bucket to a trace. Names and values have 63 of the 128 characters allowed."""
    return {"trace_id": trace_id, "span_id": span_id}


# --- what is read from the database -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Reading:
    """One look at the database: `(metric name, label values, value)`, all of one moment."""

    rows: Sequence[tuple[str, Sequence[str], float]]
    took: float = 0.0
    """Seconds that the look cost."""
    at: float = field(default_factory=time.monotonic)

    @property
    def depth(self) -> int:
        """Open hops."""
        return int(sum(value for name, _, value in self.rows if name == metrics.HOPS.name))


class DatabaseGauges(Collector):
    """Shows the last reading. While the database is away its gauges are absent: an old number would be a lie."""

    def __init__(self) -> None:
        self._up = False
        self._reading: Reading | None = None
        self.accepted_since = 0
        """Tasks that this process enqueued since the last look."""

    @property
    def reading(self) -> Reading | None:
        """The last look, None while the database is away."""
        return self._reading

    @property
    def depth(self) -> int | None:
        """Open hops at the last look and what this process accepted since; None while that is not known."""
        return None if self._reading is None else self._reading.depth + self.accepted_since

    def show(self, reading: Reading, *, counted: int = 0) -> None:
        """Take a new look over, which surely has `counted` of what was accepted since the last one."""
        self._up, self._reading = True, reading
        self.accepted_since = max(0, self.accepted_since - counted)

    def away(self) -> None:
        """The database did not answer."""
        self._up, self._reading, self.accepted_since = False, None, 0

    def collect(self) -> Iterator[Family]:
        """The families, in the order of the catalogue."""
        yield GaugeMetricFamily(metrics.DATABASE_UP.name, metrics.DATABASE_UP.help, value=float(self._up))
        rows = self._reading.rows if self._reading else ()
        for metric in metrics.CATALOGUE:
            if metric.source == "database":
                kind = CounterMetricFamily if metric.type == "counter" else GaugeMetricFamily
                family = kind(metric.name, metric.help, labels=metric.labels)
                for name, labels, value in rows:
                    if name == metric.name:
                        family.add_metric(labels, value)
                yield family


DATABASE = DatabaseGauges()


# --- what a scrape gets -----------------------------------------------------------------------------------------------


class _Together(Collector):
    """Several collectors as one, without the `_created` series, which the catalogue does not name."""

    def __init__(self, collectors: Iterable[Collector]) -> None:
        self._collectors = tuple(collectors)

    def collect(self) -> Iterator[Family]:
        for collector in self._collectors:
            for family in collector.collect():
                family.samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
                yield family


TOGETHER: Collector = _Together((REGISTRY, DATABASE))
"""All that this process shows."""


def exposition(accept: str, collectors: Iterable[Collector] = (REGISTRY, DATABASE)) -> tuple[bytes, str]:
    """What Prometheus reads, and its content type: OpenMetrics, which has the exemplars, where `accept` asks for it."""
    encode, content_type = choose_encoder(accept)
    return encode(_Together(collectors)), content_type

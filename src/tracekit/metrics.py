"""The metric catalogue: every name that tracekit emits, once (D6).

Instruments, dashboards and alert rules take their names from here. Names and units follow Prometheus's conventions
(https://prometheus.io/docs/practices/naming/): a base unit as suffix, `_total` on counters. Label values are bounded:
modes, states and outcomes, never ids or text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.registry import CollectorRegistry

SECONDS = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    30.0,
    60.0,
    300.0,
    900.0,
    3600.0,
)


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric family. `name` is what Prometheus shows, with `_total` for a counter."""

    name: str
    type: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    unit: Literal["", "seconds"] = ""
    source: Literal["process", "database"] = "process"
    """`process`: counted where it happens. `database`: read from PostgreSQL, the same in every process."""

    def counter(self, registry: CollectorRegistry) -> Counter:
        """The counter itself."""
        return Counter(self.name, self.help, self.labels, registry=registry)

    def gauge(self, registry: CollectorRegistry) -> Gauge:
        """The gauge itself."""
        return Gauge(self.name, self.help, self.labels, registry=registry)

    def histogram(self, registry: CollectorRegistry) -> Histogram:
        """The histogram itself, in seconds from 1 ms to 1 h."""
        return Histogram(self.name, self.help, self.labels, registry=registry, buckets=SECONDS)


HOPS = Metric("tracekit_hops", "gauge", "Hops in the queue.", ("mode", "state"), source="database")
HOP_OLDEST_AGE = Metric(
    "tracekit_hop_oldest_age_seconds",
    "gauge",
    "Age of the oldest hop in the queue.",
    ("mode", "state"),
    "seconds",
    "database",
)
DEAD_LETTERS = Metric("tracekit_dead_letters", "gauge", "Unresolved entries of the DLQ.", ("mode",), source="database")
DEAD_LETTER_OLDEST_AGE = Metric(
    "tracekit_dead_letter_oldest_age_seconds",
    "gauge",
    "Age of the oldest unresolved DLQ entry.",
    (),
    "seconds",
    "database",
)
APPROVALS_PENDING = Metric(
    "tracekit_approvals_pending", "gauge", "Plans that wait for a person.", ("urgent",), source="database"
)
APPROVAL_NEXT_DEADLINE = Metric(
    "tracekit_approval_next_deadline_seconds",
    "gauge",
    "Time until the next approval expires; absent when none is pending.",
    (),
    "seconds",
    "database",
)
SPANS_UNSHIPPED = Metric(
    "tracekit_spans_unshipped", "gauge", "Spans not yet sent to the collector.", (), source="database"
)
SPAN_OLDEST_UNSHIPPED_AGE = Metric(
    "tracekit_span_oldest_unshipped_age_seconds",
    "gauge",
    "Age of the oldest span not yet sent.",
    (),
    "seconds",
    "database",
)
NOTIFICATIONS_UNDELIVERED = Metric(
    "tracekit_notifications_undelivered", "gauge", "Notifications that nobody has received yet.", (), source="database"
)
WORKERS = Metric("tracekit_workers", "gauge", "Workers seen within two minutes.", ("mode",), source="database")
DATABASE_UP = Metric("tracekit_database_up", "gauge", "1 if the last look at PostgreSQL succeeded, else 0.")

ATTEMPTS = Metric("tracekit_attempts_total", "counter", "Attempts that ended.", ("mode", "outcome"))
RETRIES = Metric("tracekit_retries_total", "counter", "Attempts after a hop's first.", ("mode",))
LEASES_LOST = Metric("tracekit_leases_lost_total", "counter", "Leases that ended under a living worker.", ("mode",))
HOP_DURATION = Metric(
    "tracekit_hop_duration_seconds", "histogram", "Time a handler took.", ("mode", "outcome"), "seconds"
)
HOP_QUEUE_WAIT = Metric(
    "tracekit_hop_queue_wait_seconds", "histogram", "Time from ready to claimed.", ("mode",), "seconds"
)
NOTIFY_TO_CLAIM = Metric(
    "tracekit_notify_to_claim_seconds",
    "histogram",
    "Time from a NOTIFY's arrival to the claim it led to.",
    (),
    "seconds",
)
LISTENER_STATE = Metric("tracekit_listener_state", "gauge", "1 for the state the listener is in.", ("state",))
IN_FLIGHT = Metric("tracekit_hops_in_flight", "gauge", "Hops that this process is working on.", ("mode",))
SWEPT = Metric("tracekit_swept_total", "counter", "Tasks that a sweep of this process moved.")
INGRESS_TASKS = Metric(
    "tracekit_ingress_tasks_total", "counter", "Tasks accepted at ingress.", ("surface", "duplicate")
)
INGRESS_REFUSALS = Metric(
    "tracekit_ingress_refusals_total", "counter", "Requests refused at ingress.", ("surface", "reason")
)
SPAN_EXPORT_FAILURES = Metric(
    "tracekit_span_export_failures_total", "counter", "Batches of spans that a collector did not take."
)
NOTIFICATIONS = Metric("tracekit_notifications_total", "counter", "Tries to tell a person.", ("channel", "outcome"))

CATALOGUE: tuple[Metric, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Metric))
"""All of them."""

"""The metric catalogue: every name that tracekit emits, once (D6).

Instruments, dashboards and alert rules take their names from here. Names and units follow Prometheus's conventions
(https://prometheus.io/docs/practices/naming/): a base unit as suffix, `_total` on counters. Label values are bounded:
modes, states and outcomes, never ids or text.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
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


PEOPLES_SECONDS = (1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14_400.0, 43_200.0, 86_400.0, 259_200.0, 604_800.0)
"""What a person takes: up to a week."""


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
    known: tuple[tuple[str, ...], ...] = ()
    """Of a counter or a histogram of the process, all values of each label, where they are known before anything is
    counted.
    """
    buckets: tuple[float, ...] = SECONDS
    """Of a histogram."""

    def counter(self, registry: CollectorRegistry) -> Counter:
        """The counter itself. Series that are known are there from the start."""
        counter = Counter(self.name, self.help, self.labels, registry=registry)
        if self.known:
            begin(counter, *self.known)
        return counter

    def gauge(self, registry: CollectorRegistry) -> Gauge:
        """The gauge itself."""
        return Gauge(self.name, self.help, self.labels, registry=registry)

    def histogram(self, registry: CollectorRegistry) -> Histogram:
        """The histogram itself. Series that are known are there from the start."""
        histogram = Histogram(self.name, self.help, self.labels, registry=registry, buckets=self.buckets)
        if self.known:
            begin(histogram, *self.known)
        return histogram


def begin(counter: Counter | Histogram, *values: Iterable[str]) -> None:
    """Show the series of all combinations of these label values at 0: `increase()` does not see the first event of a
    series that begins with it.
    """
    for labels in product(*values):
        counter.labels(*labels)


HOPS = Metric("tracekit_hops", "gauge", "Hops in the queue.", ("mode", "state", "priority"), source="database")
HOP_OLDEST_AGE = Metric(
    "tracekit_hop_oldest_age_seconds",
    "gauge",
    "Age of the oldest hop in the queue.",
    ("mode", "state", "priority"),
    "seconds",
    "database",
)
DEAD_LETTERS = Metric(
    "tracekit_dead_letters", "gauge", "Unresolved entries of the DLQ.", ("mode", "reason"), source="database"
)
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
    "Time until the next approval expires; absent when none that is pending will.",
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
NOTIFICATION_OLDEST_UNDELIVERED_AGE = Metric(
    "tracekit_notification_oldest_undelivered_age_seconds",
    "gauge",
    "Age of the oldest notification that is still to be delivered.",
    (),
    "seconds",
    "database",
)
TABLE_BYTES = Metric(
    "tracekit_table_bytes", "gauge", "Size of a table with its indexes.", ("table",), source="database"
)
TABLE_DEAD_ROWS = Metric(
    "tracekit_table_dead_rows",
    "gauge",
    "Rows of a table that vacuum has yet to take away.",
    ("table",),
    source="database",
)
WORKERS = Metric("tracekit_workers", "gauge", "Workers seen within two minutes.", ("mode",), source="database")
_SPENDER = ("mode", "persona", "requester", "provider", "model", "synthetic")

MODEL_CALLS = Metric("tracekit_model_calls_total", "counter", "Calls of models.", _SPENDER, source="database")
MODEL_REQUESTS = Metric(
    "tracekit_model_requests_total", "counter", "Requests that calls of models came to.", _SPENDER, source="database"
)
TOKENS = Metric(
    "tracekit_tokens_total",
    "counter",
    "Tokens of models, each in one kind: input, cache_read, cache_write or output.",
    (*_SPENDER, "kind"),
    source="database",
)
REASONING_TOKENS = Metric(
    "tracekit_reasoning_tokens_total",
    "counter",
    "Tokens of reasoning, which are counted as output too.",
    _SPENDER,
    source="database",
)
COST = Metric(
    "tracekit_cost_usd_total", "counter", "US dollars that calls with a price came to.", _SPENDER, source="database"
)
UNPRICED_CALLS = Metric(
    "tracekit_unpriced_calls_total", "counter", "Calls whose price nobody knew.", _SPENDER, source="database"
)
TOKENS_LOWERED = Metric(
    "tracekit_tokens_lowered_total",
    "counter",
    "Tokens by which later reports corrected tracekit_tokens_total downwards.",
    (*_SPENDER, "kind"),
    source="database",
)
COST_LOWERED = Metric(
    "tracekit_cost_lowered_usd_total",
    "counter",
    "US dollars by which later reports and prices corrected tracekit_cost_usd_total downwards.",
    _SPENDER,
    source="database",
)
CALLS_PRICED_LATER = Metric(
    "tracekit_unpriced_calls_lowered_total",
    "counter",
    "Calls of tracekit_unpriced_calls_total that got a price later.",
    _SPENDER,
    source="database",
)
MODEL_CALLS_LOWERED = Metric(
    "tracekit_model_calls_lowered_total",
    "counter",
    "Calls of tracekit_model_calls_total that later reports said to be another model's.",
    _SPENDER,
    source="database",
)
MODEL_REQUESTS_LOWERED = Metric(
    "tracekit_model_requests_lowered_total",
    "counter",
    "Requests by which later reports corrected tracekit_model_requests_total downwards.",
    _SPENDER,
    source="database",
)
REASONING_TOKENS_LOWERED = Metric(
    "tracekit_reasoning_tokens_lowered_total",
    "counter",
    "Tokens by which later reports corrected tracekit_reasoning_tokens_total downwards.",
    _SPENDER,
    source="database",
)
DATABASE_UP = Metric("tracekit_database_up", "gauge", "1 if the last look at PostgreSQL succeeded, else 0.")

_BUDGET = ("scope", "subject", "period", "unit")

BUDGET_AMOUNT = Metric(
    "tracekit_budget_amount", "gauge", "What may be spent in a budget's day or week.", _BUDGET, source="database"
)
BUDGET_SPENT = Metric(
    "tracekit_budget_spent",
    "gauge",
    "What is spent of a budget in its present day or week.",
    _BUDGET,
    source="database",
)
BUDGET_RESERVED = Metric(
    "tracekit_budget_reserved", "gauge", "What calls under way may still take of a budget.", _BUDGET, source="database"
)
BUDGET_REMAINING = Metric(
    "tracekit_budget_remaining", "gauge", "What is left of a budget for calls to come.", _BUDGET, source="database"
)
BUDGET_USED_UP = Metric(
    "tracekit_budget_used_up",
    "gauge",
    "1 once a call of this day or week found no room in a budget, or all of it is spent; else 0.",
    _BUDGET,
    source="database",
)
BUDGET_PERIOD_ELAPSED = Metric(
    "tracekit_budget_period_elapsed_ratio",
    "gauge",
    "The share of a budget's present day or week that has passed, 0 to 1.",
    _BUDGET,
    source="database",
)
ATTEMPTS = Metric("tracekit_attempts_total", "counter", "Attempts that ended.", ("mode", "outcome"))
RETRIES = Metric("tracekit_retries_total", "counter", "Attempts after a hop's first.", ("mode",))
LEASES_LOST = Metric("tracekit_leases_lost_total", "counter", "Leases that ended under a living worker.", ("mode",))
_YES_OR_NO = ("true", "false")
_DECISIONS = ("approved", "rejected", "deferred", "edited", "expired", "cancelled")

TASKS_ENDED = Metric(
    "tracekit_tasks_ended_total",
    "counter",
    "Tasks that this process ended.",
    ("state", "destructive"),
    known=(("done", "failed", "expired", "rejected", "abandoned"), _YES_OR_NO),
)
APPROVALS_DECIDED = Metric(
    "tracekit_approvals_decided_total",
    "counter",
    "Rounds of asking a person that are over: by a decision that this process took up, or by its sweep.",
    ("decision", "urgent"),
    known=(_DECISIONS, _YES_OR_NO),
)
APPROVAL_WAIT = Metric(
    "tracekit_approval_wait_seconds",
    "histogram",
    "Time from asking a person to the decision.",
    ("decision",),
    "seconds",
    known=(_DECISIONS,),
    buckets=PEOPLES_SECONDS,
)
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
NOTIFICATIONS = Metric(
    "tracekit_notifications_total",
    "counter",
    "Tries to tell a person.",
    ("channel", "outcome"),
    known=(("ntfy", "pushover", "log"), ("delivered", "failed")),
)
NOTIFICATIONS_GIVEN_UP = Metric(
    "tracekit_notifications_given_up_total", "counter", "Notifications that this process tried for the last time."
)

CATALOGUE: tuple[Metric, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Metric))
"""All of them."""

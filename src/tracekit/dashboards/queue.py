"""The queue: depth and age, claims, the DLQ, what goes out of it, and the tables beneath."""

from __future__ import annotations

from grafana_foundation_sdk.models import dashboard as models

from tracekit import metrics
from tracekit.dashboards.frame import TASK_COLUMNS, Dashboard, drilldown
from tracekit.dashboards.panels import Column, Panel, number, rows, time_series
from tracekit.dashboards.sources import (
    AWAY,
    MODE,
    POSTGRES,
    PROMETHEUS,
    RATE,
    chosen,
    or_zero,
    per_minute,
    promql,
    promql_now,
    quantile,
    series,
    shared,
    sql,
)
from tracekit.dashboards.variables import job, mode
from tracekit.promql import max_by, min_by, rate, sum_by


def build() -> models.Dashboard:
    """The dashboard."""
    board = Dashboard(
        "tracekit-queue",
        "tracekit · Queue",
        "Whether work gets done: depth and age by mode and priority, claims, leases, the DLQ, the outbox, the tables.",
        sources=(PROMETHEUS, POSTGRES),
        variables=(job(), mode()),
        since="now-6h",
        refresh="30s",
    )
    board.row("Depth", *_depth())
    board.row("Claims", *_claims())
    board.row("DLQ", *_dead())
    board.row("In and out", *_around())
    board.row("PostgreSQL", *_storage())
    return board.build()


def _depth() -> tuple[Panel, ...]:
    empty = f"the queue is empty; or {AWAY}"
    hops = shared(metrics.HOPS, mode=MODE)
    ready = shared(metrics.HOPS, mode=MODE, state="ready")
    age = shared(metrics.HOP_OLDEST_AGE, mode=MODE, state="ready")
    return (
        time_series(
            "Waiting by mode",
            "Hops that wait for a worker.",
            [promql(sum_by(ready, "mode"), "{{mode}}")],
            empty=empty,
            unit="short",
            width=8,
            stacked=True,
        ),
        time_series(
            "Waiting by priority",
            "Hops that wait for a worker. Every eighth claim takes the oldest, so that low ones are not left behind.",
            [promql(sum_by(ready, "priority"), "{{priority}}")],
            empty=empty,
            unit="short",
            width=8,
            stacked=True,
        ),
        time_series(
            "All hops by state",
            "Ready (waits for a worker), running, parked (waits for a person or an event), scheduled (rests).",
            [promql(sum_by(hops, "state"), "{{state}}")],
            empty=empty,
            unit="short",
            width=8,
            stacked=True,
        ),
        time_series(
            "Oldest by mode",
            "How long the hop that has waited longest has waited for a worker.",
            [promql(max_by(age, "mode"), "{{mode}}")],
            empty=empty,
            unit="s",
        ),
        time_series(
            "Oldest by priority",
            "How long the hop that has waited longest has waited for a worker.",
            [promql(max_by(age, "priority"), "{{priority}}")],
            empty=empty,
            unit="s",
        ),
    )


def _claims() -> tuple[Panel, ...]:
    return (
        time_series(
            "Claim latency",
            "From the NOTIFY that woke a worker to the claim that it led to.",
            [
                promql(quantile(q, metrics.NOTIFY_TO_CLAIM), name, ref=ref)
                for q, name, ref in ((0.5, "p50", "A"), (0.95, "p95", "B"), (0.99, "p99", "C"))
            ],
            empty="no sleeping worker was woken in the time range: all were busy, or polled. See the listener below.",
            unit="s",
        ),
        time_series(
            "Queue wait, by mode",
            "From ready to claimed: nineteen of twenty hops waited less. The points lead to their traces.",
            [promql(quantile(0.95, metrics.HOP_QUEUE_WAIT, "mode", mode=MODE), "{{mode}}", exemplars=True)],
            empty="no hop was claimed in the time range.",
            unit="s",
        ),
        time_series(
            "Leases lost",
            "A minute: leases that ended under a living worker, which was frozen, cut off or too slow to say that it "
            "lived.",
            [promql(per_minute(sum_by(rate(series(metrics.LEASES_LOST, mode=MODE), RATE), "mode")), "{{mode}}")],
            empty="no worker is scraped.",
            unit="cpm",
            width=8,
        ),
        time_series(
            "Retries",
            "A minute: attempts after a hop's first.",
            [promql(per_minute(sum_by(rate(series(metrics.RETRIES, mode=MODE), RATE), "mode")), "{{mode}}")],
            empty="no worker is scraped.",
            unit="cpm",
            width=8,
        ),
        time_series(
            "In flight",
            "Hops that workers are at, as the workers count them.",
            [promql(sum_by(series(metrics.IN_FLIGHT, mode=MODE), "mode"), "{{mode}}")],
            empty="no worker is scraped, or none had a hop yet.",
            unit="short",
            width=8,
            stacked=True,
        ),
        rows(
            "Workers",
            "Who works, on what, and how it hears of work.",
            sql(
                """
                SELECT worker, mode, alive, listener, started_at, seen_at
                FROM grafana.workers
                ORDER BY alive DESC, worker, mode
                LIMIT 200
                """
            ),
            empty="no worker has ever been seen.",
            columns={
                "alive": Column("bool_yes_no"),
                "started_at": Column("dateTimeAsIso", "started"),
                "seen_at": Column("dateTimeFromNow", "seen"),
            },
            width=16,
        ),
        time_series(
            "Swept",
            "A minute: hops and waits that a sweep moved on: leases, rests, deadlines and ttls that were over.",
            [promql(per_minute(sum_by(rate(series(metrics.SWEPT), RATE))), "swept")],
            empty="no worker is scraped.",
            unit="cpm",
            width=8,
        ),
    )


def _dead() -> tuple[Panel, ...]:
    return (
        number(
            "Dead letters",
            "Tasks that nobody has redriven or abandoned yet.",
            [promql_now(or_zero(sum_by(shared(metrics.DEAD_LETTERS))))],
            empty=f"{AWAY} An empty DLQ is 0.",
            unit="none",
            red_from=1,
        ),
        number(
            "Oldest",
            "How long the first of them has waited for the operator.",
            [promql_now(max_by(shared(metrics.DEAD_LETTER_OLDEST_AGE)))],
            empty=AWAY,
            unit="s",
            width=4,
        ),
        time_series(
            "DLQ by mode and reason",
            "What waits for the operator.",
            [promql(sum_by(shared(metrics.DEAD_LETTERS), "mode", "reason"), "{{mode}}: {{reason}}")],
            empty=f"the DLQ is empty; or {AWAY}",
            unit="short",
            width=16,
            stacked=True,
        ),
        rows(
            "In the DLQ",
            "Every dead task, whenever it died, with its last error. `tracekit dlq redrive` or `abandon` ends it.",
            sql(
                f"""
                SELECT title, hop, mode, reason, error_type, error, attempts, died_at, review_task_id,
                       {drilldown("died_at - interval '1 day'", "resolved_at")}
                FROM grafana.dead_letters
                WHERE resolved_at IS NULL AND {chosen("mode", "mode")}
                ORDER BY died_at DESC
                LIMIT 100
                """
            ),
            empty="the DLQ is empty.",
            columns={
                **TASK_COLUMNS,
                "died_at": Column("dateTimeAsIso", "died"),
                "review_task_id": Column(label="review task"),
            },
        ),
        rows(
            "Resolved",
            "Dead tasks that somebody redrove or abandoned in the time range.",
            sql(
                f"""
                SELECT title, mode, reason, error_type, resolution, resolved_by, resolved_at, died_at,
                       extract(epoch FROM resolved_at - died_at)::float8 AS seconds,
                       {drilldown("died_at - interval '1 day'", "resolved_at")}
                FROM grafana.dead_letters
                WHERE $__timeFilter(resolved_at) AND {chosen("mode", "mode")}
                ORDER BY resolved_at DESC
                LIMIT 100
                """
            ),
            empty="nobody redrove or abandoned a task in the time range.",
            columns={
                **TASK_COLUMNS,
                "seconds": Column("s", "in the DLQ"),
                "died_at": Column("dateTimeAsIso", "died"),
                "resolved_at": Column("dateTimeAsIso", "resolved"),
                "resolution": Column(states=True),
            },
        ),
    )


def _around() -> tuple[Panel, ...]:
    return (
        time_series(
            "Accepted",
            "Tasks a minute, by surface. A duplicate is a key that was known: it made no task.",
            [
                promql(
                    per_minute(sum_by(rate(series(metrics.INGRESS_TASKS), RATE), "surface", "duplicate")),
                    "{{surface}}, duplicate: {{duplicate}}",
                )
            ],
            empty="ingress is not scraped.",
            unit="cpm",
        ),
        time_series(
            "Refused",
            "Requests a minute, by surface and reason.",
            [
                promql(
                    per_minute(sum_by(rate(series(metrics.INGRESS_REFUSALS), RATE), "surface", "reason")) > 0,
                    "{{surface}}: {{reason}}",
                )
            ],
            empty="nothing was refused in the time range, or ingress is not scraped.",
            unit="cpm",
        ),
        time_series(
            "Listeners",
            "Processes by how they hear of work: listening (NOTIFY arrives), polling (it does not, which costs the "
            "wait for the next poll), starting.",
            [promql(sum_by(series(metrics.LISTENER_STATE), "state"), "{{state}}")],
            empty="no worker is scraped.",
            unit="short",
            width=8,
            stacked=True,
        ),
        time_series(
            "Outbox",
            "Notifications that nobody has received yet, and spans that are not yet with the collector.",
            [
                promql(max_by(shared(metrics.NOTIFICATIONS_UNDELIVERED)), "notifications", ref="A"),
                promql(max_by(shared(metrics.SPANS_UNSHIPPED)), "spans", ref="B"),
            ],
            empty=AWAY,
            unit="short",
            width=8,
        ),
        time_series(
            "Outbox lag",
            "How long the oldest of them has waited.",
            [
                promql(max_by(shared(metrics.NOTIFICATION_OLDEST_UNDELIVERED_AGE)), "notifications", ref="A"),
                promql(max_by(shared(metrics.SPAN_OLDEST_UNSHIPPED_AGE)), "spans", ref="B"),
            ],
            empty=AWAY,
            unit="s",
            width=8,
        ),
        time_series(
            "Tries to tell people",
            "A minute, by channel and outcome.",
            [
                promql(
                    per_minute(sum_by(rate(series(metrics.NOTIFICATIONS), RATE), "channel", "outcome")),
                    "{{channel}}: {{outcome}}",
                )
            ],
            empty="no worker is scraped.",
            unit="cpm",
        ),
        time_series(
            "Span batches that the collector did not take",
            "A minute. They are kept in the database and sent again.",
            [promql(per_minute(sum_by(rate(series(metrics.SPAN_EXPORT_FAILURES), RATE))), "batches")],
            empty="no process of tracekit is scraped.",
            unit="cpm",
        ),
    )


def _storage() -> tuple[Panel, ...]:
    return (
        number(
            "Database",
            "1: every process's last look at PostgreSQL succeeded. 0: one's did not.",
            [promql_now(min_by(series(metrics.DATABASE_UP)))],
            empty="no process of tracekit is scraped.",
            unit="bool_yes_no",
        ),
        time_series(
            "Table size",
            "With indexes.",
            [promql(sum_by(shared(metrics.TABLE_BYTES), "table"), "{{table}}")],
            empty=AWAY,
            unit="bytes",
            width=10,
            stacked=True,
        ),
        time_series(
            "Dead rows",
            "Rows that vacuum has not yet taken away. In the table queue they cost every claim.",
            [promql(sum_by(shared(metrics.TABLE_DEAD_ROWS), "table"), "{{table}}")],
            empty=AWAY,
            unit="short",
            width=10,
        ),
        rows(
            "Tables",
            "As PostgreSQL's statistics have them.",
            sql(
                """
                SELECT "table", bytes, live_rows, dead_rows, last_vacuum
                FROM grafana.tables
                ORDER BY bytes DESC
                """
            ),
            empty="the schema is not there.",
            columns={
                "bytes": Column("bytes", "size"),
                "last_vacuum": Column("dateTimeFromNow"),
            },
        ),
    )

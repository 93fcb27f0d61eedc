"""All tasks together: what waits, what runs, what waits for a person, how fast it goes, and the dearest and slowest."""

from __future__ import annotations

from grafana_foundation_sdk.models import dashboard as models

from tracekit import metrics
from tracekit.dashboards.frame import MINE, STATE_NOW, TASK_COLUMNS, TITLE, Dashboard, drilldown
from tracekit.dashboards.panels import Column, Panel, number, rows, time_series
from tracekit.dashboards.sources import (
    AWAY,
    MODE,
    POSTGRES,
    PROMETHEUS,
    RATE,
    TEMPO,
    Target,
    chosen,
    or_zero,
    per_minute,
    promql,
    promql_now,
    quantile,
    series,
    shared,
    sql,
    traceql,
)
from tracekit.dashboards.variables import job, mode, requester, synthetic
from tracekit.promql import Vector, any_of, binary, min_by, rate, sum_by

FAILURES = ("failed", "timeout", "give_up", "lost")
"""Outcomes of `tracekit_attempts_total` that are failures. Parking, resting and handing on are not."""


def build() -> models.Dashboard:
    """The dashboard."""
    board = Dashboard(
        "tracekit-fleet",
        "tracekit · Fleet",
        "All tasks: what is under way, how fast it goes, how often it succeeds, and which were slowest and dearest.",
        sources=(PROMETHEUS, POSTGRES, TEMPO),
        variables=(job(), mode(), requester(), synthetic()),
        since="now-24h",
        refresh="30s",
    )
    board.row("Now", *_now())
    board.row("Flow", *_flow())
    board.row("Tasks of the time range", *_tasks())
    return board.build()


def _hops(state: str) -> Vector:
    return sum_by(shared(metrics.HOPS, state=state, mode=MODE))


def _now() -> tuple[Panel, ...]:
    away = f"{AWAY} Nothing under way is 0."
    return (
        *(
            number(title, about, [promql_now(or_zero(vector))], empty=away, unit="none", red_from=red_from, links=links)
            for title, about, vector, red_from, links in (
                ("Waiting", "Hops that wait for a worker.", _hops("ready"), None, ()),
                ("Running", "Hops that a worker is at.", _hops("running"), None, ()),
                ("Resting", "Hops that rest before their next try.", _hops("scheduled"), None, ()),
                (
                    "Waiting for a person",
                    "Plans that somebody has to approve.",
                    sum_by(shared(metrics.APPROVALS_PENDING)),
                    None,
                    (("People", "/d/tracekit-people"),),
                ),
                (
                    "Dead",
                    "Tasks in the DLQ, which wait for the operator.",
                    sum_by(shared(metrics.DEAD_LETTERS)),
                    1,
                    (("Queue", "/d/tracekit-queue"),),
                ),
            )
        ),
        number(
            "Workers",
            "Workers that were seen within two minutes, of the mode that has the fewest.",
            [promql_now(min_by(shared(metrics.WORKERS, mode=MODE)))],
            empty=f"no worker runs; or {AWAY}",
            unit="none",
        ),
        rows(
            "Under way",
            "Tasks of the time range that have not ended, the most urgent and then the oldest first.",
            sql(
                f"""
                SELECT {TITLE}, {STATE_NOW}, mode, requester, priority, seconds, attempts, created_at, {drilldown()}
                FROM grafana.tasks
                WHERE state IN ('open', 'dead') AND $__timeFilter(created_at) AND {MINE} AND {chosen("mode", "mode")}
                ORDER BY array_position(ARRAY['urgent', 'high', 'normal', 'low'], priority), created_at
                LIMIT 100
                """
            ),
            empty="nothing that was begun in the time range is under way.",
            columns={
                **TASK_COLUMNS,
                "state": Column(states=True),
                "seconds": Column("s", "age"),
                "created_at": Column("dateTimeAsIso", "begun"),
            },
            height=8,
        ),
    )


def _flow() -> tuple[Panel, ...]:
    idle = "no attempt ended in the time range, or no process of tracekit is scraped."
    ended = rate(series(metrics.ATTEMPTS, mode=MODE), RATE)
    failed = rate(series(metrics.ATTEMPTS, mode=MODE, outcome=FAILURES), RATE)
    return (
        time_series(
            "Tasks that ended",
            "A minute, by what became of them.",
            [promql(per_minute(sum_by(rate(series(metrics.TASKS_ENDED), RATE), "state")), "{{state}}")],
            empty="no process that ends tasks is scraped. A line at 0: none ended.",
            unit="cpm",
            stacked=True,
        ),
        time_series(
            "Attempts that ended",
            "A minute, by mode.",
            [promql(per_minute(sum_by(ended, "mode")), "{{mode}}")],
            empty="no worker is scraped. A line at 0: none ended.",
            unit="cpm",
            stacked=True,
        ),
        time_series(
            "Queue wait",
            "From ready to claimed: half of the hops waited less than the first line, one of twenty longer than the "
            "second. The points are single hops, and lead to their traces.",
            _percentiles(metrics.HOP_QUEUE_WAIT),
            empty="no hop was claimed in the time range.",
            unit="s",
        ),
        time_series(
            "Run time",
            "What handlers took; no wait for a person is in it. The points are single attempts and lead to traces.",
            _percentiles(metrics.HOP_DURATION),
            empty=idle,
            unit="s",
        ),
        time_series(
            "Success by mode",
            "Attempts that did not fail, time out, give up or lose their lease, of all that ended. What a worker was "
            "at when it died is not in it: nobody counted that.",
            [promql(_share_of_success(sum_by(failed, "mode"), sum_by(ended, "mode")), "{{mode}}")],
            empty=idle,
            unit="percentunit",
        ),
        rows(
            "By mode and persona",
            "Attempts of the time range: how many did not end in an error, and what half and nineteen of twenty "
            "of them waited and took at most.",
            sql(
                f"""
                SELECT mode, coalesce(persona, '') AS persona, count(*) AS attempts,
                       avg((error_type IS NULL)::int)::float8 AS success,
                       percentile_cont(0.5) WITHIN GROUP (ORDER BY queue_seconds) AS "wait p50",
                       percentile_cont(0.95) WITHIN GROUP (ORDER BY queue_seconds) AS "wait p95",
                       percentile_cont(0.5) WITHIN GROUP (ORDER BY run_seconds) AS "run p50",
                       percentile_cont(0.95) WITHIN GROUP (ORDER BY run_seconds) AS "run p95"
                FROM grafana.attempts
                WHERE $__timeFilter(ended_at) AND {chosen("mode", "mode")}
                GROUP BY 1, 2
                ORDER BY mode, persona
                """
            ),
            empty="no attempt ended in the time range.",
            columns={
                "success": Column("percentunit"),
                **{name: Column("s") for name in ("wait p50", "wait p95", "run p50", "run p95")},
            },
            width=12,
        ),
    )


def _share_of_success(failed: Vector, ended: Vector) -> Vector:
    """A mode without a failure has no series of them."""
    return binary(1, "-", any_of(failed, ended * 0) / ended)


def _percentiles(metric: metrics.Metric) -> list[Target]:
    return [
        promql(quantile(q, metric, mode=MODE), name, ref=ref, exemplars=True)
        for q, name, ref in ((0.5, "p50", "A"), (0.95, "p95", "B"))
    ]


_COLUMNS = {
    "mode": Column(),
    "seconds": Column("s", "time"),
    "queue_seconds": Column("s", "in the queue"),
    "run_seconds": Column("s", "at work"),
    "approval_seconds": Column("s", "waiting for a person"),
    "cost_usd": Column("currencyUSD", "cost"),
    "tokens": Column(),
    "calls": Column(),
    "unpriced_calls": Column("none", "unpriced"),
    "retries": Column(),
    "summary": Column(),
    "ended_at": Column("dateTimeAsIso", "ended"),
}


def _twenty(title: str, about: str, names: tuple[str, ...], *, where: str, order: str, empty: str) -> Panel:
    """A table of the first twenty tasks of the time range, with these of `_COLUMNS`."""
    query = f"""
        SELECT {TITLE}, {STATE_NOW}, requester, {", ".join(names)}, created_at, {drilldown()}
        FROM grafana.tasks
        WHERE $__timeFilter(created_at) AND {MINE} AND {where}
        ORDER BY {order}
        LIMIT 20
    """
    columns = {
        **TASK_COLUMNS,
        "state": Column(states=True),
        "created_at": Column("dateTimeAsIso", "begun"),
        **{name: _COLUMNS[name] for name in names},
    }
    return rows(title, about, sql(query), empty=empty, columns=columns, width=12, height=10)


def _tasks() -> tuple[Panel, ...]:
    return (
        _twenty(
            "Slowest",
            "The twenty that took longest, waits for people not counted.",
            ("seconds", "queue_seconds", "run_seconds", "approval_seconds"),
            where="ended_at IS NOT NULL",
            order="seconds - coalesce(approval_seconds, 0) DESC",
            empty="no task that was begun in the time range has ended.",
        ),
        _twenty(
            "Dearest",
            "The twenty that cost most. Calls without a price add nothing, and are counted.",
            ("cost_usd", "tokens", "calls", "unpriced_calls"),
            where="calls > 0",
            order="cost_usd DESC NULLS LAST, tokens DESC",
            empty="no task that was begun in the time range called a model.",
        ),
        _twenty(
            "Failed",
            "The last twenty that did not end well, and those that wait in the DLQ.",
            ("mode", "retries", "summary", "ended_at"),
            where="state IN ('dead', 'failed', 'expired', 'rejected', 'abandoned')",
            order="created_at DESC",
            empty="every task of the time range that ended was done.",
        ),
        rows(
            "Traces with an error",
            "Traces in which a span of tracekit failed, as Tempo has them.",
            traceql('{ resource.service.name = "tracekit" && status = error }', limit=20),
            empty="no span failed in the time range, or Tempo is not there.",
            columns={},
            width=12,
            height=10,
        ),
    )

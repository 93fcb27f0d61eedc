"""People: what they have to decide and how fast they do, what expires, what the household may do without asking."""

from __future__ import annotations

from grafana_foundation_sdk.models import dashboard as models

from tracekit import metrics
from tracekit.dashboards.frame import MINE, SYNTHETIC, TASK_COLUMNS, TITLE, Dashboard, drilldown
from tracekit.dashboards.panels import Column, Panel, number, rows, time_series
from tracekit.dashboards.sources import (
    AWAY,
    POSTGRES,
    PROMETHEUS,
    RATE,
    chosen,
    local,
    per_minute,
    promql,
    promql_now,
    quantile,
    series,
    shared,
    sql,
    sql_series,
)
from tracekit.dashboards.variables import job, requester, synthetic
from tracekit.promql import min_by, rate, sum_by

ROUTED = "(requester || '-originated') = ANY (tags)"
"""The guardian has sent a household member's request to the operator: the policy marks it so (P2)."""

DECIDED = ("approved", "rejected", "edited")
"""Decisions that a person has made: not deferred, expired or taken back."""


def build() -> models.Dashboard:
    """The dashboard."""
    board = Dashboard(
        "tracekit-people",
        "tracekit · People",
        "What waits for a person, how long decisions take, what expired undecided, and what the household asked for.",
        sources=(PROMETHEUS, POSTGRES),
        variables=(job(), requester(), synthetic()),
        since="now-7d",
    )
    board.row("Decisions", *_decisions())
    board.row("The household", *_household())
    board.row("Telling people", *_told())
    return board.build()


def _decisions() -> tuple[Panel, ...]:
    return (
        number(
            "Waiting for a person",
            "Plans that somebody has to approve; urgent ones page.",
            [promql_now(sum_by(shared(metrics.APPROVALS_PENDING), "urgent"), "urgent: {{urgent}}")],
            empty=AWAY,
            unit="none",
            width=6,
        ),
        number(
            "Next deadline",
            "Until the next of them expires, undone.",
            [promql_now(min_by(shared(metrics.APPROVAL_NEXT_DEADLINE)))],
            empty=f"nothing waits for a person; or {AWAY}",
            unit="s",
            width=6,
        ),
        number(
            "Time to a decision",
            "Of those of the time range: half took less than the first, nine of ten less than the second.",
            [
                sql(
                    f"""
                    SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY wait_seconds) AS half,
                           percentile_cont(0.9) WITHIN GROUP (ORDER BY wait_seconds) AS "nine of ten"
                    FROM grafana.approvals
                    WHERE $__timeFilter(closed_at) AND decision IN {DECIDED}
                      AND {chosen("requester", "requester")}
                    """
                )
            ],
            empty="nobody decided anything in the time range.",
            unit="s",
            columns={"half": Column("s"), "nine of ten": Column("s")},
            width=6,
        ),
        number(
            "Expired undecided",
            "Plans whose deadline passed in the time range without a decision, and how many of them were destructive: "
            "they were not carried out.",
            [
                sql(
                    f"""
                    SELECT count(*) AS expired, count(*) FILTER (WHERE destructive) AS destructive
                    FROM grafana.approvals
                    WHERE $__timeFilter(closed_at) AND decision = 'expired' AND {chosen("requester", "requester")}
                    """
                )
            ],
            empty="the database could not be asked. None is 0.",
            unit="none",
            red_from=1,
            columns={"expired": Column("none"), "destructive": Column("none")},
            width=6,
        ),
        rows(
            "To decide",
            "Whatever the time range, the nearest deadline first. `tracekit approvals` decides, or the phone's link.",
            sql(
                f"""
                SELECT title, requester, urgent, destructive, wait_seconds, deadline, opened_at,
                       {drilldown("opened_at - interval '1 hour'", "closed_at")}
                FROM grafana.approvals
                WHERE decision = 'pending'
                ORDER BY deadline NULLS LAST
                LIMIT 100
                """
            ),
            empty="nothing waits for a person.",
            columns={
                **TASK_COLUMNS,
                "wait_seconds": Column("s", "waits"),
                "deadline": Column("dateTimeFromNow"),
                "opened_at": Column("dateTimeAsIso", "asked"),
            },
            width=12,
        ),
        rows(
            "Decided",
            "Plans of the time range, the last first.",
            sql(
                f"""
                SELECT title, requester, decision, decided_by, wait_seconds, urgent, destructive, closed_at,
                       {drilldown("opened_at - interval '1 hour'", "closed_at")}
                FROM grafana.approvals
                WHERE $__timeFilter(closed_at) AND {chosen("requester", "requester")}
                ORDER BY closed_at DESC
                LIMIT 100
                """
            ),
            empty="nothing was decided in the time range, and nothing expired.",
            columns={
                **TASK_COLUMNS,
                "decision": Column(states=True),
                "wait_seconds": Column("s", "waited"),
                "closed_at": Column("dateTimeAsIso", "decided"),
            },
            width=12,
        ),
        time_series(
            "Decisions",
            "By day, in the reader's time zone.",
            [
                sql_series(
                    f"""
                    SELECT {local("day", "closed_at")} AS "time",
                           decision AS metric, count(*) AS decisions
                    FROM grafana.approvals
                    WHERE $__timeFilter(closed_at) AND {chosen("requester", "requester")}
                    GROUP BY 1, 2
                    ORDER BY 1, 2
                    """
                )
            ],
            empty="nothing was decided in the time range.",
            unit="short",
            width=8,
            bars=True,
            named_by_metric=True,
            interval="1d",
        ),
        time_series(
            "Decisions, as they are made",
            "A minute, urgent ones told apart.",
            [
                promql(
                    per_minute(sum_by(rate(series(metrics.APPROVALS_DECIDED), RATE), "decision", "urgent")),
                    "{{decision}}, urgent: {{urgent}}",
                )
            ],
            empty="no process that takes decisions is scraped.",
            unit="cpm",
            width=8,
        ),
        time_series(
            "Time to a decision, over time",
            "Half of the decisions took less than the first line, nine of ten less than the second.",
            [
                promql(quantile(q, metrics.APPROVAL_WAIT, decision=DECIDED), name, ref=ref, exemplars=True)
                for q, name, ref in ((0.5, "p50", "A"), (0.9, "p90", "B"))
            ],
            empty="nothing was decided in the time range.",
            unit="s",
            width=8,
        ),
    )


def _household() -> tuple[Panel, ...]:
    return (
        rows(
            "Requests",
            "Tasks of the time range by who asked. Allowed ones went ahead without asking; routed ones were not on "
            "the household's list, or destructive, and went to the operator. Only a household member's are routed.",
            sql(
                f"""
                SELECT {SYNTHETIC} || requester AS requester,
                       count(*) AS requests, count(*) FILTER (WHERE NOT {ROUTED}) AS allowed,
                       count(*) FILTER (WHERE {ROUTED}) AS routed,
                       count(*) FILTER (WHERE {ROUTED} AND state = 'done') AS "routed and done",
                       count(*) FILTER (WHERE state = 'rejected') AS rejected,
                       count(*) FILTER (WHERE state = 'expired') AS expired
                FROM grafana.tasks
                WHERE $__timeFilter(created_at) AND {MINE}
                GROUP BY tasks.requester, synthetic
                ORDER BY requests DESC
                """
            ),
            empty="nobody asked for anything in the time range.",
            columns={},
            width=12,
        ),
        time_series(
            "Allowed and routed",
            "Tasks by day, in the reader's time zone, of who is chosen above.",
            [
                sql_series(
                    f"""
                    SELECT {local("day", "created_at")} AS "time",
                           requester || CASE WHEN {ROUTED} THEN ', routed' ELSE ', allowed' END AS metric,
                           count(*) AS tasks
                    FROM grafana.tasks
                    WHERE $__timeFilter(created_at) AND {MINE}
                    GROUP BY 1, 2
                    ORDER BY 1, 2
                    """
                )
            ],
            empty="nobody asked for anything in the time range.",
            unit="short",
            width=12,
            bars=True,
            named_by_metric=True,
            interval="1d",
        ),
        rows(
            "Routed to the operator",
            "What a household member asked for and may not do without asking.",
            sql(
                f"""
                SELECT {TITLE}, state, requester, approval_seconds, created_at, {drilldown()}
                FROM grafana.tasks
                WHERE $__timeFilter(created_at) AND {MINE} AND {ROUTED}
                ORDER BY created_at DESC
                LIMIT 100
                """
            ),
            empty="nothing was routed in the time range.",
            columns={
                **TASK_COLUMNS,
                "state": Column(states=True),
                "approval_seconds": Column("s", "waited"),
                "created_at": Column("dateTimeAsIso", "asked"),
            },
            width=12,
        ),
        rows(
            "Expired",
            "Tasks of the time range whose time was over before anybody decided, or a worker came to them.",
            sql(
                f"""
                SELECT {TITLE}, requester, destructive, summary, ended_at, {drilldown()}
                FROM grafana.tasks
                WHERE $__timeFilter(created_at) AND {MINE} AND state = 'expired'
                ORDER BY ended_at DESC
                LIMIT 100
                """
            ),
            empty="nothing expired in the time range.",
            columns={**TASK_COLUMNS, "ended_at": Column("dateTimeAsIso", "ended")},
            width=12,
        ),
    )


def _told() -> tuple[Panel, ...]:
    return (
        rows(
            "Notifications",
            "Of the time range, the last first: whom tracekit told what, and how long it took to reach them.",
            sql(
                f"""
                SELECT recipient, kind, state, urgent, seconds, attempts, last_error, created_at,
                       {drilldown("created_at", "delivered_at")}
                FROM grafana.notifications
                WHERE $__timeFilter(created_at)
                ORDER BY created_at DESC
                LIMIT 100
                """
            ),
            empty="nobody had to be told anything in the time range.",
            columns={
                **{name: column for name, column in TASK_COLUMNS.items() if name != "title"},
                "kind": Column(links=TASK_COLUMNS["title"].links),
                "seconds": Column("s", "took"),
                "created_at": Column("dateTimeAsIso", "at"),
            },
        ),
    )

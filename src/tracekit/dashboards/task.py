"""The drilldown: what a task is, what became of it, and one group of panels for each task that is chosen (D2)."""

from __future__ import annotations

from grafana_foundation_sdk.models import dashboard as models

from tracekit.dashboards.frame import SYNTHETIC, TASK, TASK_COLUMNS, TITLE, Dashboard, drilldown
from tracekit.dashboards.panels import Column, Panel, lines, number, rows, state_timeline, traces
from tracekit.dashboards.sources import LOKI, POSTGRES, TEMPO, chosen, logql, sql, trace
from tracekit.dashboards.variables import from_sql, mode, requester, some_of, text

STATES = ("open", "dead", "done", "failed", "expired", "rejected", "abandoned")

FOUND = " AND ".join(
    (
        "$__timeFilter(created_at)",
        chosen("requester", "requester"),
        chosen("state", "state"),
        f"EXISTS (SELECT FROM grafana.hops AS h WHERE h.task_id = t.task_id AND {chosen('h.mode', 'mode')})",
        "(title ILIKE '%' || ${find:sqlstring} || '%' OR trace_id = lower(${find:sqlstring})"
        " OR task_id = upper(${find:sqlstring}))",
    )
)
"""Of `grafana.tasks AS t`: what the variables ask for."""

THIS = "task_id = ANY (grafana.tasks_of(VARIADIC ARRAY[${task:sqlstring}]::text[]))"
"""The chosen tasks; where there is none to choose, none."""


def build() -> models.Dashboard:
    """The dashboard."""
    board = Dashboard(
        TASK,
        "tracekit · Task",
        "One task from its request to its end: outcome, hops, trace, events, errors, logs, cost, and what it changed.",
        sources=(POSTGRES, TEMPO, LOKI),
        variables=(
            text("find", "Title or id", "A part of a task's title, or the whole id of a task or of its trace."),
            requester(),
            mode(),
            some_of("state", "State", "What became of it.", STATES),
            from_sql(
                "task",
                "Task",
                "The tasks that are shown below, newest first; a trace id may be typed.",
                f"""
                SELECT trace_id AS __value,
                       {SYNTHETIC} || title || ' · ' || right(trace_id, 6) AS __text
                FROM grafana.tasks AS t
                WHERE {FOUND}
                ORDER BY created_at DESC
                LIMIT 500
                """,
            )
            .multi(True)
            .allow_custom_value(True),
        ),
        since="now-24h",
        refresh="30s",
    )
    board.row(
        "Tasks that were found",
        rows(
            "Tasks",
            "What the variables above find, newest first. A click on a title shows that task below.",
            sql(
                f"""
                SELECT {TITLE}, state, mode, requester, origin, priority, seconds, hops, attempts, tokens, cost_usd,
                       created_at, {drilldown()}
                FROM grafana.tasks AS t
                WHERE {FOUND}
                ORDER BY created_at DESC
                LIMIT 100
                """
            ),
            empty="no task of the time range is as the variables ask.",
            columns={
                **TASK_COLUMNS,
                "state": Column(states=True),
                "seconds": Column("s", "time"),
                "cost_usd": Column("currencyUSD", "cost"),
                "created_at": Column("dateTimeAsIso", "begun"),
            },
            height=7,
        ),
    )
    board.row("${task:text}", *_panels(), repeat="task")
    return board.build()


def _panels() -> tuple[Panel, ...]:
    return (*_outcome(), *_way(), *_spent_and_changed())


def _outcome() -> tuple[Panel, ...]:
    return (
        number(
            "Outcome",
            "Open, or how it ended. A dead task waits in the DLQ for the operator.",
            [sql(f"SELECT state, mode FROM grafana.tasks WHERE {THIS}")],
            empty="no task with this trace is in the database, or its history has been dropped.",
            unit="string",
            columns={"state": Column(states=True), "mode": Column(label="now or last in")},
            width=5,
        ),
        number(
            "Time",
            "From the request to its end or to now; of that, waiting for a worker, being worked on, and waiting for a "
            "person.",
            [
                sql(
                    f"""
                    SELECT seconds AS "in all", queue_seconds AS "in the queue", run_seconds AS "at work",
                           approval_seconds AS "waiting for a person"
                    FROM grafana.tasks
                    WHERE {THIS}
                    """
                )
            ],
            empty="no task with this trace is in the database.",
            unit="s",
            columns={name: Column("s") for name in ("in all", "in the queue", "at work", "waiting for a person")},
            width=8,
        ),
        number(
            "Work",
            "Modes visited, claims by a worker, and claims after a hop's first.",
            [sql(f"SELECT hops, attempts, retries FROM grafana.tasks WHERE {THIS}")],
            empty="no task with this trace is in the database.",
            unit="none",
            columns={"hops": Column(), "attempts": Column(), "retries": Column()},
            width=5,
        ),
        number(
            "Cost",
            "Dollars of the calls that have a price, tokens, calls of models, and calls without a price, which is not "
            "zero.",
            [
                sql(
                    f"""
                    SELECT cost_usd::float8 AS cost, tokens, calls, unpriced_calls AS unpriced
                    FROM grafana.tasks
                    WHERE {THIS}
                    """
                )
            ],
            empty="a dash for the cost: no call had a price. Nothing at all: no such task.",
            unit="short",
            columns={"cost": Column("currencyUSD"), "tokens": Column(), "calls": Column(), "unpriced": Column()},
            width=6,
        ),
        rows(
            "Envelope",
            "What was asked, by whom and where, and what the task said of itself at its end.",
            sql(
                f"""
                SELECT {TITLE}, task_id, trace_id, origin, surface, requester, priority, destructive, data_tier,
                       array_to_string(tags, ', ') AS tags, created_at, ended_at, summary
                FROM grafana.tasks
                WHERE {THIS}
                """
            ),
            empty="no task with this trace is in the database.",
            columns={
                "title": Column(width=300),
                "created_at": Column("dateTimeAsIso", "begun"),
                "ended_at": Column("dateTimeAsIso", "ended"),
            },
            height=4,
        ),
    )


def _way() -> tuple[Panel, ...]:
    return (
        state_timeline(
            "Hops",
            "The modes that the task went through, and its state in each: ready (waits for a worker), running, parked "
            "(waits for a person or an event), scheduled (rests before the next try), or its end.",
            sql(
                f"""
                WITH changes AS (
                    SELECT at, mode, state, lead(at) OVER way AS left_at, lead(mode) OVER way AS next_mode
                    FROM grafana.timeline
                    WHERE {THIS}
                    WINDOW way AS (PARTITION BY trace_id ORDER BY at, hop)
                )
                SELECT at AS "time", mode, state FROM changes
                UNION ALL
                SELECT left_at, mode, NULL FROM changes WHERE next_mode <> mode
                ORDER BY "time"
                """
            ),
            empty="nothing happened to the task in the time range: widen it, or open the task from a table, which sets "
            "it.",
            split_by="mode",
        ),
        traces(
            "Trace",
            "The whole trace: hops, waits, calls of models and tools, and the pull requests, CI runs and deploys that "
            "came of it. Spans arrive when they have ended, the root last.",
            trace("${task}"),
            empty="Tempo has no span of it yet, has dropped it, or no collector is configured. The panels beside it do "
            "not need Tempo.",
        ),
        rows(
            "Events",
            "Every line of the task's record, in the order of commits.",
            sql(
                f"""
                SELECT at, kind, hop, mode, attempt, outcome, detail
                FROM grafana.events
                WHERE {THIS}
                ORDER BY seq
                """
            ),
            empty="no task with this trace is in the database.",
            columns={
                "at": Column("dateTimeAsIso", width=190),
                "hop": Column("none", width=60),
                "attempt": Column("none", width=80),
            },
            width=12,
            height=10,
        ),
        rows(
            "Attempts and errors",
            "Each claim by a worker: how long the hop had waited, how long it took, how it ended, and the error where "
            "one was.",
            sql(
                f"""
                SELECT hop, mode, persona, attempt, outcome, error_type, error, queue_seconds, run_seconds, worker,
                       claimed_at
                FROM grafana.attempts
                WHERE {THIS}
                ORDER BY hop, attempt
                """
            ),
            empty="no worker has claimed it.",
            columns={
                "hop": Column("none", width=60),
                "attempt": Column("none", width=80),
                "outcome": Column(states=True),
                "queue_seconds": Column("s", "waited"),
                "run_seconds": Column("s", "took"),
                "claimed_at": Column("dateTimeAsIso", "claimed", width=190),
            },
            width=12,
            height=10,
        ),
        lines(
            "Logs",
            "What tracekit logged inside the task, in all its processes.",
            logql('{service_name="tracekit"} |= "${task}" | json | trace_id="${task}"', limit=1000),
            empty="nothing was logged in the time range, or logs are not sent to Loki.",
        ),
    )


def _spent_and_changed() -> tuple[Panel, ...]:
    return (
        rows(
            "Tokens and cost",
            "What was asked of which model. Cached input is cheaper and counted by itself; reasoning is a part of the "
            "output. A call without a price is counted as unpriced and adds nothing to the cost.",
            sql(
                f"""
                SELECT {SYNTHETIC} || provider || '/' || model AS model, mode,
                       coalesce(persona, '') AS persona, count(*) AS calls,
                       sum(input_tokens) AS input, sum(cache_read_tokens) AS "cache read",
                       sum(cache_write_tokens) AS "cache write", sum(output_tokens) AS output,
                       sum(reasoning_tokens) AS reasoning, sum(cost_usd)::float8 AS cost,
                       count(*) FILTER (WHERE cost_usd IS NULL) AS unpriced,
                       string_agg(DISTINCT price_source, ', ') AS "price from"
                FROM grafana.spend
                WHERE {THIS}
                GROUP BY provider, spend.model, synthetic, mode, spend.persona
                ORDER BY cost DESC NULLS LAST
                """
            ),
            empty="the task called no model.",
            columns={"cost": Column("currencyUSD")},
            width=14,
        ),
        rows(
            "Approvals",
            "What a person had to decide, and did.",
            sql(
                f"""
                SELECT opened_at, decision, decided_by, wait_seconds, deadline, urgent, destructive
                FROM grafana.approvals
                WHERE {THIS}
                ORDER BY opened_at
                """
            ),
            empty="nobody had to be asked.",
            columns={
                "opened_at": Column("dateTimeAsIso", "asked"),
                "decision": Column(states=True),
                "wait_seconds": Column("s", "waited"),
                "deadline": Column("dateTimeAsIso"),
            },
            width=10,
        ),
        rows(
            "Pull requests, CI and deploys",
            "What the task brought about elsewhere. The title leads there.",
            sql(
                f"""
                SELECT kind, title, state, at, ended_at, url
                FROM grafana.changes
                WHERE {THIS}
                ORDER BY at
                """
            ),
            empty="the task opened no pull request, and no CI run or deploy is known of it.",
            columns={
                "title": Column(links=(("Open it", "${__data.fields.url}"),)),
                "state": Column(states=True),
                "at": Column("dateTimeAsIso", "begun"),
                "ended_at": Column("dateTimeAsIso", "ended"),
            },
            height=6,
        ),
    )

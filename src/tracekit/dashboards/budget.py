"""Tokens and money by day and week, by model, mode, persona, requester and origin, against budgets once set (D3)."""

from __future__ import annotations

from typing import Literal

from grafana_foundation_sdk.models import dashboard as models

from tracekit import metrics
from tracekit.dashboards.frame import SYNTHETIC, TASK_COLUMNS, TITLE, Dashboard, drilldown
from tracekit.dashboards.panels import Column, Panel, bars, number, rows, time_series
from tracekit.dashboards.sources import (
    AWAY,
    POSTGRES,
    PROMETHEUS,
    RATE,
    chosen,
    local,
    per_minute,
    promql,
    series,
    shared,
    sql,
    sql_series,
)
from tracekit.dashboards.variables import job, one_of, several, synthetic
from tracekit.promql import Vector, any_of, matches, once, rate, sum_by

DIMENSIONS = ("model", "mode", "persona", "requester", "origin")
PERIODS: tuple[Literal["day", "week"], ...] = ("day", "week")

TASKS = chosen("synthetic::text", "synthetic")
"""Of `grafana.tasks`: made up or not, as is chosen."""

CALLS = f"{TASKS} AND {chosen('model', 'model')}"
"""Of `grafana.spend`: those of the models that are chosen."""

BUDGET = ("scope", "subject", "period", "unit")
"""What names a budget, and so a variable each: alerts fill them."""

UNPRICED = "count(*) FILTER (WHERE cost_usd IS NULL)"


def build() -> models.Dashboard:
    """The dashboard."""
    board = Dashboard(
        "tracekit-budget",
        "tracekit · Budget",
        "What models cost: tokens and dollars by day and week and by whom, what has no price, and the budgets.",
        sources=(PROMETHEUS, POSTGRES),
        variables=(
            job(),
            one_of("by", "By", "What the panels by day and week are parted by.", DIMENSIONS),
            several(
                "model",
                "Model",
                "Models that were called in the time range.",
                "SELECT DISTINCT model FROM grafana.spend WHERE $__timeFilter(at) ORDER BY model",
            ),
            synthetic(),
            *(
                several(
                    name,
                    f"Budget: {name}",
                    f"Of the budgets that are set, by {name}.",
                    f"SELECT DISTINCT {name} FROM grafana.budgets ORDER BY {name}",
                )
                for name in BUDGET
            ),
        ),
        since="now-7d",
        refresh="5m",
    )
    board.row("This week", *_week())
    board.row("By day and week", *_over_time())
    board.row("By whom and with what", *_by_dimension())
    board.row("Budgets", *_budgets())
    board.row("Calls and tasks", *_calls())
    return board.build()


def _week() -> tuple[Panel, ...]:
    week = f"""
        WITH week AS (
            SELECT {local("week", "now()")} AS begins,
                   {local("week", "(now() + interval '7 days')")} AS ends
        ), spent AS (
            SELECT coalesce(sum(cost_usd) FILTER (WHERE at >= begins), 0)::float8 AS week,
                   coalesce(sum(cost_usd) FILTER (WHERE at >= now() - interval '7 days'), 0)::float8 AS seven_days,
                   coalesce(sum(tokens) FILTER (WHERE at >= begins), 0) AS tokens,
                   count(*) FILTER (WHERE at >= begins) AS calls,
                   count(*) FILTER (WHERE at >= begins AND cost_usd IS NULL) AS unpriced
            FROM grafana.spend, week
            WHERE at >= least(begins, now() - interval '7 days') AND {CALLS}
        )
    """
    return (
        number(
            "This week so far",
            "Dollars, tokens and calls since Monday in the reader's time zone, whatever the time range.",
            [sql(f"{week} SELECT week AS spent, tokens, calls FROM spent")],
            empty="the database could not be asked. Nothing spent is $0.",
            unit="short",
            columns={"spent": Column("currencyUSD"), "tokens": Column("short"), "calls": Column("short")},
            width=9,
        ),
        number(
            "By the end of the week",
            "What was spent this week, and the rest of it at the pace of the last seven days. A guess, and of priced "
            "calls alone.",
            [
                sql(
                    f"""{week}
        SELECT week + seven_days / 7 * extract(epoch FROM ends - now())::float8 / 86400 AS projected
        FROM spent, week"""
                )
            ],
            empty="the database could not be asked.",
            unit="currencyUSD",
            columns={"projected": Column("currencyUSD")},
            width=5,
        ),
        number(
            "Unpriced calls",
            "Calls of this week whose price nobody knows. They are missing from every sum of dollars here: "
            "`tracekit cost report` names the models.",
            [sql(f"{week} SELECT unpriced FROM spent")],
            empty="the database could not be asked.",
            unit="none",
            red_from=1,
            columns={"unpriced": Column("none", "calls")},
            width=5,
        ),
        number(
            "Budgets used up",
            "Budgets of which all is spent, or that a call of their present day or week found no room in.",
            [sql("SELECT count(*) FILTER (WHERE used_up) AS used, count(*) AS set FROM grafana.budgets")],
            empty="the database could not be asked. 0 of 0: no budget is set; `tracekit budget suggest` makes a basis.",
            unit="none",
            columns={"used": Column("none", "used up"), "set": Column("none", "of")},
            width=5,
        ),
    )


def _over_time() -> tuple[Panel, ...]:
    by = f"""
        CASE ${{by:sqlstring}} {" ".join(f"WHEN '{one}' THEN {one}" for one in DIMENSIONS)} END
    """.strip()

    def query(unit: Literal["day", "week"], what: str, name: str) -> str:
        return f"""
            SELECT {local(unit, "at")} AS "time",
                   {SYNTHETIC} || coalesce(nullif({by}, ''), '(none)') AS metric,
                   {what} AS {name}
            FROM grafana.spend
            WHERE $__timeFilter(at) AND {CALLS}
            GROUP BY 1, 2
            ORDER BY 1, 2
        """

    return tuple(
        time_series(
            f"{title} by {unit}",
            f"{about} Days and weeks are the reader's; the first and the last may be cut off by the time range.",
            [sql_series(query(unit, what, name))],
            empty="no model was called in the time range.",
            unit=measured,
            width=12,
            bars=True,
            named_by_metric=True,
            interval="1d" if unit == "day" else "7d",
        )
        for unit in PERIODS
        for title, about, what, name, measured in (
            (
                "Cost",
                "Dollars of calls that have a price, parted by what is chosen above.",
                "coalesce(sum(cost_usd), 0)::float8",
                "cost",
                "currencyUSD",
            ),
            (
                "Tokens",
                "Input, cache and output together, parted by what is chosen above.",
                "sum(tokens)",
                "tokens",
                "short",
            ),
        )
    )


def _column(dimension: str) -> str:
    return "provider || '/' || model" if dimension == "model" else dimension


def _by_dimension() -> tuple[Panel, ...]:
    return (
        *(
            rows(
                f"By {dimension}",
                "Of the time range. Calls without a price add nothing to the cost, and are counted.",
                sql(
                    f"""
                    SELECT {SYNTHETIC} || coalesce(nullif({_column(dimension)}, ''), '(none)') AS {dimension},
                           sum(cost_usd)::float8 AS cost, sum(tokens) AS tokens, count(*) AS calls,
                           {UNPRICED} AS unpriced
                    FROM grafana.spend
                    WHERE $__timeFilter(at) AND {CALLS}
                    GROUP BY 1
                    ORDER BY cost DESC NULLS LAST, tokens DESC
                    """
                ),
                empty="no model was called in the time range.",
                columns={"cost": Column("currencyUSD"), dimension: Column(width=220)},
                width=12,
            )
            for dimension in DIMENSIONS
        ),
        bars(
            "Kinds of tokens",
            "Of the time range. Reasoning is a part of the output.",
            sql(
                f"""
                SELECT kind, sum(of_call.tokens)::float8 AS tokens
                FROM grafana.spend,
                     LATERAL (VALUES (1, 'input', input_tokens), (2, 'cache read', cache_read_tokens),
                                     (3, 'cache write', cache_write_tokens), (4, 'output', output_tokens),
                                     (5, 'of it reasoning', reasoning_tokens)) AS of_call (place, kind, tokens)
                WHERE $__timeFilter(at) AND {CALLS}
                GROUP BY place, kind
                ORDER BY place
                """
            ),
            empty="no model was called in the time range.",
            unit="short",
            width=12,
        ),
    )


def _budgets() -> tuple[Panel, ...]:
    legend = "{{scope}} {{subject}} {{period}} ({{unit}})"
    these = {name: matches(f"${name}") for name in BUDGET}
    used = shared(metrics.BUDGET_SPENT, **these) / shared(metrics.BUDGET_AMOUNT, **these)
    return (
        rows(
            "Budgets",
            "Each in its present day or week, whose borders are in the budget's own time zone. Reserved is what calls "
            "under way may still take. At this pace: what would be spent by the end.",
            sql(
                f"""
                SELECT scope, subject, period, unit, policy, amount::float8 AS amount, spent::float8 AS spent,
                       reserved::float8 AS reserved, remaining::float8 AS remaining,
                       (spent / nullif(amount, 0))::float8 AS used,
                       (spent * extract(epoch FROM ends - begins) / nullif(extract(epoch FROM now() - begins), 0))
                           ::float8 AS "at this pace",
                       ends
                FROM grafana.budgets
                WHERE {" AND ".join(chosen(name, name) for name in BUDGET)}
                ORDER BY used DESC NULLS LAST
                """
            ),
            empty="no budget is set. `tracekit budget suggest` says what a week of data suggests, and "
            "`tracekit budget set` sets one.",
            columns={"used": Column("percentunit"), "ends": Column("dateTimeAsIso")},
        ),
        time_series(
            "What is left",
            "Of each budget's day or week. It falls as calls are booked and reserved, and rises when a new one begins.",
            [promql(shared(metrics.BUDGET_REMAINING, **these), legend)],
            empty=f"no budget is set; or {AWAY}",
            unit="short",
            width=8,
        ),
        time_series(
            "Used",
            "The share of each budget's day or week that is spent.",
            [promql(used, legend)],
            empty=f"no budget is set; or {AWAY}",
            unit="percentunit",
            width=8,
        ),
        time_series(
            "Pace",
            "How much faster each budget is spent than its day or week passes: at 1 it is used up exactly at the end, "
            "at 2 in half of the time. Early in a day or week it says little.",
            [promql(used / shared(metrics.BUDGET_PERIOD_ELAPSED, **these), legend)],
            empty=f"no budget is set; or {AWAY}",
            unit="short",
            width=8,
        ),
    )


def _calls() -> tuple[Panel, ...]:
    these = {"synthetic": matches("$synthetic"), "model": matches("$model")}
    away = f"no model was ever called; or {AWAY}"

    def grown(up: metrics.Metric, down: metrics.Metric, *by: str) -> Vector:
        """A counter that may sink is two: what was lowered later is taken off."""
        added, lowered = (sum_by(once(rate(series(one, **these), RATE)), *by) for one in (up, down))
        return any_of(added - lowered, added)

    return (
        time_series(
            "Cost an hour, by model",
            "As it is booked; corrections that came later are taken off where they were made.",
            [promql(grown(metrics.COST, metrics.COST_LOWERED, "model") * 3600, "{{model}}")],
            empty=away,
            unit="currencyUSD",
        ),
        time_series(
            "Tokens a minute, by kind",
            "Input, cache read, cache write and output.",
            [promql(per_minute(grown(metrics.TOKENS, metrics.TOKENS_LOWERED, "kind")), "{{kind}}")],
            empty=away,
            unit="cpm",
            stacked=True,
        ),
        time_series(
            "Calls a minute, by model",
            "Calls of models.",
            [promql(per_minute(grown(metrics.MODEL_CALLS, metrics.MODEL_CALLS_LOWERED, "model")), "{{model}}")],
            empty=away,
            unit="cpm",
        ),
        rows(
            "Without a price",
            "Models of the time range that nobody knows the price of. Say it in `[[prices]]`, then `tracekit cost "
            "reprice`.",
            sql(
                f"""
                SELECT provider || '/' || model AS model, count(*) AS calls, sum(tokens) AS tokens,
                       count(*) FILTER (WHERE basis = 'lost') AS lost, max(at) AS last
                FROM grafana.spend
                WHERE $__timeFilter(at) AND {CALLS} AND cost_usd IS NULL
                GROUP BY 1
                ORDER BY calls DESC
                """
            ),
            empty="every call of the time range has a price.",
            columns={"last": Column("dateTimeAsIso")},
            width=12,
        ),
        rows(
            "Dearest tasks",
            "Of those that were begun in the time range. A title leads to the task.",
            sql(
                f"""
                SELECT {TITLE}, cost_usd::float8 AS cost, tokens, calls, unpriced_calls AS unpriced, requester, origin,
                       {drilldown()}
                FROM grafana.tasks
                WHERE $__timeFilter(created_at) AND calls > 0 AND {TASKS}
                ORDER BY cost_usd DESC NULLS LAST, tokens DESC
                LIMIT 20
                """
            ),
            empty="no task that was begun in the time range called a model.",
            columns={**TASK_COLUMNS, "cost": Column("currencyUSD")},
            width=24,
        ),
    )

"""Every query of every panel, variable and annotation, run against a system that has run (D4)."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from tests.dashboards.bundled import Query, load, queries, variables
from tests.dashboards.world import SECRET, World
from tests.support.postgres import ThrowawayServer
from tracekit.dashboards import expand
from tracekit.dashboards.expand import Scope, Values
from tracekit.metrics import CATALOGUE

# One system for all of them; whichever comes first waits until it has run.

ALL = queries()
SQL = [query for query in ALL if "rawSql" in query.target]
PROMQL = [query for query in ALL if "expr" in query.target and query.source == "prometheus"]

YESTERDAY = Scope(datetime.now(UTC) - timedelta(days=1), datetime.now(UTC))

OF_TASK = {
    "Approvals [A]": "approved",
    "Pull requests, CI and deploys [A]": "changed",
    "Attempts and errors [A]": "dead",
}
"""Whose drilldown has rows in a panel, where the one of a task that asked a model has none."""


def scope_of(query: Query, scope: Scope, task: str) -> Scope:
    """The dashboard's variables as they are when it is opened, and one task."""
    for one in variables(load(f"{query.dashboard}.json")):
        if one["name"] == "task":
            values = Values([task])
        elif one.get("includeAll"):
            values = Values(raw=one["allValue"])
        elif one["type"] == "textbox":
            values = Values([""])
        else:
            values = Values([one["current"]["value"]])
        scope = scope.having(**{one["name"]: values})
    return scope


def trace_of(world: World, name: str) -> str:
    _, [[trace_id]] = world.sql(f"SELECT trace_id FROM grafana.tasks WHERE task_id = '{world.tasks[name]}'")
    assert isinstance(trace_id, str)
    return trace_id


def ask(world: World, query: Query) -> tuple[list[str], list[tuple[Any, ...]]]:
    scope = scope_of(query, world.scope, trace_of(world, OF_TASK.get(query.place, "remote 0")))
    return world.sql(expand.sql(query.target["rawSql"], scope))


@pytest.mark.parametrize("query", SQL, ids=str)
async def test_d4_every_sql_query_returns_rows(the_world: World, query: Query) -> None:
    columns, rows = ask(the_world, query)
    assert rows
    for column in columns:
        if column not in OPTIONAL.get(query.place, ()):
            place = columns.index(column)
            assert any(row[place] is not None for row in rows), f"{column} is never known: {rows[:3]}"
    if query.target["format"] == "time_series":
        assert {"time", "metric"} < set(columns)


OPTIONAL = {
    "Notifications [A]": ("last_error",),  # the phone takes all of them
}
"""Columns that are unknown in every row of this system, and why."""


@pytest.mark.parametrize("query", PROMQL, ids=str)
async def test_d4_every_promql_query_returns_numbers(the_world: World, query: Query) -> None:
    text = expand.promql(query.target["expr"], scope_of(query, the_world.run, ""))
    series = the_world.promql(text, instant=query.target["instant"])
    numbers = [float(value) for one in series for _, value in one.get("values") or [one["value"]]]
    assert any(math.isfinite(number) for number in numbers), text


@pytest.mark.parametrize("place", ["fleet: Dead [A]", "queue: Dead letters [A]"])
async def test_d4_before_anything_dies_the_dlq_holds_zero(the_world: World, place: str) -> None:
    [query] = [query for query in PROMQL if str(query) == place]
    text = expand.promql(query.target["expr"], scope_of(query, the_world.run, ""))
    [series] = the_world.promql(text, instant=False)
    numbers = [float(value) for _, value in series["values"]]
    assert (numbers[0], numbers[-1]) == (0, 1)


@pytest.mark.parametrize("query", [query for query in ALL if "variable" in query.target], ids=str)
async def test_d4_the_job_is_found(the_world: World, query: Query) -> None:
    found = re.fullmatch(r"label_values\((\w+), (\w+)\)", query.target["variable"])
    assert found is not None
    assert {one["metric"][found[2]] for one in the_world.prometheus.query(found[1])} == {"tracekit"}


@pytest.mark.parametrize("query", [query for query in PROMQL if query.target.get("exemplar")], ids=str)
async def test_exemplars_lead_to_traces(the_world: World, query: Query) -> None:
    run = the_world.run
    found = the_world.prometheus.exemplars(
        expand.promql(query.target["expr"], scope_of(query, run, "")), run.begins, run.ends
    )
    traces = {exemplar["labels"]["trace_id"] for one in found for exemplar in one["exemplars"]}
    _, rows = the_world.sql("SELECT trace_id FROM grafana.tasks")
    assert traces
    assert traces <= {trace_id for (trace_id,) in rows}


@pytest.mark.parametrize("by", ["model", "mode", "persona", "requester", "origin"])
async def test_d3_spend_is_parted_by(the_world: World, by: str) -> None:
    [query] = [query for query in SQL if query.place == "Cost by day [A]"]
    scope = scope_of(query, the_world.scope, "").having(by=Values([by]))
    columns, rows = the_world.sql(expand.sql(query.target["rawSql"], scope))
    assert len({row[columns.index("metric")] for row in rows}) > 1
    real = scope.having(synthetic=Values(["false"]))
    _, some = the_world.sql(expand.sql(query.target["rawSql"], real))
    assert 0 < len(some) < len(rows)
    assert not [row for row in some if "(synthetic)" in str(row)], "what is made up says so, and can be left out"


@pytest.mark.parametrize("query", SQL, ids=str)
async def test_t10_nothing_restricted_is_shown(the_world: World, query: Query) -> None:
    secret = trace_of(the_world, "secret")
    scope = scope_of(query, the_world.scope, secret)
    _, rows = the_world.sql(expand.sql(query.target["rawSql"], scope))
    assert SECRET not in str(rows)


@pytest.fixture(scope="session")
def nothing(postgres: ThrowawayServer, template: str) -> Iterator[psycopg.Connection[Any]]:
    """A database in which nothing has happened yet, as the dashboards' role sees it."""
    with psycopg.connect(postgres.create_database(template=template), autocommit=True) as connection:
        connection.execute("SET ROLE tracekit_grafana")
        yield connection


@pytest.mark.parametrize("query", SQL, ids=str)
async def test_queries_run_where_nothing_has_happened_yet(nothing: psycopg.Connection[Any], query: Query) -> None:
    scope = scope_of(query, YESTERDAY, "0" * 32)
    nothing.execute(expand.sql(query.target["rawSql"], scope).encode())
    # Where there is no task, the variable has no value.
    nothing.execute(expand.sql(query.target["rawSql"], scope.having(task=Values([]))).encode())


@pytest.mark.parametrize("query", [query for query in SQL if query.panel], ids=str)
async def test_overrides_and_links_name_columns_of_the_query(nothing: psycopg.Connection[Any], query: Query) -> None:
    scope = scope_of(query, YESTERDAY, "0" * 32)
    cursor = nothing.execute(expand.sql(query.target["rawSql"], scope).encode())
    columns = {column.name for column in cursor.description or []}
    overrides = query.panel["fieldConfig"]["overrides"]
    assert {override["matcher"]["options"] for override in overrides} <= columns
    linked = re.findall(r"__data\.fields\.(\w+)", str(overrides))
    assert set(linked) <= columns


def metrics_in(texts: Sequence[str]) -> set[str]:
    return {name for text in texts for name in re.findall(r"\btracekit_\w+", text)}


def test_d6_no_metric_is_named_that_the_catalogue_has_not() -> None:
    emitted = set()
    for metric in CATALOGUE:
        emitted |= (
            {f"{metric.name}_{kind}" for kind in ("bucket", "sum", "count")}
            if metric.type == "histogram"
            else {metric.name}
        )
    named = metrics_in([query.target.get("expr") or query.target.get("variable", "") for query in ALL])
    assert named
    assert named - emitted == set()

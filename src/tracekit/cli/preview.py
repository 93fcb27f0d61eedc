"""`tracekit dashboards preview`: what a dashboard's panels would show, in the terminal.

The queries are those of Grafana's JSON, with its variables and macros replaced here: SQL is asked of the configured
database, PromQL of a Prometheus. What Tempo and Loki would show is not.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import click
import httpx
from psycopg import AsyncConnection
from psycopg.rows import tuple_row

from tracekit.cli.app import App, operator_only, pass_app
from tracekit.cli.output import (
    STATES,
    colour,
    duration,
    json_option,
    print_json,
    print_table,
    timestamp,
    tokens,
)
from tracekit.cli.parameters import DURATION
from tracekit.cost.money import dollars
from tracekit.dashboards import NAMES, expand
from tracekit.dashboards.expand import Scope, Values
from tracekit.errors import TracekitError
from tracekit.workers.substrate import Substrate
from tracekit.workers.words import one_line

TIMEOUT_S = 30

_SINCE = re.compile(r"now-(\d+)([smhdw])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_SPARKS = "▁▂▃▄▅▆▇█"
_WIDTH = 40
"""Cells of a sparkline."""


class PreviewError(TracekitError):
    """What is asked for is not there."""

    exit_code = 2


@dataclass(slots=True)
class Answer:
    """What a query gave: rows, or series of points, or the reason why it was not asked."""

    source: str
    query: str
    columns: list[str] = field(default_factory=list)
    rows: list[Sequence[Any]] = field(default_factory=list)
    series: list[dict[str, Any]] = field(default_factory=list)
    """`{"name", "points"}`: each point a time and a number."""
    not_asked: str = ""


@click.command(
    epilog="""\b
Examples:
  tracekit dashboards preview fleet
  tracekit dashboards preview queue "dead letters" --from 2d
  tracekit dashboards preview task --task 01K9GQ7F3M0000000000000000
  tracekit dashboards preview budget --var by=persona --json
"""
)
@click.argument("dashboard", type=click.Choice(NAMES))
@click.argument("panel", required=False)
@click.option("--task", help="A task's id or its trace's: whose drilldown. [default: the newest]")
@click.option("--from", "since", type=DURATION, help="How far back to look. [default: as the dashboard]")
@click.option("--var", "settings", multiple=True, metavar="NAME=VALUE", help="A variable; several values with commas.")
@click.option("--prometheus-url", help="Where to ask PromQL. [default: prometheus.url of the configuration]")
@json_option
@pass_app
def preview(
    app: App,
    dashboard: str,
    panel: str | None,
    task: str | None,
    since: timedelta | None,
    settings: tuple[str, ...],
    prometheus_url: str | None,
    as_json: bool,
) -> None:
    """Show what a dashboard's panels would show: all of them, or those with PANEL in their title."""
    from tracekit.dashboards import bundle

    operator_only(app, "dashboards")
    data = bundle.dashboard(dashboard)
    chosen = [one for one in data["panels"] if one["type"] != "row" and (panel or "").lower() in one["title"].lower()]
    if not chosen:
        titles = ", ".join(one["title"] for one in data["panels"] if one["type"] != "row")
        raise PreviewError(f"{dashboard} has no panel {panel!r}", hint=f"its panels: {titles}")
    url = (prometheus_url if prometheus_url is not None else app.settings.prometheus.url).rstrip("/")
    given = dict(_setting(one, data) for one in settings)

    async def command(substrate: Substrate) -> list[tuple[dict[str, Any], list[Answer]]]:
        async with substrate.queue.connection() as connection, connection.transaction():
            await connection.execute("SET TRANSACTION READ ONLY")
            await connection.execute(f"SET LOCAL statement_timeout = '{TIMEOUT_S}s'".encode())
            scope = await _scope(connection, data, given, task, since)
            async with httpx.AsyncClient(base_url=url, timeout=TIMEOUT_S) as http:
                return [
                    (one, [await _ask(connection, http if url else None, target, scope) for target in one["targets"]])
                    for one in chosen
                ]

    shown = app.run(command, name="dashboards")
    if as_json:
        print_json([_as_data(one, answers) for one, answers in shown])
        return
    for number, (one, answers) in enumerate(shown):
        if number:
            click.echo()
        _print(one, answers)


def _setting(text: str, data: Mapping[str, Any]) -> tuple[str, Values]:
    name, equals, value = text.partition("=")
    known = [one["name"] for one in data["templating"]["list"] if one["type"] != "datasource"]
    if not equals or name not in known:
        raise PreviewError(f"--var {text}: there is no such variable", hint=f"one of {', '.join(known)}, as NAME=VALUE")
    return name, Values(value.split(","))


# --- what is asked ----------------------------------------------------------------------------------------------------


async def _scope(
    connection: AsyncConnection[Any],
    data: Mapping[str, Any],
    given: Mapping[str, Values],
    task: str | None,
    since: timedelta | None,
) -> Scope:
    """The time range and the variables, each as it is when the dashboard is opened."""
    now = datetime.now(UTC)
    back = _SINCE.fullmatch(data["time"]["from"])
    assert back is not None, "our dashboards go back from now"
    begins, ends = now - (since or timedelta(seconds=int(back[1]) * _SECONDS[back[2]])), now
    variables = {one["name"]: one for one in data["templating"]["list"] if one["type"] != "datasource"}
    if task is not None:
        if "task" not in variables:
            raise PreviewError("only the dashboard task is about one task")
        cursor = await connection.execute(
            "SELECT trace_id, title, created_at, ended_at FROM grafana.tasks"
            " WHERE task_id = ANY (grafana.tasks_of(lower(%(id)s)) || upper(%(id)s))",
            {"id": task},
        )
        row = await cursor.fetchone()
        if row is None:
            raise PreviewError(f"there is no task {task}", hint="tracekit tasks lists them")
        given = {**given, "task": Values([row[0]], texts=[row[1]])}
        if since is None:
            begins, ends = row[2] - timedelta(minutes=1), (row[3] or now) + timedelta(minutes=1)
    scope = Scope(begins, ends)
    for name, one in variables.items():
        scope = scope.having(**{name: given.get(name) or await _opened(connection, one, scope)})
    return scope


async def _opened(connection: AsyncConnection[Any], variable: Mapping[str, Any], scope: Scope) -> Values:
    """A variable's value when the dashboard is opened."""
    if variable.get("includeAll"):
        return Values(raw=variable["allValue"])
    if variable["type"] != "query":
        value = variable.get("current", {}).get("value", variable["query"])
        return Values([value] if isinstance(value, str) else value)
    cursor = await connection.execute(expand.sql(variable["query"], scope).encode())
    row = await cursor.fetchone()
    if row is None:
        raise PreviewError(f"there is no {variable['name']} in the time range", hint="--from looks further back")
    return Values([str(row[0])], texts=[str(row[-1])])


async def _ask(
    connection: AsyncConnection[Any], http: httpx.AsyncClient | None, target: Mapping[str, Any], scope: Scope
) -> Answer:
    source = target["datasource"]["type"]
    if "rawSql" in target:
        query = expand.sql(target["rawSql"], scope)
        async with connection.cursor(row_factory=tuple_row) as cursor:
            await cursor.execute(query.encode())
            rows = await cursor.fetchall()
            columns = [column.name for column in cursor.description or []]
        answer = Answer("postgresql", query, columns, list(rows))
        if target["format"] == "time_series":
            answer.series = _series(columns, rows)
        return answer
    if source != "prometheus":
        query = expand.text(target.get("query") or target["expr"], scope)
        return Answer(source, query, not_asked=f"{source.capitalize()} is not asked here: open it in Grafana")
    query = expand.promql(target["expr"], scope)
    if http is None:
        return Answer(source, query, not_asked="no Prometheus is known: --prometheus-url, or prometheus.url")
    return await _ask_prometheus(http, target, query, scope)


async def _ask_prometheus(http: httpx.AsyncClient, target: Mapping[str, Any], query: str, scope: Scope) -> Answer:
    instant = target.get("instant") is True
    parameters = {"query": query, "time": str(scope.ends.timestamp())}
    if not instant:
        begins, ends = (str(at.timestamp()) for at in (scope.begins, scope.ends))
        parameters = {"query": query, "start": begins, "end": ends, "step": expand.duration(scope.step)}
    try:
        response = await http.get("/api/v1/query" if instant else "/api/v1/query_range", params=parameters)
        data = response.json()
    except (httpx.HTTPError, ValueError) as error:
        raise TracekitError(
            f"{http.base_url.host} is no Prometheus that answers: {type(error).__name__}", hint="see --prometheus-url"
        ) from None
    if data.get("status") != "success":
        raise TracekitError(f"Prometheus refused {one_line(query)}: {data.get('error')}")
    series = [
        {
            "name": _legend(target["legendFormat"], one["metric"]),
            "points": [
                (datetime.fromtimestamp(at, UTC), float(value)) for at, value in one.get("values") or [one["value"]]
            ],
        }
        for one in data["data"]["result"]
    ]
    return Answer("prometheus", query, series=series)


def _legend(format: str, labels: Mapping[str, str]) -> str:
    if format == "__auto":
        return ", ".join(f"{name}: {value}" for name, value in labels.items()) or "value"
    return re.sub(r"\{\{\s*(\w+)\s*\}\}", lambda label: labels.get(label[1], ""), format)


def _series(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[dict[str, Any]]:
    at, metric = columns.index("time"), columns.index("metric")
    value = next(i for i in range(len(columns)) if i not in (at, metric))
    found: dict[str, list[tuple[datetime, float]]] = defaultdict(list)
    for row in rows:
        found[row[metric]].append((row[at], float(row[value])))
    return [{"name": name, "points": points} for name, points in found.items()]


# --- what is shown ----------------------------------------------------------------------------------------------------


def _as_data(panel: Mapping[str, Any], answers: Sequence[Answer]) -> dict[str, Any]:
    return {
        "id": panel["id"],
        "title": panel["title"],
        "type": panel["type"],
        "description": panel["description"],
        "unit": _unit(panel),
        "queries": answers,
    }


def _unit(panel: Mapping[str, Any]) -> str:
    unit: str = panel.get("fieldConfig", {}).get("defaults", {}).get("unit", "")
    return unit


def _print(panel: Mapping[str, Any], answers: Sequence[Answer]) -> None:
    click.echo(click.style(panel["title"], bold=True) if colour() else f"== {panel['title']}")
    _, _, empty = panel["description"].partition("\n\nNo data: ")
    for answer in answers:
        if answer.not_asked:
            click.echo(f"{answer.not_asked}\n  {one_line(answer.query)}")
        elif answer.rows and not answer.series:
            _print_rows(panel, answer)
    if series := [one for answer in answers for one in answer.series]:
        _print_series(series, _unit(panel))
    elif not any(answer.not_asked or answer.rows for answer in answers):
        click.echo(f"no data: {empty}")


def _print_series(series: Sequence[Mapping[str, Any]], unit: str) -> None:
    rows = []
    for one in series:
        numbers = [value for _, value in one["points"] if value == value]
        last = numbers[-1] if numbers else float("nan")
        rows.append(
            [one["name"], cell(last, unit), cell(max(numbers, default=last), unit), sparkline(numbers, _WIDTH)]
            if len(one["points"]) > 1
            else [one["name"], cell(last, unit), "", ""]
        )
    print_table(["SERIES", "LAST", "MOST", "" if not any(row[3] for row in rows) else "OVER TIME"], rows)


def _print_rows(panel: Mapping[str, Any], answer: Answer) -> None:
    overrides = {
        override["matcher"]["options"]: {one["id"]: one.get("value") for one in override["properties"]}
        for override in panel.get("fieldConfig", {}).get("overrides", [])
    }
    shown = [name for name in answer.columns if not overrides.get(name, {}).get("custom.hidden")]
    places = [answer.columns.index(name) for name in shown]
    units = [overrides.get(name, {}).get("unit") or _unit(panel) for name in shown]
    print_table(
        [str(overrides.get(name, {}).get("displayName", name)).upper() for name in shown],
        [[cell(row[place], unit) for place, unit in zip(places, units, strict=True)] for row in answer.rows],
        [STATES.get(str(row[places[0]]), "") for row in answer.rows],
    )


def cell(value: Any, unit: str) -> str:
    """A value as Grafana would show it in this unit, or near it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, datetime):
        return timestamp(value)
    if not isinstance(value, int | float | Decimal):
        return "" if value is None else str(value)
    number = float(value)
    if number != number:
        return "–"
    match unit:
        case "s":
            return ("-" if number < 0 else "") + duration(timedelta(seconds=abs(number)))
        case "currencyUSD":
            return dollars(Decimal(str(value)))
        case "percentunit":
            return f"{number:.1%}"
        case "bool_yes_no":
            return "yes" if number else "no"
        case "bytes":
            return _bytes(number)
        case "cpm":
            return f"{number:.3g}/min"
    return tokens(int(number)) if number == int(number) else f"{number:.3g}"


def _bytes(number: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024:
            return f"{number:.3g} {unit}"
        number /= 1024
    return f"{number:.3g} TiB"


def sparkline(numbers: Sequence[float], width: int) -> str:
    """A graph of one line from 0 to the greatest; of more points than cells, each cell is the greatest of its own."""
    if not numbers:
        return ""
    size = max(1, -(-len(numbers) // width))
    greatest = [max(numbers[i : i + size]) for i in range(0, len(numbers), size)]
    top = max(greatest)
    if top <= 0:
        return _SPARKS[0] * len(greatest)
    return "".join(_SPARKS[min(7, int(max(0.0, value) / top * 7.999))] for value in greatest)

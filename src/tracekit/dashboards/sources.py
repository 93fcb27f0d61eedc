"""The four data sources, and the queries that panels, variables and annotations ask of them.

Which data source is asked is the reader's to choose: a variable of each dashboard names it, and its default is the uid
that tracekit's own provisioning gives it.
"""

from __future__ import annotations

import typing
from dataclasses import dataclass
from typing import Literal

from grafana_foundation_sdk.builders import dashboard, loki, prometheus, tempo
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.cog.variants import Dataquery
from grafana_foundation_sdk.models import common
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models.loki import LokiQueryType
from grafana_foundation_sdk.models.prometheus import PromQueryFormat
from grafana_foundation_sdk.models.tempo import SearchTableType

from tracekit.metrics import DATABASE_UP, Metric
from tracekit.promql import Match, Selector, Vector, any_of, matches, once, select, sum_by
from tracekit.promql import quantile as histogram_quantile

Target = Builder[Dataquery]

RATE = "$__rate_interval"
"""The window of a rate: wide enough for four scrapes, and for a pixel."""

MODE = matches("$mode")
"""The modes that the dashboard's variable names."""

AWAY = "the database is away, or no process of tracekit is scraped."
"""Why there is no data of a gauge that is read from the database."""


@dataclass(frozen=True, slots=True)
class Source:
    """A data source: the variable that chooses it, the uid that it has by default, and its plugin."""

    variable: str
    uid: str
    plugin: str
    label: str

    @property
    def ref(self) -> common.DataSourceRef:
        """How a query names it: by the variable."""
        return common.DataSourceRef(type_val=self.plugin, uid=f"${{{self.variable}}}")

    def chooser(self) -> Builder[models.VariableModel]:
        """The variable that chooses it."""
        return (
            dashboard.DatasourceVariable(self.variable)
            .label(f"{self.label} data source")
            .description(f"Where this dashboard reads {self.label}.")
            .type(self.plugin)
            .current(models.VariableOption(selected=True, text=self.uid, value=self.uid))
        )


PROMETHEUS = Source("prometheus", "tracekit-prometheus", "prometheus", "Prometheus")
POSTGRES = Source("postgres", "tracekit-postgres", "grafana-postgresql-datasource", "PostgreSQL")
TEMPO = Source("tempo", "tracekit-tempo", "tempo", "Tempo")
LOKI = Source("loki", "tracekit-loki", "loki", "Loki")


# --- PostgreSQL -------------------------------------------------------------------------------------------------------


class SqlQuery(Dataquery):
    """A query of the PostgreSQL data source, which the SDK has no model of.

    `table` shows the rows as they are. `time_series` wants a column `time`, one of numbers, and may have a column
    `metric` that names the series.
    """

    def __init__(self, sql: str, format: Literal["table", "time_series"], ref_id: str) -> None:
        self.sql = sql
        self.format = format
        self.ref_id = ref_id
        self.datasource = POSTGRES.ref

    def to_json(self) -> dict[str, object]:
        """As Grafana's query editor writes it in its mode for code."""
        return {
            "datasource": self.datasource,
            "editorMode": "code",
            "format": self.format,
            "rawQuery": True,
            "rawSql": self.sql,
            "refId": self.ref_id,
        }

    @classmethod
    def from_json(cls, data: dict[str, typing.Any]) -> typing.Self:
        """The inverse of `to_json`."""
        return cls(data["rawSql"], data["format"], data["refId"])


class _Sql(Builder[Dataquery]):
    def __init__(self, query: SqlQuery) -> None:
        self._query = query

    def build(self) -> Dataquery:
        return self._query


def sql(text: str, *, ref: str = "A") -> Target:
    """Rows, as a table."""
    return _Sql(SqlQuery(tidy(text), "table", ref))


def sql_series(text: str, *, ref: str = "A") -> Target:
    """Rows with `time`, a number and perhaps `metric`, as series."""
    return _Sql(SqlQuery(tidy(text), "time_series", ref))


def tidy(text: str) -> str:
    """A query without the indentation that it has in Python."""
    lines = text.strip("\n").rstrip().splitlines()
    indent = min((len(line) - len(line.lstrip()) for line in lines if line.strip()), default=0)
    return "\n".join(line[indent:].rstrip() for line in lines)


def chosen(column: str, variable: str) -> str:
    """The condition that a column has one of a variable's values. All of them is `.*`, so that it is cheap to say.

    Between dollars, since the format escapes each dollar of a value and no apostrophe: `o'brien` would end the text.
    """
    return f"{column} ~ $$^(${{{variable}:regex}})\\Z$$"


def local(unit: Literal["day", "week"], at: str) -> str:
    """The beginning of the day or week that a moment is in, by the clock of whoever looks, as Grafana shows times."""
    return f"date_trunc('{unit}', {at} AT TIME ZONE '${{__timezone}}') AT TIME ZONE '${{__timezone}}'"


# --- Prometheus -------------------------------------------------------------------------------------------------------


def series(
    metric: Metric, kind: Literal["", "bucket", "sum", "count"] = "", /, **labels: str | Match | tuple[str, ...]
) -> Selector:
    """The series of a metric in the jobs that the dashboard's variable names."""
    return select(metric, kind, job=matches("$job"), **labels)


def shared(metric: Metric, /, **labels: str | Match | tuple[str, ...]) -> Vector:
    """A gauge that is read from the database: each process shows the same, so it counts once."""
    return once(series(metric, **labels))


def or_zero(vector: Vector) -> Vector:
    """A sum of gauges that are read from the database, where nothing is no series; while it is away, zero would be a
    lie.
    """
    return any_of(vector, sum_by(series(DATABASE_UP).equals(1)) * 0)


def per_minute(vector: Vector) -> Vector:
    """A rate for people."""
    return vector * 60


def quantile(q: float, metric: Metric, /, *by: str, **labels: str | Match | tuple[str, ...]) -> Vector:
    """A histogram's quantile over the rate window."""
    return histogram_quantile(q, metric, RATE, *by, job=matches("$job"), **labels)


def promql(expression: Vector, legend: str = "", *, ref: str = "A", exemplars: bool = False) -> Target:
    """A series over the time range. `legend` may name labels: `{{mode}}`. Exemplars lead to their traces."""
    query = (
        prometheus.Dataquery()
        .datasource(PROMETHEUS.ref)
        .expr(str(expression))
        .legend_format(legend or "__auto")
        .range()
        .ref_id(ref)
    )
    return query.exemplar(True) if exemplars else query


def promql_now(expression: Vector, legend: str = "", *, ref: str = "A") -> Target:
    """The value at the end of the time range."""
    return (
        prometheus.Dataquery()
        .datasource(PROMETHEUS.ref)
        .expr(str(expression))
        .legend_format(legend or "__auto")
        .instant()
        .format(PromQueryFormat.TIME_SERIES)
        .ref_id(ref)
    )


# --- Tempo and Loki ---------------------------------------------------------------------------------------------------


def trace(trace_id: str, *, ref: str = "A") -> Target:
    """One whole trace, by its id."""
    return tempo.Dataquery().datasource(TEMPO.ref).query_type("traceql").query(trace_id).ref_id(ref)


def traceql(query: str, *, limit: int, ref: str = "A") -> Target:
    """A table of the traces that a TraceQL query finds."""
    return (
        tempo.Dataquery()
        .datasource(TEMPO.ref)
        .query_type("traceql")
        .query(query)
        .limit(limit)
        .table_type(SearchTableType.TRACES)
        .ref_id(ref)
    )


def logql(query: str, *, limit: int, ref: str = "A") -> Target:
    """The lines that a LogQL query finds."""
    return (
        loki.Dataquery().datasource(LOKI.ref).expr(query).query_type(LokiQueryType.RANGE).max_lines(limit).ref_id(ref)
    )

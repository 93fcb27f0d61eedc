"""The variables that dashboards share."""

from __future__ import annotations

from collections.abc import Sequence

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models import dashboard as models

from tracekit.dashboards.sources import POSTGRES, PROMETHEUS, tidy
from tracekit.metrics import DATABASE_UP

Variable = Builder[models.VariableModel]

ALL = models.VariableOption(selected=True, text=["All"], value=["$__all"])


def from_sql(name: str, label: str, description: str, query: str) -> dashboard.QueryVariable:
    """Values that a query finds, anew with each time range: of one column, or of `__value` and `__text`."""
    return (
        dashboard.QueryVariable(name)
        .label(label)
        .description(description)
        .datasource(POSTGRES.ref)
        .query(tidy(query))
        .definition(tidy(query))
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(models.VariableSort.DISABLED)
    )


def several(name: str, label: str, description: str, query: str) -> Variable:
    """Any number of the values that a query finds; all of them at first, which is the pattern `.*`."""
    return from_sql(name, label, description, query).multi(True).include_all(True).all_value(".*").current(ALL)


def one_of(name: str, label: str, description: str, values: Sequence[str]) -> Variable:
    """One of these; at first the first."""
    return (
        dashboard.CustomVariable(name)
        .label(label)
        .description(description)
        .values(",".join(values))
        .allow_custom_value(False)
        .current(models.VariableOption(selected=True, text=values[0], value=values[0]))
    )


def some_of(name: str, label: str, description: str, values: Sequence[str]) -> Variable:
    """Any number of these, all of them at first."""
    return (
        dashboard.CustomVariable(name)
        .label(label)
        .description(description)
        .values(",".join(values))
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .allow_custom_value(False)
        .current(ALL)
    )


def text(name: str, label: str, description: str) -> Variable:
    """What somebody types."""
    return dashboard.TextBoxVariable(name).label(label).description(description).default_value("")


def job() -> Variable:
    """Which of Prometheus's jobs: where it scrapes two installations, each is a job of its own."""
    query = f"label_values({DATABASE_UP.name}, job)"
    return (
        dashboard.QueryVariable("job")
        .label("Job")
        .description("Prometheus's job that scrapes tracekit: one for each installation.")
        .datasource(PROMETHEUS.ref)
        .query({"qryType": 1, "query": query, "refId": "PrometheusVariableQueryEditor-VariableQuery"})
        .definition(query)
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(models.VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".+")
        .current(ALL)
    )


def mode() -> Variable:
    """Modes in which a hop was in the time range."""
    return several(
        "mode",
        "Mode",
        "Modes that a task visited in the time range.",
        "SELECT DISTINCT mode FROM grafana.hops WHERE $__timeFilter(created_at) ORDER BY mode",
    )


def requester() -> Variable:
    """Who asked for something in the time range."""
    return several(
        "requester",
        "Requester",
        "Who asked.",
        "SELECT DISTINCT requester FROM grafana.tasks WHERE $__timeFilter(created_at) ORDER BY requester",
    )


def synthetic() -> Variable:
    """Whether what a demonstration made up is shown."""
    return some_of(
        "synthetic",
        "Synthetic",
        "false: what was really run and spent. true: what `tracekit demo --week` made up, which is marked (synthetic).",
        ["false", "true"],
    )

"""What all five dashboards have: name, place, links to one another, and the marks of deploys and incidents."""

from __future__ import annotations

from collections.abc import Sequence

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.models import dashboard as models

from tracekit.dashboards.panels import Column, Panel
from tracekit.dashboards.sources import POSTGRES, Source, chosen, sql
from tracekit.dashboards.variables import Variable

TAG = "tracekit"
TASK = "tracekit-task"

SYNTHETIC = "CASE WHEN synthetic THEN '(synthetic) ' ELSE '' END"
"""The mark of what a demonstration made up. It stands first: tables and legends cut off the end."""

TITLE = f"{SYNTHETIC} || title AS title"
"""A task's title, marked."""

STATE_NOW = "CASE WHEN state = 'open' THEN coalesce(queue_state, 'open') ELSE state END AS state"
"""A task's state, and of an open one what its hop does: waits, runs, rests, is parked."""

MINE = f"{chosen('requester', 'requester')} AND {chosen('synthetic::text', 'synthetic')}"
"""Of `grafana.tasks`: those of the requesters that are chosen, made up or not."""


def drilldown(created: str = "created_at", ended: str = "ended_at") -> str:
    """The columns that `TASK_COLUMNS` link with: the task, and the time from a minute before to a minute after it."""
    return (
        f'trace_id, ((extract(epoch FROM {created}) - 60) * 1000)::bigint::text AS "from",'
        f" coalesce(((extract(epoch FROM {ended}) + 60) * 1000)::bigint::text, 'now') AS \"to\""
    )


TO_TASK = (
    "Open the task",
    f"/d/{TASK}?var-task=${{__data.fields.trace_id}}&from=${{__data.fields.from}}&to=${{__data.fields.to}}",
)

TASK_COLUMNS = {
    "trace_id": Column(hidden=True),
    "from": Column(hidden=True),
    "to": Column(hidden=True),
    "title": Column(links=(TO_TASK,), width=360),
}
"""Of a table of tasks: a click on a title opens the task, in its own time."""


class Dashboard:
    """A dashboard that is being put together, row by row."""

    def __init__(
        self,
        uid: str,
        title: str,
        description: str,
        *,
        sources: Sequence[Source],
        variables: Sequence[Variable],
        since: str,
        refresh: str = "1m",
    ) -> None:
        self._dashboard = (
            dashboard.Dashboard(title)
            .uid(uid)
            .description(description)
            .tags([TAG])
            .time(since, "now")
            .timezone("browser")
            .refresh(refresh)
            .tooltip(models.DashboardCursorSync.CROSSHAIR)
            .readonly()
            .links(
                [
                    dashboard.DashboardLink("tracekit")
                    .type(models.DashboardLinkType.DASHBOARDS)
                    .tags([TAG])
                    .keep_time(True)
                    .as_dropdown(False)
                ]
            )
            .variables([*(source.chooser() for source in sources), *variables])
            .annotations([_deploys(), _incidents()])
        )

    def row(self, title: str, *panels: Panel, repeat: str = "") -> None:
        """A row and its panels. With `repeat`, once for each value of that variable; it has to be the last row, since
        whatever comes after a repeated row is repeated with it.
        """
        row = dashboard.Row(title)
        self._dashboard.with_row(row.repeat(repeat) if repeat else row)
        for panel in panels:
            self._dashboard.with_panel(panel)

    def build(self) -> models.Dashboard:
        """The dashboard, its panels numbered from 1."""
        built = self._dashboard.build()
        for number, panel in enumerate(built.panels or [], 1):
            panel.id_val = number
        # The SDK would hide links and marks in a menu, and has no other way to say where they are to be.
        for link in built.links or []:
            link.placement = None  # type: ignore[assignment]
        for mark in built.annotations.list_val or []:
            mark.placement = None  # type: ignore[assignment]
        return built


def _mark(name: str, colour: str, query: str) -> dashboard.AnnotationQuery:
    mark = dashboard.AnnotationQuery().name(name).datasource(POSTGRES.ref).enable(True).icon_color(colour)
    return mark.target(sql(query, ref="Anno"))


def _deploys() -> dashboard.AnnotationQuery:
    return _mark(
        "Deploys",
        "blue",
        """
        SELECT at AS "time", ended_at AS timeend, title || ' (' || state || ')' AS text, 'flux,' || state AS tags
        FROM grafana.changes
        WHERE kind = 'flux' AND $__timeFilter(at)
        ORDER BY at
        """,
    )


def _incidents() -> dashboard.AnnotationQuery:
    return _mark(
        "Incidents",
        "red",
        """
        SELECT at AS "time", ended_at AS timeend, title AS text, 'incident' AS tags
        FROM grafana.incidents
        WHERE $__timeFilter(at)
        ORDER BY at
        """,
    )

"""Panels: what the SDK offers, with what every panel here must have.

Each has a title, says what it shows, what its unit is, and what it means when there is nothing to show. Widths are of
the 24 columns that a dashboard has, heights in its rows of 30 pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from grafana_foundation_sdk.builders import (
    bargauge,
    common,
    dashboard,
    logs,
    stat,
    statetimeline,
    table,
    timeseries,
)
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models import common as common_models
from grafana_foundation_sdk.models import dashboard as models

from tracekit.dashboards.sources import Target

COLOURS = {
    "open": "blue",
    "ready": "light-blue",
    "scheduled": "semi-dark-yellow",
    "running": "blue",
    "parked": "purple",
    "pending": "purple",
    "done": "green",
    "approved": "green",
    "dead": "dark-red",
    "failed": "red",
    "expired": "orange",
    "rejected": "orange",
    "abandoned": "semi-dark-red",
}
"""States of tasks, hops and approvals, the same colour everywhere."""

Links = Sequence[tuple[str, str]]
"""Titles and addresses."""


@dataclass(frozen=True, slots=True)
class Column:
    """How a table shows a column, where that is not as it comes."""

    unit: str = ""
    label: str = ""
    """Its heading; empty: its name, with spaces."""
    links: Links = ()
    hidden: bool = False
    """Only links need it."""
    width: int = 0
    states: bool = False
    """Coloured as the states are."""


class _Panel(Builder[models.Panel]):
    """A panel that is ready."""

    def __init__(self, panel: models.Panel) -> None:
        self._panel = panel

    def build(self) -> models.Panel:
        return self._panel


Panel = Builder[models.Panel]


def time_series(
    title: str,
    about: str,
    targets: Sequence[Target],
    *,
    empty: str,
    unit: str,
    width: int = 12,
    height: int = 8,
    stacked: bool = False,
    bars: bool = False,
    named_by_metric: bool = False,
    interval: str = "",
) -> Panel:
    """Series over time. `named_by_metric`: each is named by the column `metric` of its query."""
    panel = (
        timeseries.Panel()
        .fill_opacity(60 if bars else 25 if stacked else 8)
        .line_width(1)
        .show_points(common_models.VisibilityMode.NEVER if bars else common_models.VisibilityMode.AUTO)
        .span_nulls(False)
        .axis_soft_min(0)
        .draw_style(common_models.GraphDrawStyle.BARS if bars else common_models.GraphDrawStyle.LINE)
        .legend(
            common.VizLegendOptions()
            .display_mode(common_models.LegendDisplayMode.TABLE)
            .placement(common_models.LegendPlacement.BOTTOM)
            .show_legend(True)
            .calcs(["sum"] if bars else ["lastNotNull", "max"])
        )
        .tooltip(
            common.VizTooltipOptions()
            .mode(common_models.TooltipDisplayMode.MULTI)
            .sort(common_models.SortOrder.DESCENDING)
        )
    )
    if stacked or bars:
        panel = panel.stacking(common.StackingConfig().mode(common_models.StackingMode.NORMAL).group("A"))
    if named_by_metric:
        panel = panel.display_name("${__field.labels.metric}")
    if interval:
        panel = panel.interval(interval)
    return _said(panel.build(), title, about, empty, unit, targets, width, height)


def number(
    title: str,
    about: str,
    targets: Sequence[Target],
    *,
    empty: str,
    unit: str,
    width: int = 4,
    height: int = 4,
    red_from: float | None = None,
    columns: Mapping[str, Column] | None = None,
    links: Links = (),
) -> Panel:
    """One number, or one for each column of a row. `red_from` is the value from which it is bad news."""
    steps = [models.Threshold(value=None, color="text" if red_from is None else "green")]
    if red_from is not None:
        steps.append(models.Threshold(value=red_from, color="red"))
    panel = (
        stat.Panel()
        .color_mode(common_models.BigValueColorMode.VALUE)
        .graph_mode(common_models.BigValueGraphMode.NONE)
        .text_mode(common_models.BigValueTextMode.VALUE_AND_NAME if columns else common_models.BigValueTextMode.AUTO)
        .wide_layout(False)
        .reduce_options(
            common.ReduceDataOptions().calcs(["lastNotNull"]).fields("/.*/" if columns else "").values(False)
        )
        .thresholds(dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(steps))
        .mappings([])
        .no_value("–")
    )
    for name, column in (columns or {}).items():
        panel = panel.override_by_name(name, _properties(name, column, in_table=False))
    if links:
        panel = panel.data_links([dashboard.DashboardLink(text).url(url) for text, url in links])
    return _said(panel.build(), title, about, empty, unit, targets, width, height)


def rows(
    title: str,
    about: str,
    target: Target,
    *,
    empty: str,
    columns: Mapping[str, Column],
    unit: str = "short",
    width: int = 24,
    height: int = 8,
) -> Panel:
    """A table. `columns` says how those are shown that need it; `unit` is that of the numbers among the others."""
    panel = (
        table.Panel()
        .show_header(True)
        .cell_height(common_models.TableCellHeight.SM)
        .filterable(True)
        .no_value(empty)
        .mappings([])
    )
    for name, column in columns.items():
        panel = panel.override_by_name(name, _properties(name, column, in_table=True))
    return _said(panel.build(), title, about, empty, unit, [target], width, height)


def bars(
    title: str,
    about: str,
    target: Target,
    *,
    empty: str,
    unit: str,
    width: int = 8,
    height: int = 8,
) -> Panel:
    """A bar for each row: its first column names it, the next is its length."""
    panel = (
        bargauge.Panel()
        .orientation(common_models.VizOrientation.HORIZONTAL)
        .display_mode(common_models.BarGaugeDisplayMode.GRADIENT)
        .reduce_options(common.ReduceDataOptions().values(True).calcs(["lastNotNull"]).limit(25))
        .min(0)
        .no_value(empty)
    )
    return _said(panel.build(), title, about, empty, unit, [target], width, height)


def state_timeline(
    title: str, about: str, target: Target, *, empty: str, split_by: str, width: int = 24, height: int = 7
) -> Panel:
    """States over time, a line for each value of the column `split_by`."""
    panel = (
        statetimeline.Panel()
        .merge_values(True)
        .row_height(0.85)
        .show_value(common_models.VisibilityMode.AUTO)
        .mappings([_states()])
        .with_transformation(
            models.DataTransformerConfig(
                id_val="partitionByValues",
                options={"fields": [split_by], "keepFields": False, "naming": {"asLabels": True}},
            )
        )
        .display_name(f"${{__field.labels.{split_by}}}")
        .legend(common.VizLegendOptions().show_legend(False))
        .no_value(empty)
    )
    return _said(panel.build(), title, about, empty, "string", [target], width, height)


def traces(title: str, about: str, target: Target, *, empty: str, width: int = 24, height: int = 13) -> Panel:
    """A trace as a waterfall, which the SDK has no panel of."""
    return _said(dashboard.Panel().type("traces").build(), title, about, empty, "", [target], width, height)


def lines(title: str, about: str, target: Target, *, empty: str, width: int = 24, height: int = 9) -> Panel:
    """Log lines."""
    panel = (
        logs.Panel()
        .show_time(True)
        .wrap_log_message(True)
        .enable_log_details(True)
        .sort_order(common_models.LogsSortOrder.ASCENDING)
        .dedup_strategy(common_models.LogsDedupStrategy.NONE)
    )
    return _said(panel.build(), title, about, empty, "", [target], width, height)


def _said(
    panel: models.Panel,
    title: str,
    about: str,
    empty: str,
    unit: str,
    targets: Sequence[Target],
    width: int,
    height: int,
) -> Panel:
    panel.title = title
    panel.description = f"{about}\n\nNo data: {empty}"
    panel.targets = [target.build() for target in targets]
    # Each query names its own; a panel's is what its editor offers for the next.
    panel.datasource = getattr(panel.targets[0], "datasource")  # noqa: B009 (every query has one; their base does not)
    panel.grid_pos = models.GridPos(w=width, h=height)
    if unit:
        panel.field_config = panel.field_config or models.FieldConfigSource()
        panel.field_config.defaults.unit = unit
    return _Panel(panel)


def _properties(name: str, column: Column, *, in_table: bool) -> list[models.DynamicConfigValue]:
    label = column.label or name.replace("_", " ")
    found: list[tuple[str, object]] = [("displayName", label)] if label != name else []
    if column.unit:
        found.append(("unit", column.unit))
    if column.links:
        found.append(("links", [{"title": title, "url": url} for title, url in column.links]))
    if column.hidden:
        found.append(("custom.hidden", True))
    if column.width:
        found.append(("custom.width", column.width))
    if column.states:
        found.append(("mappings", [_states()]))
        if in_table:
            found.append(("custom.cellOptions", {"type": "color-text"}))
    return [models.DynamicConfigValue(id_val=key, value=value) for key, value in found]


def _states() -> models.ValueMap:
    return models.ValueMap(
        options={
            state: models.ValueMappingResult(text=state, color=colour, index=index)
            for index, (state, colour) in enumerate(COLOURS.items())
        }
    )

"""The rules of Grafana's dashboard-linter (https://github.com/grafana/dashboard-linter/tree/main/docs/rules), under
their own names, and what else every panel here must have. What is excluded says why.

target-promql-rule and target-logql-rule, that queries parse, are kept by running them: see test_queries.
"""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from tests.dashboards.bundled import FILES, Query, load, panels, queries, variables
from tests.support.processes import ROOT
from tracekit.dashboards.fleet import FAILURES
from tracekit.dashboards.sources import LOKI, POSTGRES, PROMETHEUS, TEMPO
from tracekit.metrics import CATALOGUE
from tracekit.workers.worker import OUTCOMES

EXCLUDED = {
    "template-datasource-rule": "Its names are for one kind of source: a dashboard here has up to three, and links and "
    "provisioning know them as prometheus, postgres, tempo and loki. Label, and that all are templated, are kept.",
    "template-instance-rule, target-instance-rule": "What the database says is the same in every instance, and panels "
    "show it once; what processes count is summed over them. Neither could be chosen by instance and stay true.",
    "panel-units-rule, of traces and logs": "Grafana shows neither in units.",
}
"""Rules that are not kept, or not in full, and why."""

UNITS = {
    "none", "string", "short", "percentunit", "currencyUSD", "bytes", "dateTimeAsIso", "dateTimeFromNow", "s", "cpm",
    "bool_yes_no",
}  # fmt: skip
"""Of the units that panel-units-rule takes, those in use."""

PANELS = [pytest.param(name, panel, id=f"{name}: {panel['title']}") for name in FILES for panel in panels(load(name))]
PROMQL = [query for query in queries() if "expr" in query.target and query.source == "prometheus"]


@pytest.mark.parametrize("name", FILES)
def test_template_datasource_rule(name: str) -> None:
    data = load(name)
    known = {source.variable: source for source in (PROMETHEUS, POSTGRES, TEMPO, LOKI)}
    found = [one for one in data["templating"]["list"] if one["type"] == "datasource"]
    assert found
    for one in found:
        source = known[one["name"]]
        assert (one["query"], one["label"], one["current"]["value"]) == (
            source.plugin,
            f"{source.label} data source",
            source.uid,
        )
    # Each is used, and the linter takes the first for that of PromQL.
    used = set(re.findall(r'"uid": "\$\{(\w+)\}"', str(data).replace("'", '"')))
    assert used == {one["name"] for one in found}
    if "prometheus" in used:
        assert found[0]["name"] == "prometheus"


@pytest.mark.parametrize("name", [name for name in FILES if '"prometheus"' in str(load(name)).replace("'", '"')])
def test_template_job_rule(name: str) -> None:
    [job] = [one for one in variables(load(name)) if one["name"] == "job"]
    assert (job["label"], job["allValue"], job["multi"], job["includeAll"]) == ("Job", ".+", True, True)
    assert job["datasource"]["uid"] == "${prometheus}"
    assert job["query"]["query"].startswith("label_values(")


@pytest.mark.parametrize("name", FILES)
def test_template_on_time_change_reload_rule(name: str) -> None:
    for one in variables(load(name)):
        assert one["type"] != "query" or one["refresh"] == 2, one["name"]


@pytest.mark.parametrize("name", FILES)
def test_uneditable_dashboard_rule(name: str) -> None:
    assert load(name)["editable"] is False


@pytest.mark.parametrize(("name", "panel"), PANELS)
def test_panel_datasource_rule(name: str, panel: dict[str, Any]) -> None:
    chosen = {one["name"] for one in load(name)["templating"]["list"] if one["type"] == "datasource"}
    for one in (panel, *panel["targets"]):
        assert one["datasource"]["uid"].removeprefix("${").removesuffix("}") in chosen


@pytest.mark.parametrize(("name", "panel"), PANELS)
def test_panel_title_description_rule_and_what_no_data_means(name: str, panel: dict[str, Any]) -> None:
    about, marked, empty = panel["description"].partition("\n\nNo data: ")
    assert panel["title"]
    assert about.endswith(".")
    assert marked
    assert empty.endswith(".")


COUNTERS = {metric.name for metric in CATALOGUE if (metric.type, metric.source) == ("counter", "process")}
"""They are shown at 0 from the start of the process that counts."""

COUNTED = [
    query
    for query in PROMQL
    if set(re.findall(r"\btracekit_\w+", query.target["expr"])) <= COUNTERS
    and not re.search(r" [/>] ", query.target["expr"])
]


@pytest.mark.parametrize("query", COUNTED, ids=str)
def test_no_data_of_what_is_counted_from_zero_means_that_nobody_scrapes_it(query: Query) -> None:
    empty = query.panel["description"].partition("\n\nNo data: ")[2]
    assert re.fullmatch(r"(no (worker|process) [^:,]*is|ingress is not) scraped\.( A line at 0: .*)?", empty)


def test_the_outcomes_that_count_as_failures_are_outcomes_of_attempts() -> None:
    assert set(FAILURES) <= set(OUTCOMES)
    [query] = [query for query in PROMQL if query.place == "Success by mode [A]"]
    assert "|".join(FAILURES) in query.target["expr"]


def test_what_is_made_up_has_one_mark() -> None:
    marks = [re.findall(r"WHEN synthetic THEN ('.*?')", query.target.get("rawSql", "")) for query in queries()]
    assert {mark for found in marks for mark in found} == {"'(synthetic) '"}


@pytest.mark.parametrize(("name", "panel"), PANELS)
def test_panel_no_targets_rule(name: str, panel: dict[str, Any]) -> None:
    refs = [target["refId"] for target in panel["targets"]]
    assert refs
    assert len(set(refs)) == len(refs)


@pytest.mark.parametrize(("name", "panel"), PANELS)
def test_panel_units_rule(name: str, panel: dict[str, Any]) -> None:
    if panel["type"] in ("traces", "logs"):
        return
    config = panel["fieldConfig"]
    assert config["defaults"]["unit"] in UNITS
    for override in config["overrides"]:
        assert {one["value"] for one in override["properties"] if one["id"] == "unit"} <= UNITS


@pytest.mark.parametrize("query", PROMQL, ids=str)
def test_target_job_rule(query: Query) -> None:
    selectors = re.findall(r"\btracekit_\w+(\{[^}]*\})?", query.target["expr"])
    assert selectors
    for matchers in selectors:
        assert 'job=~"$job"' in matchers


@pytest.mark.parametrize("query", PROMQL, ids=str)
def test_target_rate_interval_rule(query: Query) -> None:
    assert set(re.findall(r"\[([^\]]*)\]", query.target["expr"])) <= {"$__rate_interval"}


@pytest.mark.parametrize("query", PROMQL, ids=str)
def test_target_counter_agg_rule(query: Query) -> None:
    counters = re.findall(r"\btracekit_\w+_(?:total|bucket|sum|count)\b", query.target["expr"])
    rated = re.findall(r"\b(?:rate|increase)\(tracekit_\w+_(?:total|bucket|sum|count)\b", query.target["expr"])
    assert len(counters) == len(rated)


@pytest.mark.parametrize("query", [query for query in queries() if query.source == "loki"], ids=str)
def test_target_logql_auto_rule(query: Query) -> None:
    assert "[" not in query.target["expr"], "no range is in use; one would have to be $__auto"


# --- beyond the linter ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
def test_panels_have_ids_and_places_of_their_own(name: str) -> None:
    shown = load(name)["panels"]
    assert [panel["id"] for panel in shown] == list(range(1, len(shown) + 1))
    taken: set[tuple[int, int]] = set()
    for panel in shown:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        taken |= cells


@pytest.mark.parametrize("name", FILES)
def test_uids_are_stable_and_dashboards_lead_to_one_another(name: str) -> None:
    data = load(name)
    assert data["uid"] == f"tracekit-{name.removesuffix('.json')}"
    assert data["tags"] == ["tracekit"]
    [link] = data["links"]
    assert (link["type"], link["tags"]) == ("dashboards", ["tracekit"])
    assert [one["name"] for one in data["annotations"]["list"]] == ["Deploys", "Incidents"]
    uids = {load(other)["uid"] for other in FILES}
    assert set(re.findall(r"/d/([\w-]+)", str(data))) <= uids


def test_d5_links_of_alerts_lead_to_dashboards_and_fill_variables_that_they_have() -> None:
    boards = {load(name)["uid"]: {one["name"] for one in variables(load(name))} for name in FILES}
    rules = yaml.safe_load((ROOT / "alerts" / "tracekit.rules.yaml").read_text())
    links = {
        rule["annotations"]["dashboard_url"] for group in rules["groups"] for rule in group["rules"] if "alert" in rule
    }
    assert links
    for link in links:
        found = re.fullmatch(r"[^?]*/d/([\w-]+)(?:\?(.*))?", link)
        assert found is not None, link
        assert set(re.findall(r"(?:^|&)var-(\w+)=", found[2] or "")) <= boards[found[1]], link


def test_d2_one_group_of_panels_for_each_chosen_task() -> None:
    data = load("task.json")
    rows = [panel for panel in data["panels"] if panel["type"] == "row"]
    assert [row.get("repeat") for row in rows] == [None, "task"]
    group = data["panels"][data["panels"].index(rows[1]) + 1 :]
    kinds = {panel["type"] for panel in group}
    assert {"stat", "state-timeline", "traces", "table", "logs"} <= kinds
    for panel in group:
        for target in panel["targets"]:
            assert "${task" in str(target), "whatever is below the repeated row is of its task"
    [task] = [one for one in variables(data) if one["name"] == "task"]
    assert (task["multi"], task["allowCustomValue"]) == (True, True)


@pytest.mark.parametrize("name", ["fleet.json", "queue.json", "budget.json", "people.json"])
def test_tables_of_tasks_lead_to_the_drilldown(name: str) -> None:
    linked = re.findall(r"/d/tracekit-task\?var-task=\$\{__data\.fields\.trace_id\}", str(load(name)))
    assert linked

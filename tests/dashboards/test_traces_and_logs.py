"""What the panels ask of Tempo and Loki, which do not run here: read strictly by the part of their grammars that is in
use, and asked of the spans and log lines that a real run left.

https://grafana.com/docs/tempo/latest/traceql/, https://grafana.com/docs/loki/latest/query/
"""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from tests.dashboards.bundled import Query, load, queries
from tests.dashboards.test_queries import trace_of
from tests.dashboards.world import SECRET, World
from tracekit.dashboards import expand
from tracekit.dashboards.expand import Values

TEMPO = [query for query in queries() if query.source == "tempo"]
LOKI = [query for query in queries() if query.source == "loki"]

Condition = tuple[str, str, str]
"""A field, an operator and a value."""

_STRING = r'"(?:[^"\\]|\\.)*"'
_SPANSET = re.compile(r"\{ (.+) \}")
_SPAN_CONDITION = re.compile(rf"((?:resource|span)\.[a-z][\w.]*|status|kind|name) (=|!=|=~) ({_STRING}|error|ok|unset)")
_SELECTOR = re.compile(rf"\{{(\w+)=({_STRING})\}}")
_STAGE = re.compile(rf" (?:\|= (?P<contains>{_STRING})|\| (?P<json>json)|\| (?P<label>\w+)=(?P<value>{_STRING}))")


def spanset(text: str) -> list[Condition]:
    """The conditions of a TraceQL spanset filter."""
    whole = _SPANSET.fullmatch(text)
    assert whole is not None, text
    found = []
    for one in whole[1].split(" && "):
        condition = _SPAN_CONDITION.fullmatch(one)
        assert condition is not None, one
        found.append((condition[1], condition[2], condition[3].strip('"')))
    return found


def log_query(text: str) -> tuple[tuple[str, str], list[tuple[str, str, str]]]:
    """The selector of a LogQL query, and its stages: `("contains" | "json" | "label", name, value)`."""
    selector = _SELECTOR.match(text)
    assert selector is not None, text
    stages, at = [], selector.end()
    while at < len(text):
        stage = _STAGE.match(text, at)
        assert stage is not None, text[at:]
        kind = "contains" if stage["contains"] else "json" if stage["json"] else "label"
        stages.append((kind, stage["label"] or "", json.loads(stage["contains"] or stage["value"] or '""')))
        at = stage.end()
    return (selector[1], json.loads(selector[2])), stages


def keeps(stages: list[tuple[str, str, str]], line: str) -> bool:
    """Whether a line comes through."""
    labels: dict[str, Any] = {}
    for kind, name, value in stages:
        match kind:
            case "contains":
                if value not in line:
                    return False
            case "json":
                labels = json.loads(line)
            case _:
                if labels.get(name) != value:
                    return False
    return True


async def lines_of(world: World, query: Query, task: str) -> tuple[tuple[str, str], list[str]]:
    scope = world.scope.having(task=Values([trace_of(world, task)]))
    selector, stages = log_query(expand.text(query.target["expr"], scope))
    logged = (world.stage.directory / "up.log").read_text().splitlines()
    return selector, [line for line in logged if line.startswith("{") and keeps(stages, line)]


@pytest.mark.parametrize("query", LOKI, ids=str)
async def test_d4_logql_finds_the_lines_of_the_task(the_world: World, query: Query) -> None:
    selector, lines = await lines_of(the_world, query, "dead")
    assert selector == ("service_name", "tracekit")
    assert lines
    assert {json.loads(line)["task_id"] for line in lines} == {the_world.tasks["dead"]}
    _, lines = await lines_of(the_world, query, "secret")
    assert SECRET not in str(lines)


def test_there_is_something_to_ask() -> None:
    assert len(LOKI) == 1
    assert len(TEMPO) == 2


@pytest.mark.parametrize("query", TEMPO, ids=str)
async def test_d4_traceql_is_a_trace_id_or_finds_spans(the_world: World, query: Query) -> None:
    assert query.target["queryType"] == "traceql"
    trace_id = trace_of(the_world, "dead")
    text = expand.text(query.target["query"], the_world.scope.having(task=Values([trace_id])))
    if query.panel["type"] == "traces":
        assert re.fullmatch(r"[0-9a-f]{32}", text), "Grafana takes what is one for a trace's id"
        assert text == trace_id
        return
    # The service is what the shipper and the SDK say of every span; the rest is asked of the spans.
    assert spanset(text) == [("resource.service.name", "=", "tracekit"), ("status", "=", "error")]
    assert the_world.owner("SELECT count(*) FROM tracekit.spans WHERE status = 2") > 0


def test_logs_and_traces_are_asked_in_the_repeated_group() -> None:
    titles = [panel["title"] for panel in load("task.json")["panels"]]
    assert titles.index("Trace") > titles.index("${task:text}") < titles.index("Logs")

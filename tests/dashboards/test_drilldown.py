"""The way to a task and what its panels say (D2), on the system that has run."""

from __future__ import annotations

import json
import subprocess
from itertools import groupby
from typing import Any

import pytest

from tests.dashboards.bundled import queries
from tests.dashboards.test_queries import scope_of, trace_of
from tests.dashboards.world import World
from tracekit.dashboards import expand
from tracekit.dashboards.expand import Values

ALL = {str(query): query for query in queries()}


def ask(world: World, place: str, task: str = "remote 0", **variables: Values) -> list[dict[str, Any]]:
    """The rows of a query, with these variables in place of how they are when the dashboard is opened."""
    query = ALL[place]
    scope = scope_of(query, world.scope, trace_of(world, task)).having(**variables)
    columns, rows = world.sql(expand.sql(query.target["rawSql"], scope))
    return [dict(zip(columns, row, strict=True)) for row in rows]


@pytest.mark.parametrize("place", ["task: Tasks [A]", "task: the variable task"])
@pytest.mark.parametrize(
    ("variables", "there", "not_there"),
    [
        ({"find": "KITCHEN"}, {"light"}, {"approved", "dead"}),
        ({"find": "trace_id of dead"}, {"dead"}, {"abandoned", "light"}),
        ({"find": "task_id of dead"}, {"dead"}, {"abandoned", "light"}),
        ({"find": "' OR true --"}, set(), {"light", "dead"}),
        ({"requester": "renee"}, {"light", "approved", "rejected", "waiting"}, {"dead", "changed"}),
        ({"state": "dead"}, {"dead"}, {"abandoned", "light"}),
        ({"state": "open"}, {"waiting"}, {"dead", "light"}),
        ({"mode": "outside"}, {"changed"}, {"light", "dead"}),
        ({"mode": "reviewer"}, {"light", "approved"}, {"dead", "rejected", "expired"}),
        ({"requester": "renee", "state": "rejected"}, {"rejected"}, {"light", "approved"}),
    ],
    ids=lambda value: str(value if isinstance(value, dict) else sorted(value)),
)
async def test_d2_tasks_are_picked_by_title_id_requester_mode_and_state(
    the_world: World, place: str, variables: dict[str, str], there: set[str], not_there: set[str]
) -> None:
    chosen = {}
    for name, value in variables.items():
        if value == "trace_id of dead":
            value = trace_of(the_world, "dead")
        elif value == "task_id of dead":
            value = the_world.tasks["dead"].lower()
        chosen[name] = Values([value])
    rows = ask(the_world, place, "remote 0", **chosen)
    traces = {row.get("trace_id") or row["__value"] for row in rows}
    assert {name for name in there | not_there if trace_of(the_world, name) in traces} == there


async def test_d2_a_task_s_states_are_told_mode_by_mode(the_world: World) -> None:
    rows = ask(the_world, "task: Hops [A]", "approved")
    told = [
        (mode, [row["state"] for row in rows if row["mode"] == mode])
        for mode in dict.fromkeys(row["mode"] for row in rows)
    ]
    passed = ["ready", "running", None]
    assert told == [
        ("router", passed),
        ("planner", passed),
        ("guardian", ["ready", "running", "parked", "ready", "running", None]),
        ("executor", passed),
        ("reviewer", passed),
        ("historian", ["ready", "running", "done"]),
    ]
    times = [row["time"] for row in rows]
    assert times == sorted(times)


async def test_d2_the_panels_of_a_task_agree(the_world: World) -> None:
    [outcome] = ask(the_world, "task: Outcome [A]", "dead")
    assert outcome == {"state": "dead", "mode": "executor"}
    attempts = ask(the_world, "task: Attempts and errors [A]", "dead")
    [work] = ask(the_world, "task: Work [A]", "dead")
    assert work["attempts"] == len(attempts)
    assert attempts[-1]["error"]
    [change] = [row for row in ask(the_world, "task: Pull requests, CI and deploys [A]", "changed")
                if row["kind"] == "flux"]  # fmt: skip
    assert change["url"] == "https://example.org/flux/1"
    [cost] = ask(the_world, "task: Cost [A]")
    [spent] = ask(the_world, "task: Tokens and cost [A]")
    assert (cost["cost"], cost["calls"], cost["unpriced"]) == (spent["cost"], spent["calls"], 0)
    kinds = ("input", "cache read", "cache write", "output")
    assert cost["tokens"] == sum(spent[kind] for kind in kinds) > 0
    [strange] = ask(the_world, "task: Cost [A]", "strange 0")
    assert (strange["cost"], strange["unpriced"]) == (None, 1), "what has no price is not free"


async def test_p2_allowed_and_routed_requests_are_told_apart(the_world: World) -> None:
    [renee] = [row for row in ask(the_world, "people: Requests [A]") if row["requester"] == "renee"]
    assert (renee["requests"], renee["allowed"], renee["routed"]) == (4, 1, 3)
    assert (renee["routed and done"], renee["rejected"]) == (1, 1)


async def test_links_open_a_task_in_its_own_time(the_world: World) -> None:
    rows = ask(the_world, "fleet: Slowest [A]", synthetic=Values(["false"]))
    [row] = [row for row in rows if row["trace_id"] == trace_of(the_world, "approved")]
    _, [[begun, ended]] = the_world.sql(
        f"SELECT created_at, ended_at FROM grafana.tasks WHERE trace_id = '{row['trace_id']}'"
    )
    assert int(row["from"]) / 1000 == pytest.approx(begun.timestamp() - 60, abs=0.01)
    assert int(row["to"]) / 1000 == pytest.approx(ended.timestamp() + 60, abs=0.01)
    under_way = ask(the_world, "fleet: Under way [A]")
    assert {row["to"] for row in under_way if row["trace_id"] == trace_of(the_world, "waiting")} == {"now"}


async def test_synthetic_tasks_say_so_everywhere_that_tasks_are_listed(the_world: World) -> None:
    for place in ("task: Tasks [A]", "fleet: Slowest [A]", "fleet: Dearest [A]", "budget: Dearest tasks [A]"):
        made_up = ask(the_world, place, synthetic=Values(["true"])) if "task:" not in place else []
        assert all(row["title"].startswith("(synthetic) ") for row in made_up)
        assert made_up or "task:" in place
    found = ask(the_world, "task: the variable task", state=Values(["dead"]))
    assert not [row for row in found if "synthetic" in row["__text"]]


async def test_the_terminal_asks_prometheus_the_same(the_world: World) -> None:
    code, printed = the_world.stage.run(
        "dashboards", "preview", "fleet", "Tasks that ended", "--from", "1h", "--prometheus-url",
        the_world.prometheus.url, "--json", stdout=subprocess.PIPE,
    )  # fmt: skip
    assert code == 0
    [panel] = json.loads(printed)
    [query] = panel["queries"]
    assert query["source"] == "prometheus"
    assert {one["name"] for one in query["series"]} == {"done", "failed", "expired", "rejected", "abandoned"}
    assert all(one["points"] for one in query["series"])


def test_places_are_named_once() -> None:
    names = sorted(str(query) for query in queries())
    assert [name for name, same in groupby(names) if len(list(same)) > 1] == []

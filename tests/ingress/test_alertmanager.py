"""Alertmanager's webhook: every alert that can be read is one task, whatever its neighbours are."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.ingress.conftest import ALERTS, HOUSEHOLD, Served
from tests.ingress.test_tasks import CALLER, values

PATH = "/ingress/alertmanager"


def alert(name: str = "PodCrashLooping", fingerprint: Any = "a33b9ba9c13c0f3e", **fields: Any) -> dict[str, Any]:
    return {
        "status": "firing",
        "labels": {"alertname": name, "severity": "critical"},
        "annotations": {"summary": "jellyfin-0 crash looping"},
        "startsAt": "2026-11-23T07:12:08.586148871Z",
        "endsAt": "0001-01-01T00:00:00Z",
        "generatorURL": "http://prometheus.local/graph?g0.expr=x",
        "fingerprint": fingerprint,
        **fields,
    }


def group(*alerts: Any, **fields: Any) -> dict[str, Any]:
    return {
        "receiver": "tracekit",
        "status": "firing",
        "alerts": list(alerts),
        "groupLabels": {},
        "commonLabels": {},
        "commonAnnotations": {},
        "externalURL": "http://alertmanager:9093",
        "version": "4",
        "groupKey": "{}:{}",
        "truncatedAlerts": 0,
        **fields,
    }


TWO = group(alert(), alert(fingerprint="e8af83a747a1b7df"))


async def test_each_alert_is_a_task_and_a_trace(served: Served) -> None:
    response = await served.post(PATH, TWO, token=ALERTS)
    assert response.status_code == 200
    tasks = await served.tasks()
    assert response.json() == {
        "accepted": 2,
        "duplicates": 0,
        "about_tracekit": 0,
        "refused": 0,
        "faults": [],
        "tasks": [task["id"] for task in tasks],
    }
    assert len({task["trace_id"] for task in tasks}) == 2
    for task in tasks:
        assert (task["origin"], task["surface"], task["requester"]) == ("observer", "alertmanager", "system")
    spans = await served.rows("SELECT name, attributes FROM tracekit.spans WHERE kind = 2")
    assert [span["name"] for span in spans] == ["POST /ingress/alertmanager"] * 2


async def test_what_is_sent_again_is_known(served: Served) -> None:
    first = (await served.post(PATH, TWO, token=ALERTS)).json()
    again = (await served.post(PATH, TWO, token=ALERTS)).json()
    assert (again["accepted"], again["duplicates"], again["tasks"]) == (0, 2, first["tasks"])
    twice = (await served.post(PATH, group(alert(fingerprint="1"), alert(fingerprint="1")), token=ALERTS)).json()
    assert (twice["accepted"], twice["duplicates"]) == (1, 1)
    assert len(await served.tasks()) == 3


async def test_a_resolved_alert_in_a_firing_group_is_a_task_of_its_own(served: Served) -> None:
    await served.post(PATH, group(alert()), token=ALERTS)
    over = alert(status="resolved", endsAt="2026-11-23T07:15:00Z")
    assert (await served.post(PATH, group(over), token=ALERTS)).json()["accepted"] == 1
    intents = [task["intent"].split(":")[0] for task in await served.tasks()]
    assert intents == ["Alert firing", "Alert resolved"]


@pytest.mark.parametrize(
    "labels",
    [
        {"alertname": "TracekitDeadLetters", "service": "tracekit"},
        {"alertname": "TracekitDeadLetters"},
        {"alertname": "TargetDown", "job": "tracekit"},
        {"alertname": "Anything", "service": "tracekit"},
    ],
)
async def test_an_alert_about_tracekit_is_no_task(served: Served, labels: dict[str, str]) -> None:
    """Whatever Alertmanager is told to send here: a task that fails must not fire an alert that files the next."""
    own = alert(labels["alertname"], "1", labels=labels)
    response = await served.post(PATH, group(own, alert()), token=ALERTS)
    body = response.json()
    assert (response.status_code, body["accepted"], body["about_tracekit"], body["refused"]) == (200, 1, 1, 0)
    assert [task["intent"].split(" ")[2] for task in await served.tasks()] == ["PodCrashLooping"]
    body = (await served.post(PATH, group(own), token=ALERTS)).json()
    assert (body["accepted"], body["about_tracekit"], body["tasks"]) == (0, 1, [])


async def test_good_members_are_accepted_beside_bad_ones(served: Served) -> None:
    bad = [alert(fingerprint=7), {"status": "firing"}, None]
    response = await served.post(PATH, group(alert(), *bad), token=ALERTS)
    # Alertmanager does not send again after a 4xx: the good one would be lost.
    assert response.status_code == 200
    body = response.json()
    assert (body["accepted"], body["refused"]) == (1, 3)
    assert {fault["field"].split(".")[1] for fault in body["faults"]} == {"1", "2", "3"}
    assert len(await served.tasks()) == 1
    (span,) = await served.refusals()
    assert span["attributes"]["error.type"] == "invalid"
    assert span["attributes"]["http.response.status_code"] == 200


@pytest.mark.parametrize(
    "body",
    [{}, [], None, "text", group(version="3"), group(alerts=None), group(alert(fingerprint=7)), group("x", 1)],
)
async def test_a_group_of_which_nothing_can_be_read_is_refused_for_good(untouched: Served, body: Any) -> None:
    response = await untouched.post(
        PATH, content=json.dumps(body), token=ALERTS, headers={"Content-Type": "application/json"}
    )
    # A string is refused before it is looked at as a group, as at every endpoint.
    assert response.status_code == (422 if body == "text" else 400)
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["faults"]
    assert await untouched.tasks() == []


async def test_an_empty_group_is_nothing_wrong(untouched: Served) -> None:
    response = await untouched.post(PATH, group(), token=ALERTS)
    assert (response.status_code, response.json()["accepted"]) == (200, 0)


async def test_the_callers_trace_is_continued_where_it_is_about_one_alert(served: Served) -> None:
    headers = {"traceparent": f"00-{CALLER[0]}-{CALLER[1]}-01"}
    await served.post(PATH, group(alert()), token=ALERTS, headers=headers)
    (one,) = await served.tasks()
    assert (one["trace_id"], one["parent_span_id"]) == CALLER
    await served.post(PATH, group(alert(fingerprint="1"), alert(fingerprint="2")), token=ALERTS, headers=headers)
    assert len({task["trace_id"] for task in await served.tasks()}) == 3


async def test_only_alertmanagers_own_token_will_do(untouched: Served) -> None:
    assert (await untouched.post(PATH, TWO, token=HOUSEHOLD)).status_code == 403
    assert (await untouched.post(PATH, TWO, token=None)).status_code == 401
    assert await untouched.tasks() == []


async def test_the_captured_message_is_understood(served: Served) -> None:
    text = (Path(__file__).parent / "alertmanager_0.25.json").read_bytes()
    response = await served.post(PATH, content=text, token=ALERTS, headers={"Content-Type": "application/json"})
    assert response.json()["accepted"] == 2


@st.composite
def damaged(draw: st.DrawFn) -> dict[str, Any]:
    """A good group with anything in the place of anything."""
    body: dict[str, Any] = copy.deepcopy(TWO)
    for _ in range(draw(st.integers(1, 3))):
        one = body["alerts"][0]
        # The labels may have been damaged already, and be no place for anything.
        place: Any = draw(st.sampled_from([place for place in (body, one, one["labels"]) if isinstance(place, dict)]))
        place[draw(st.sampled_from([*place, "more"]))] = draw(values)
        if not isinstance(body["alerts"], list) or body["alerts"][:1] != [place]:
            break
    return body


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=damaged())
async def test_no_group_breaks_it(served: Served, body: dict[str, Any]) -> None:
    before = len(await served.tasks())
    response = await served.post(
        PATH, content=json.dumps(body), token=ALERTS, headers={"Content-Type": "application/json"}
    )
    added = len(await served.tasks()) - before
    if response.status_code == 200:
        assert response.json()["accepted"] == added
    else:
        assert response.status_code == (413 if len(json.dumps(body)) > served.settings.ingress.max_body else 400)
        assert added == 0

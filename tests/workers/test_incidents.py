"""Alerts as tasks: both of Alertmanager's shapes, captured from 0.25.0, and what is wrong with bad ones."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tracekit import ids
from tracekit.envelope import Origin, Priority
from tracekit.queue import Queue
from tracekit.workers.incidents import (
    LONGEST_ANNOTATION,
    LONGEST_LABEL,
    MOST_LABELS,
    AlertRefused,
    parse_alert,
    parse_alerts,
    parse_webhook,
    submission,
)

FIRING: dict[str, Any] = {
    "status": "firing",
    "labels": {"alertname": "PodCrashLooping", "namespace": "media", "pod": "jellyfin-0", "severity": "critical"},
    "annotations": {
        "description": "Pod media/jellyfin-0 restarted 7 times",
        "runbook_url": "https://runbooks.example/PodCrashLooping",
        "summary": "jellyfin-0 crash looping",
    },
    "startsAt": "2026-11-23T07:12:08.586148871Z",
    "endsAt": "0001-01-01T00:00:00Z",
    "generatorURL": "http://prometheus.local/graph?g0.expr=x",
    "fingerprint": "a33b9ba9c13c0f3e",
}
POLLED: dict[str, Any] = {
    "annotations": FIRING["annotations"],
    "endsAt": "2026-11-23T07:13:08.586Z",
    "fingerprint": "a33b9ba9c13c0f3e",
    "receivers": [{"name": "tracekit"}],
    "startsAt": "2026-11-23T07:12:08.586Z",
    "status": {"inhibitedBy": [], "silencedBy": [], "state": "active"},
    "updatedAt": "2026-11-23T07:12:08.586Z",
    "generatorURL": "http://prometheus.local/graph?g0.expr=x",
    "labels": FIRING["labels"],
}


def group(*alerts: object, **fields: Any) -> dict[str, Any]:
    return {
        "receiver": "tracekit",
        "status": "firing",
        "alerts": list(alerts),
        "groupLabels": {},
        "commonLabels": {},
        "commonAnnotations": {},
        "externalURL": "http://alertmanager.example:9093",
        "version": "4",
        "groupKey": "{}:{}",
        "truncatedAlerts": 0,
        **fields,
    }


def resolved(**fields: Any) -> dict[str, Any]:
    return {**FIRING, "status": "resolved", "endsAt": "2026-11-23T08:00:00.123456789Z", **fields}


def test_the_webhook_and_the_api_name_an_incident_alike() -> None:
    delivered, polled = parse_alert(FIRING), parse_alert(POLLED)
    assert delivered == polled
    assert delivered.key == "a33b9ba9c13c0f3e:firing:2026-11-23T07:12:08.586Z"


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("2026-11-23T07:12:08Z", "2026-11-23T07:12:08.000Z"),
        ("2026-11-23T07:12:08.9999999Z", "2026-11-23T07:12:08.999Z"),
        ("2026-11-23T09:12:08.5+02:00", "2026-11-23T07:12:08.500Z"),
    ],
)
def test_times_are_cut_to_milliseconds_of_utc_as_the_api_does(written: str, meant: str) -> None:
    assert parse_alert({**FIRING, "startsAt": written}).key.endswith(meant)


def test_an_incident_that_ends_or_begins_anew_is_another_task() -> None:
    alerts = [
        FIRING,
        resolved(),
        resolved(endsAt="2026-11-23T09:00:00Z"),
        {**FIRING, "startsAt": "2026-11-23T10:00:00Z"},
        {**FIRING, "fingerprint": "e8af83a747a1b7df"},
    ]
    assert len({parse_alert(alert).key for alert in alerts}) == 5


@pytest.mark.parametrize(
    ("severity", "priority"),
    [
        ("page", Priority.URGENT),
        ("critical", Priority.HIGH),
        ("Critical", Priority.HIGH),
        ("warning", Priority.NORMAL),
        ("info", Priority.LOW),
        ("none", Priority.LOW),
        ("sev3", Priority.NORMAL),
    ],
)
def test_severity_makes_the_priority(severity: str, priority: Priority) -> None:
    assert parse_alert({**FIRING, "labels": {"severity": severity}}).priority is priority
    assert parse_alert(resolved(labels={"severity": severity})).priority is Priority.LOW


def test_what_the_task_says_and_is_given() -> None:
    made = submission(parse_alert(FIRING), requester="system", trace_id=ids.new_trace_id())
    envelope = made.envelope
    assert envelope.intent == "Alert firing: PodCrashLooping – jellyfin-0 crash looping"
    assert (envelope.origin, envelope.surface, envelope.requester) == (Origin.OBSERVER, "alertmanager", "system")
    assert made.mode == "router"
    assert made.input == {
        "alert": {
            "fingerprint": "a33b9ba9c13c0f3e",
            "status": "firing",
            "labels": FIRING["labels"],
            "annotations": FIRING["annotations"],
            "startsAt": "2026-11-23T07:12:08.586Z",
            "endsAt": None,
            "generatorURL": "http://prometheus.local/graph?g0.expr=x",
        }
    }
    ended = parse_alert(resolved(annotations={"description": "of\n  two lines"}))
    assert ended.intent == "Alert resolved: PodCrashLooping – of two lines"
    assert ended.input()["alert"]["endsAt"] == "2026-11-23T08:00:00.123Z"
    assert parse_alert({**FIRING, "labels": {}, "annotations": {}}).intent == "Alert firing: unnamed"


def test_a_mixed_group_says_firing_with_resolved_members_inside() -> None:
    parsed = parse_webhook(json.dumps(group(FIRING, resolved(), truncatedAlerts=3)))
    assert [alert.status for alert in parsed.alerts] == ["firing", "resolved"]
    assert (parsed.faults, parsed.truncated) == ([], 3)


def test_one_bad_alert_does_not_lose_the_others_and_every_fault_is_listed() -> None:
    bad = {"status": "burning", "labels": {"a": 1}, "startsAt": "yesterday", "fingerprint": "xyz", "generatorURL": 7}
    parsed = parse_webhook(group(FIRING, bad, "no alert", resolved(endsAt=None)))
    assert [alert.fingerprint for alert in parsed.alerts] == [FIRING["fingerprint"]]
    assert [fault.field for fault in parsed.faults] == [
        "alerts.1.fingerprint",
        "alerts.1.status",
        "alerts.1.labels.a",
        "alerts.1.startsAt",
        "alerts.1.generatorURL",
        "alerts.2",
        "alerts.3.endsAt",
    ]


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        (b"{", [""]),
        (b"\xff", [""]),
        ([], [""]),
        (None, [""]),
        ({}, ["version", "alerts"]),
        (group(version="3"), ["version"]),
        (group(alerts={}), ["alerts"]),
        (group(alerts=[{}] * 10_001), ["alerts"]),
        ("[" * 100_000, [""]),
    ],
)
def test_a_body_that_is_no_webhook_is_refused_whole(body: object, fields: list[str]) -> None:
    parsed = parse_webhook(body)
    assert parsed.alerts == []
    assert [fault.field for fault in parsed.faults] == fields


@pytest.mark.parametrize(
    "broken",
    [
        {"startsAt": "0001-01-01T00:00:00+01:00"},
        {"startsAt": "2026-13-01T00:00:00Z"},
        {"startsAt": "2026-11-23"},
        {"startsAt": 5},
        {"fingerprint": "A33B"},
        {"fingerprint": "a" * 33},
        {"labels": None},
        {"labels": {f"l{number}": "x" for number in range(MOST_LABELS + 1)}},
        {"annotations": []},
        {"status": {"state": "odd"}},
        {"status": None},
    ],
)
def test_what_is_malformed_is_refused(broken: dict[str, Any]) -> None:
    with pytest.raises(AlertRefused) as refused:
        parse_alert({**FIRING, **broken})
    assert [fault.field for fault in refused.value.faults] == list(broken)


async def test_long_and_unstorable_texts_are_cut_and_kept_not_lost(queue: Queue) -> None:
    monster = {
        **FIRING,
        "labels": {f"l{number}\x00": "\x00\ud800" * LONGEST_LABEL for number in range(MOST_LABELS)},
        "annotations": {f"summary{number}": '"\\u0000\x01' * LONGEST_ANNOTATION for number in range(MOST_LABELS)}
        | {"summary": "\x00" * 100_000},
    }
    monster["annotations"].pop("summary0")
    [alert], faults = parse_alerts([monster])
    assert faults == []
    assert {len(value) for value in alert.annotations.values()} == {LONGEST_ANNOTATION}
    [receipt] = await queue.enqueue([submission(alert, requester="system", trace_id=ids.new_trace_id())])
    assert not receipt.duplicate


async def test_an_alert_that_is_heard_of_thrice_is_one_task_Q5(queue: Queue) -> None:
    heard = [parse_alert(FIRING), parse_alert(POLLED), parse_alert(FIRING)]
    receipts = await queue.enqueue([submission(a, requester="system", trace_id=ids.new_trace_id()) for a in heard])
    assert len({receipt.task_id for receipt in receipts}) == 1
    assert [receipt.duplicate for receipt in receipts].count(False) == 1

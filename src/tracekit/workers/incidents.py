"""Alerts of Alertmanager as tasks: one task an incident, whichever way it was heard of.

The webhook (version 4) and `GET /api/v2/alerts` tell of the same alert in two shapes. Both become an `Alert` here, with
one idempotency key, so that an incident which was delivered and then polled is one task.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from tracekit.envelope import Envelope, Fault, Origin, Priority, TaskRequest
from tracekit.errors import TracekitError
from tracekit.queue import Received, Submission
from tracekit.queue.model import Json
from tracekit.queue.payload import plain_text

SURFACE = "alertmanager"

PRIORITIES: dict[str, Priority] = {
    "page": Priority.URGENT,
    "critical": Priority.HIGH,
    "warning": Priority.NORMAL,
    "info": Priority.LOW,
    "none": Priority.LOW,
}
"""The `severity` label of a firing alert to the task's priority; any other, or none, is `normal`. Only `page` is
urgent: urgent tasks wake people, and what wakes them must have been named so by the rule's author. A resolved alert is
`low`, whatever it was."""

OWN = {"service": "tracekit", "job": "tracekit", "alertname": "Tracekit.+"}
"""Labels, and patterns of their values, any of which makes an alert one about tracekit itself, as in the routes of
`alerts/alertmanager.yaml`. Such an alert is people's and never a task: one that fails would fire the alert that files
the next."""

MOST_LABELS = 50
"""Labels of an alert, and annotations. More is a fault: no rule of a person's has them."""
LONGEST_LABEL = 1_000
LONGEST_ANNOTATION = 2_000
"""Characters of a value; what is longer is cut and ends in an ellipsis. An incident is not lost for a long text."""
MOST_ALERTS = 10_000
"""Alerts of one group, or of one poll."""

_FINGERPRINT = re.compile(r"[0-9a-f]{1,32}")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?(Z|[+-]\d\d:\d\d)")
_URL_LENGTH = 4_000


class AlertRefused(TracekitError):
    """One alert that cannot be read; `faults` lists everything that is wrong with it."""

    exit_code = 2

    def __init__(self, faults: list[Fault]) -> None:
        super().__init__("the alert was refused: " + "; ".join(f"{fault.field}: {fault.message}" for fault in faults))
        self.faults = faults


@dataclass(frozen=True, slots=True)
class Alert:
    """One alert. Times are UTC, to the millisecond: the API gives no more, the webhook gives nanoseconds."""

    fingerprint: str
    status: Literal["firing", "resolved"]
    labels: dict[str, str]
    annotations: dict[str, str]
    starts_at: datetime
    ends_at: datetime | None
    """Of a resolved alert. What a firing one carries is only the time at which it would be forgotten."""
    generator_url: str

    @property
    def key(self) -> str:
        """Names the incident: the same from the webhook, from its repeats, and from the API."""
        ended = f":{_stamp(self.ends_at)}" if self.ends_at else ""
        return f"{self.fingerprint}:{self.status}:{_stamp(self.starts_at)}{ended}"

    @property
    def priority(self) -> Priority:
        """By severity; see `PRIORITIES`."""
        if self.status == "resolved":
            return Priority.LOW
        return PRIORITIES.get(self.labels.get("severity", "").lower(), Priority.NORMAL)

    @property
    def about_tracekit(self) -> bool:
        """Whether it is about tracekit itself; see `OWN`."""
        return any(re.fullmatch(pattern, self.labels.get(name, "")) for name, pattern in OWN.items())

    @property
    def intent(self) -> str:
        """What a person reads: the alert's name and its summary, or its description where it has none."""
        text = self.annotations.get("summary") or self.annotations.get("description") or ""
        told = " ".join(text.split())
        name = plain_text(" ".join(self.labels.get("alertname", "unnamed").split()), 200)
        return f"Alert {self.status}: {name}" + (f" – {plain_text(told, 500)}" if told else "")

    def input(self) -> dict[str, Json]:
        """What the task's first hop is given, in the webhook's words."""
        return {
            "alert": {
                "fingerprint": self.fingerprint,
                "status": self.status,
                "labels": self.labels,
                "annotations": self.annotations,
                "startsAt": _stamp(self.starts_at),
                "endsAt": _stamp(self.ends_at) if self.ends_at else None,
                "generatorURL": self.generator_url,
            }
        }


@dataclass(frozen=True, slots=True)
class WebhookGroup:
    """What a webhook brought: the alerts that can be read, and what is wrong with the rest.

    Faults with no alerts: the whole message is refused. `truncated` counts the alerts that Alertmanager left out
    (`max_alerts` of its receiver); the observer's poll finds those that still fire.
    """

    alerts: list[Alert]
    faults: list[Fault]
    truncated: int = 0


def parse_webhook(body: object) -> WebhookGroup:
    """A webhook's body: parsed JSON, or its text. Never raises: a bad alert is a fault, and the others go on.

    A group's own status is not looked at: a mixed group says firing with resolved members inside. Fields that are not
    used here are let through, since each release of Alertmanager may add some.
    """
    if isinstance(body, str | bytes):
        try:
            body = json.loads(body)
        except (ValueError, RecursionError) as error:
            return WebhookGroup([], [Fault(field="", message=f"is not JSON: {error}")])
    if not isinstance(body, dict):
        return WebhookGroup([], [Fault(field="", message="must be an object: an Alertmanager webhook of version 4")])
    faults = []
    if body.get("version") != "4":
        faults.append(Fault(field="version", message='must be "4"'))
    members = body.get("alerts")
    if not isinstance(members, list):
        faults.append(Fault(field="alerts", message="must be a list of alerts"))
    elif len(members) > MOST_ALERTS:
        faults.append(Fault(field="alerts", message=f"must not hold more than {MOST_ALERTS} alerts"))
    if faults or not isinstance(members, list):
        return WebhookGroup([], faults)
    alerts, faults = parse_alerts(members, "alerts.")
    truncated = body.get("truncatedAlerts")
    return WebhookGroup(alerts, faults, truncated if isinstance(truncated, int) and truncated > 0 else 0)


def parse_alerts(members: list[Any], prefix: str = "") -> tuple[list[Alert], list[Fault]]:
    """Those of `members` that can be read, and the faults of the others, each with its place."""
    alerts: list[Alert] = []
    faults: list[Fault] = []
    for number, member in enumerate(members):
        try:
            alerts.append(parse_alert(member))
        except AlertRefused as refused:
            faults += [
                Fault(field=f"{prefix}{number}.{fault.field}".rstrip("."), message=fault.message)
                for fault in refused.faults
            ]
    return alerts, faults


def parse_alert(member: object) -> Alert:
    """One member of a webhook's group or of the API's list. Raises `AlertRefused` with every fault."""
    if not isinstance(member, dict):
        raise AlertRefused([Fault(field="", message="must be an object")])
    faults: list[Fault] = []
    fingerprint = member.get("fingerprint")
    if not isinstance(fingerprint, str) or not _FINGERPRINT.fullmatch(fingerprint):
        faults.append(Fault(field="fingerprint", message="must be a hexadecimal number, as Alertmanager makes it"))
    status = _status(member.get("status"), faults)
    labels = _texts(member.get("labels"), "labels", LONGEST_LABEL, faults)
    annotations = _texts(member.get("annotations", {}), "annotations", LONGEST_ANNOTATION, faults)
    starts_at = _time(member.get("startsAt"), "startsAt", faults)
    ends_at = _time(member.get("endsAt"), "endsAt", faults) if status == "resolved" else None
    generator_url = member.get("generatorURL", "")
    if not isinstance(generator_url, str):
        faults.append(Fault(field="generatorURL", message="must be a string"))
    if faults or starts_at is None:
        raise AlertRefused(faults)
    return Alert(
        fingerprint=str(fingerprint),
        status=status,
        labels=labels,
        annotations=annotations,
        starts_at=starts_at,
        ends_at=ends_at,
        generator_url=plain_text(generator_url, _URL_LENGTH),
    )


def submission(
    alert: Alert,
    *,
    requester: str,
    trace_id: str,
    parent_span_id: str | None = None,
    trace_state: str = "",
    received: Received | None = None,
) -> Submission:
    """The task of an alert. Enqueue it as often as it is heard of: its key makes it one."""
    envelope = Envelope.seal(
        TaskRequest(intent=alert.intent, idempotency_key=alert.key, priority=alert.priority),
        origin=Origin.OBSERVER,
        surface=SURFACE,
        requester=requester,
        trace_id=trace_id,
        parent_span_id=parent_span_id,
        trace_state=trace_state,
    )
    return Submission(envelope, input=alert.input(), received=received)


def _status(value: object, faults: list[Fault]) -> Literal["firing", "resolved"]:
    match value:
        case "firing" | {"state": "active" | "unprocessed" | "suppressed"}:
            return "firing"
        case "resolved":
            return "resolved"
    faults.append(Fault(field="status", message="must be firing, resolved, or the API's object with a known state"))
    return "firing"


def _texts(value: object, field: str, longest: int, faults: list[Fault]) -> dict[str, str]:
    if not isinstance(value, dict):
        faults.append(Fault(field=field, message="must be an object of strings"))
        return {}
    if len(value) > MOST_LABELS:
        faults.append(Fault(field=field, message=f"must not hold more than {MOST_LABELS} entries"))
        return {}
    texts = {}
    for name, text in value.items():
        if not isinstance(text, str):
            faults.append(Fault(field=f"{field}.{plain_text(name, 100)}", message="must be a string"))
        else:
            texts[plain_text(name, 200)] = plain_text(text, longest)
    return texts


def _time(value: object, field: str, faults: list[Fault]) -> datetime | None:
    if isinstance(value, str) and _TIME.fullmatch(value):
        try:
            time = datetime.fromisoformat(value).astimezone(UTC)
        except (ValueError, OverflowError):
            pass
        else:
            # Cut, not rounded: so does the API (Go's layout `.000`).
            return time.replace(microsecond=time.microsecond // 1000 * 1000)
    faults.append(Fault(field=field, message="must be a time such as 2026-11-23T07:12:08.586Z (RFC 3339)"))
    return None


def _stamp(time: datetime) -> str:
    return time.isoformat(timespec="milliseconds").replace("+00:00", "Z")

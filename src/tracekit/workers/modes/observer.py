"""The observer: looks at Alertmanager and files one task an incident."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

import httpx
import structlog
from opentelemetry.instrumentation.utils import suppress_http_instrumentation

from tracekit import ids
from tracekit.envelope import Fault
from tracekit.errors import TracekitError
from tracekit.queue import Done, GiveUp, Outcome, Queue
from tracekit.queue.model import Json
from tracekit.workers import incidents
from tracekit.workers.answers import AnswerTooLarge, ask
from tracekit.workers.mode import Hop, Mode, NoInput, Services, Source

log = structlog.get_logger()

MAX_ANSWER = 16_777_216
"""Bytes of Alertmanager's answer: ten thousand alerts of a usual size."""
BATCH = 200
"""Alerts that are filed in one transaction."""

_TIMEOUT = httpx.Timeout(20, connect=5)


class ObserverError(TracekitError):
    """Alertmanager could not be asked, or did not answer as it should. Names no address: it may hold a password."""


@dataclass(frozen=True, slots=True)
class Look:
    """What one look found: alerts that fire (but for those about tracekit itself, see `incidents.OWN`), the tasks filed
    for those that were new, and what could not be read.
    """

    firing: int
    filed: list[str]
    faults: list[Fault]


class AlertmanagerSource(Source):
    """Polls Alertmanager and files a task for each incident that has none yet.

    It remembers nothing: an alert that was polled before, or that came by the webhook, has the same key, and so the
    task that it has already. Because it remembers nothing, it cannot see that an alert is gone: one that is missing
    from the answer may have been resolved, silenced or inhibited, or Alertmanager may have been restarted without its
    state. That is not guessed at here; only the webhook tells that an alert was resolved.
    """

    def __init__(self, services: Services) -> None:
        self.interval: timedelta = services.settings.alertmanager.interval
        self._services = services

    async def poll(self) -> int:
        """One look. It belongs to no task, and so it makes no span (T9)."""
        with suppress_http_instrumentation():
            look = await look_at_alerts(self._services)
        if look.faults:
            # Their places and what is wrong, never their content.
            listed = "; ".join(f"{fault.field}: {fault.message}" for fault in look.faults[:10])
            log.warning("observer.unreadable_alerts", faults=len(look.faults), detail=listed)
        if look.filed:
            log.info("observer.filed", firing=look.firing, filed=len(look.filed))
        return len(look.filed)


class Observer(Mode[NoInput]):
    """As a mode it looks once, because somebody asked, and says what it filed."""

    name = "observer"
    input_type = NoInput
    timeout = timedelta(minutes=2)

    def sources(self) -> list[Source]:
        """Alertmanager, where one is configured."""
        return [AlertmanagerSource(self.services)] if self.services.settings.alertmanager.url else []

    async def run(self, hop: Hop[NoInput]) -> Outcome:
        """Look, and end the task with what was found."""
        if not self.services.settings.alertmanager.url:
            return GiveUp("no Alertmanager is configured: set alertmanager.url")

        async def look() -> Json:
            found = await look_at_alerts(self.services)
            return {"firing": found.firing, "filed": found.filed, "unreadable": len(found.faults)}

        seen = await hop.effect("look", look)
        unreadable = f" {seen['unreadable']} faults made others unreadable." if seen["unreadable"] else ""
        return Done(
            summary=f"{_counted(seen['firing'], 'alert')} firing, {_counted(len(seen['filed']), 'new task')} filed."
            + unreadable
        )


async def look_at_alerts(services: Services) -> Look:
    """Ask Alertmanager what fires and file what is new. Safe to repeat. Raises `ObserverError`."""
    read, faults = incidents.parse_alerts(await _firing(services))
    alerts = [alert for alert in read if not alert.about_tracekit]
    requester = services.settings.system_principal
    filed: list[str] = []
    for first in range(0, len(alerts), BATCH):
        filed += await _file(services.queue, alerts[first : first + BATCH], requester)
    return Look(len(alerts), filed, faults)


async def _file(queue: Queue, alerts: list[incidents.Alert], requester: str) -> list[str]:
    submissions = [incidents.submission(alert, requester=requester, trace_id=ids.new_trace_id()) for alert in alerts]
    return [receipt.task_id for receipt in await queue.enqueue(submissions) if not receipt.duplicate]


async def _firing(services: Services) -> list[Json]:
    url = f"{services.settings.alertmanager.url.rstrip('/')}/api/v2/alerts"
    filters = {"active": "true", "silenced": "false", "inhibited": "false"}
    try:
        answer = await ask(services.http, "GET", url, most=MAX_ANSWER, params=filters, timeout=_TIMEOUT)
    except AnswerTooLarge as error:
        raise ObserverError(f"Alertmanager {error}") from None
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ObserverError(
            f"Alertmanager cannot be reached ({type(error).__name__})", hint="check alertmanager.url and that it runs"
        ) from None
    if answer.status != 200:
        raise ObserverError(f"Alertmanager answered {answer.status}", hint="check alertmanager.url")
    members = answer.json
    if not isinstance(members, list):
        raise ObserverError(
            "what alertmanager.url leads to did not answer a list of alerts", hint="is it Alertmanager?"
        )
    if len(members) > incidents.MOST_ALERTS:
        log.warning("observer.too_many_alerts", alerts=len(members), looked_at=incidents.MOST_ALERTS)
    return members[: incidents.MOST_ALERTS]


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"

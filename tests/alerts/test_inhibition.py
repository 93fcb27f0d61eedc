"""Which alerts silence which, as the real Alertmanager has it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.alerts.programs import alertmanager
from tests.support.processes import eventually
from tracekit.alerts.catalogue import ALERTS
from tracekit.alerts.routing import configuration
from tracekit.alerts.rule import SERVICE

Labels = dict[str, str]
WEEK = {"scope": "total", "period": "week", "unit": "usd"}
FOREIGN = {"alertname": "DiskFull", "severity": "warning", "mode": "router"}


def own(name: str, **labels: str) -> Labels:
    [alert] = [alert for alert in ALERTS if alert.name == name]
    return {"alertname": name, "severity": alert.severity, "service": SERVICE, **labels}


@pytest.mark.parametrize(
    ("sources", "silenced", "told"),
    [
        pytest.param(
            [own("TracekitAbsent")],
            [own("TracekitDeadLetters", mode="router"), own("TracekitDatabaseUnreachable")],
            [FOREIGN],
            id="absent",
        ),
        pytest.param(
            [own("TracekitDatabaseUnreachable")],
            [
                own("TracekitListenerPolling", instance="a"),
                own("TracekitIngressFailing", surface="x", reason="internal"),
            ],
            [own("TracekitProcessDown", instance="a"), own("TracekitBudgetUsedUp", **WEEK), FOREIGN],
            id="database",
        ),
        pytest.param(
            # The first has no mode, nor have other warnings: to Alertmanager that is the same mode.
            [own("TracekitNotificationsNotDelivered"), own("TracekitNoWorker", mode="router")],
            [own("TracekitHopTooOld", mode="router"), own("TracekitDeadLetters", mode="router")],
            [own("TracekitHopTooOld", mode="planner"), own("TracekitSpansNotShipped"), FOREIGN],
            id="mode",
        ),
        pytest.param(
            [own("TracekitBudgetUsedUp", **WEEK)],
            [own("TracekitSpendAbovePace", **WEEK)],
            [own("TracekitSpendAbovePace", **{**WEEK, "unit": "tokens"}), FOREIGN],
            id="budget",
        ),
    ],
)
async def test_what_explains_an_alert_silences_it(
    sources: list[Labels], silenced: list[Labels], told: list[Labels], tmp_path: Path
) -> None:
    now = datetime.now(UTC)
    alerts = [
        {"labels": labels, "startsAt": now.isoformat(), "endsAt": (now + timedelta(hours=1)).isoformat()}
        for labels in (*sources, *silenced, *told)
    ]
    async with alertmanager(tmp_path, configuration(ALERTS)) as address, httpx.AsyncClient() as http:
        url = f"http://{address}/api/v2/alerts"
        assert (await http.post(url, json=alerts)).status_code == 200

        async def inhibited() -> list[Any] | None:
            found = (await http.get(url)).json()
            quiet = [alert["labels"] for alert in found if alert["status"]["inhibitedBy"]]
            # Once these are, Alertmanager knows the sources: it takes alerts up in their order.
            return quiet if len(found) == len(alerts) and all(labels in quiet for labels in silenced) else None

        quiet = await eventually(inhibited, "what is explained is silenced")
        assert quiet is not None
        assert sorted(map(str, quiet)) == sorted(map(str, (dict(sorted(labels.items())) for labels in silenced)))

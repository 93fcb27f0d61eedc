"""Who is told: an Alertmanager configuration for alerts of a household, those about tracekit among them.

What is wrong elsewhere becomes a task, and people hear of it when it is critical. What is wrong with tracekit goes to
people alone: tracekit cannot be trusted with it, and a task that fails would fire the alert that files the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tracekit.alerts.catalogue import ABSENT, JOB
from tracekit.alerts.rule import SERVICE, Alert

TRACEKIT_URL = "http://tracekit:8420/ingress/alertmanager"
PEOPLE_URL = "http://ntfy/tracekit-alerts?template=alertmanager"
"""ntfy from 2.14 on reads Alertmanager's webhook itself (https://docs.ntfy.sh/publish/#message-templating)."""

SECRETS = "/etc/alertmanager/secrets"
"""A directory of the container's with one file a secret: no secret stands in the configuration."""

_OURS = (f'service="{SERVICE}"', 'alertname=~"Tracekit.+"', f'job="{JOB}"')
"""Any of these makes an alert one about tracekit, also where a rule of somebody else's watches it."""


def configuration(alerts: Sequence[Alert]) -> dict[str, Any]:
    """The configuration, for Alertmanager 0.25 and later."""
    to_people = {"group_by": ["alertname", "mode"], "receiver": "people"}
    urgently = {"matchers": ['severity="critical"'], "group_wait": "5s", "repeat_interval": "1h"}
    return {
        "route": {
            "receiver": "people",
            "group_by": ["alertname"],
            "group_wait": "30s",
            "group_interval": "5m",
            "repeat_interval": "12h",
            "routes": [
                *({"matchers": [ours], **to_people, "routes": [dict(urgently)]} for ours in _OURS),
                # Such as the alert that always fires, to show that alerting works.
                {"matchers": ['severity="none"'], "receiver": "nobody"},
                {"receiver": "tracekit", "group_wait": "5s", "continue": True},
                {"matchers": ['severity=~"critical|page"'], "receiver": "people", "repeat_interval": "1h"},
                # What is not critical is tracekit's alone.
                {"receiver": "nobody"},
            ],
        },
        "inhibit_rules": inhibitions(alerts),
        "receivers": [
            {"name": "people", "webhook_configs": [_webhook(PEOPLE_URL, "ntfy-token")]},
            {"name": "tracekit", "webhook_configs": [_webhook(TRACEKIT_URL, "tracekit-token")]},
            {"name": "nobody"},
        ],
    }


def inhibitions(alerts: Sequence[Alert]) -> list[dict[str, Any]]:
    """Which alerts silence which: those that explain others, and the critical ones of a mode its warnings."""
    ours, by_name = f'service="{SERVICE}"', {alert.name: alert for alert in alerts}
    rules: list[dict[str, Any]] = [
        {
            "source_matchers": [ours, f'alertname="{ABSENT}"'],
            "target_matchers": [ours, f'alertname!="{ABSENT}"'],
        },
    ]
    explained: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for alert in alerts:
        for name in alert.follows_from:
            equal = by_name[name].expression.labels & alert.expression.labels
            explained.setdefault((name, tuple(sorted(equal))), []).append(alert.name)
    rules += [
        {
            "source_matchers": [ours, f'alertname="{source}"'],
            "target_matchers": [ours, f'alertname=~"{"|".join(targets)}"'],
            **({"equal": list(equal)} if equal else {}),
        }
        for (source, equal), targets in explained.items()
    ]
    # Two alerts without a mode would be equal in it.
    rules.append(
        {
            "source_matchers": [ours, 'severity="critical"', 'mode!=""'],
            "target_matchers": [ours, 'severity="warning"', 'mode!=""'],
            "equal": ["mode"],
        }
    )
    return rules


def _webhook(url: str, secret: str) -> dict[str, Any]:
    return {
        "url": url,
        "send_resolved": True,
        "http_config": {
            "authorization": {"type": "Bearer", "credentials_file": f"{SECRETS}/{secret}"},
            "follow_redirects": False,
        },
    }

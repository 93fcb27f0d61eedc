"""One alert: when it fires, how bad that is, what it says, and where it leads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from tracekit.promql import Vector

SERVICE = "tracekit"
"""The label `service` of every alert about tracekit. Alertmanager tells them from others by it, and tracekit files no
task for one that has it.
"""

GRAFANA_URL = "http://localhost:3000"
RUNBOOK_URL = "https://github.com/tracekit/tracekit/blob/main/docs/runbooks.md"


@dataclass(frozen=True, slots=True)
class Bases:
    """Where the links of alerts lead: a Grafana that has tracekit's dashboards, and the page of the runbooks."""

    grafana_url: str = GRAFANA_URL
    runbook_url: str = RUNBOOK_URL


@dataclass(frozen=True, slots=True)
class Alert:
    """An alerting rule. In `summary` and `description` stand Prometheus's templates; labels in them are labels of the
    expression. Its runbook is the section of docs/runbooks.md that has its name.
    """

    name: str
    severity: Literal["critical", "warning", "info"]
    """critical: somebody is needed now. warning: today. info: when there is time."""
    expression: Vector
    wait: str
    """`for`: how long it must hold before anybody is told."""
    summary: str
    """One line: what is the case."""
    description: str
    """What follows from it, and what to do first."""
    dashboard: str
    """The uid of the dashboard to look at."""
    filled: tuple[str, ...] = ()
    """Labels that are filled into the dashboard's variables of the same name."""
    keep: str = ""
    """`keep_firing_for`: how long it goes on after it held last, where it would flap."""
    follows_from: tuple[str, ...] = ()
    """Alerts that explain this one: while one of them fires nobody is told of this. That no process is seen explains
    every other, without being named.
    """

    def rule(self, bases: Bases) -> dict[str, Any]:
        """The rule as Prometheus reads it."""
        variables = "&".join(f"var-{name}={{{{ $labels.{name} | urlquery }}}}" for name in self.filled)
        dashboard = f"{bases.grafana_url.rstrip('/')}/d/{self.dashboard}"
        return {
            "alert": self.name,
            "expr": self.expression.text,
            "for": self.wait,
            **({"keep_firing_for": self.keep} if self.keep else {}),
            "labels": {"severity": self.severity, "service": SERVICE},
            "annotations": {
                "summary": self.summary,
                "description": self.description,
                "dashboard_url": f"{dashboard}?{variables}" if variables else dashboard,
                "runbook_url": f"{bases.runbook_url}#{self.name.lower()}",
            },
        }


@dataclass(frozen=True, slots=True)
class Group:
    """Alerts that are evaluated together."""

    name: str
    alerts: tuple[Alert, ...]

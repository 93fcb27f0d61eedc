"""`promtool test rules` on the generated rules: what series there are, and which alerts fire by when."""

from __future__ import annotations

import copy
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tests.support.programs import require_program
from tracekit.alerts.catalogue import ALERTS
from tracekit.alerts.files import rules
from tracekit.alerts.rule import Bases

NAMED = {alert.name: alert for alert in ALERTS}


@dataclass(frozen=True)
class Firing:
    """An alert that fires: the labels of its expression, and what a person reads. The description is needed where
    something is filled into it.
    """

    summary: str
    labels: dict[str, str] = field(default_factory=dict)
    description: str = ""
    variables: str = ""


@dataclass(frozen=True)
class Case:
    """What Prometheus has of one alert's series, minute by minute in promtool's notation, and what fires after so many
    minutes.
    """

    alert: str
    why: str
    series: dict[str, str]
    minutes: int
    fires: tuple[Firing, ...] = ()

    def __str__(self) -> str:
        return f"{self.alert}: {'fires' if self.fires else 'silent'}: {self.why}"

    def test(self, names: Sequence[str] = ()) -> dict[str, Any]:
        """As promtool has it. `names` are those that the alert goes by, if not by its own."""
        alert = NAMED[self.alert]
        expected = []
        for firing in self.fires:
            described = firing.description or alert.description
            assert "{{" not in described, f"{self} says nothing of the description"
            annotations = {
                "summary": firing.summary,
                "description": described,
                "dashboard_url": f"http://localhost:3000/d/{alert.dashboard}{firing.variables}",
                "runbook_url": "https://github.com/tracekit/tracekit/blob/main/docs/runbooks.md#" + self.alert.lower(),
            }
            labels = {**firing.labels, "severity": alert.severity, "service": "tracekit"}
            expected.append({"exp_labels": labels, "exp_annotations": annotations})
        return {
            "name": str(self),
            "interval": "1m",
            "input_series": [{"series": name, "values": values} for name, values in self.series.items()],
            "alert_rule_test": [
                {"eval_time": f"{self.minutes}m", "alertname": name, "exp_alerts": expected}
                for name in names or [self.alert]
            ],
        }


def rules_of(alert: str) -> dict[str, Any]:
    """The recording rules, and of the alerts this one alone: promtool's time goes into what nobody asks for."""
    made = copy.deepcopy(rules(Bases()))
    for group in made["groups"]:
        group["rules"] = [rule for rule in group["rules"] if rule.get("alert", alert) == alert]
    made["groups"] = [group for group in made["groups"] if group["rules"]]
    return made


def promtool(home: Path, made: dict[str, Any], tests: list[dict[str, Any]]) -> str:
    """What promtool finds wrong; "" where all is as the tests say."""
    suite = {
        "rule_files": ["rules.yaml"],
        "evaluation_interval": "1m",
        "group_eval_order": [group["name"] for group in made["groups"]],
        "tests": tests,
    }
    (home / "rules.yaml").write_text(yaml.safe_dump(made))
    (home / "tests.yaml").write_text(yaml.safe_dump(suite))
    done = subprocess.run(
        [require_program("promtool"), "test", "rules", "tests.yaml"], cwd=home, capture_output=True, text=True
    )
    return "" if done.returncode == 0 else done.stdout + done.stderr

"""The files of the bundle: fresh, taken by the programs that read them, and of names that exist (D5, D6)."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any, get_args

import click
import pytest
import yaml
from click.testing import CliRunner

from tests.support.programs import require_program
from tracekit import metrics
from tracekit.alerts.catalogue import ABSENT, ALERTS, FAILING, JOB, MISTAKEN
from tracekit.alerts.files import files, rules
from tracekit.alerts.recording import RECORDINGS
from tracekit.alerts.rule import SERVICE, Bases
from tracekit.cli.app import App
from tracekit.cli.commands import cli
from tracekit.config import Settings
from tracekit.envelope import Priority
from tracekit.ingress.problems import Reason
from tracekit.instruments import LISTENER_STATES
from tracekit.queue.model import EndState
from tracekit.workers import incidents

ROOT = Path(__file__).parents[2]
RUNBOOKS = (ROOT / "docs/runbooks.md").read_text()
EXPRESSIONS = {**{alert.name: alert.expression for alert in ALERTS}, **{r.name: r.expression for r in RECORDINGS}}


def command(*arguments: str | Path) -> tuple[int, str]:
    """`tracekit alerts …`: its exit code, and what it printed."""
    ran = CliRunner().invoke(cli, ["alerts", *map(str, arguments)], obj=App())
    return ran.exit_code, ran.stdout


def test_d5_the_checked_in_files_are_fresh() -> None:
    assert command("check", "--out", ROOT / "alerts")[0] == 0, "run: tracekit alerts build"


def test_other_addresses_are_other_files(tmp_path: Path) -> None:
    bases = ("--grafana-url", "https://grafana.example.org", "--runbook-url", "https://r.example/p")
    assert command("build", "--out", tmp_path, *bases)[0] == 0
    assert command("check", "--out", tmp_path, *bases)[0] == 0
    assert command("check", "--out", tmp_path, *bases[:2])[0] == 1


def test_the_links_lead_where_it_is_said(tmp_path: Path) -> None:
    bases = ("--grafana-url", "https://g.example/", "--runbook-url", "https://r.example/p")
    assert command("build", "--out", tmp_path, *bases)[0] == 0
    made = yaml.safe_load((tmp_path / "tracekit.rules.yaml").read_text())
    for rule in (rule for group in made["groups"] for rule in group["rules"] if "alert" in rule):
        assert rule["annotations"]["dashboard_url"].startswith("https://g.example/d/tracekit-")
        assert rule["annotations"]["runbook_url"] == f"https://r.example/p#{rule['alert'].lower()}"


# --- the rules --------------------------------------------------------------------------------------------------------


def test_promtool_finds_nothing_wrong_with_the_rules() -> None:
    rule_file = ROOT / "alerts/tracekit.rules.yaml"
    done = subprocess.run(
        [require_program("promtool"), "check", "rules", "--lint=all", "--lint-fatal", rule_file],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert.name)
def test_d5_an_alert_has_all_that_a_person_needs(alert: Any) -> None:
    rule = alert.rule(Bases())
    assert re.fullmatch(r"[1-9]\d*m", rule["for"])
    assert rule["labels"] == {"severity": alert.severity, "service": SERVICE}
    assert set(rule["annotations"]) == {"summary", "description", "dashboard_url", "runbook_url"}
    assert len(alert.summary) <= 160
    assert alert.description.endswith(".")
    used = set(re.findall(r"\$labels\.(\w+)", f"{alert.summary} {alert.description}")) | set(alert.filled)
    assert used <= alert.expression.labels, "a label in the text is one of the expression"
    # That nothing is seen explains all the others as it is.
    assert set(alert.follows_from) <= {other.name for other in ALERTS} - {ABSENT}


def test_d5_every_alert_has_its_runbook_and_no_runbook_is_an_orphan() -> None:
    sections = re.findall(r"^## (.+)$", RUNBOOKS, re.MULTILINE)
    assert sections == [alert.name for alert in ALERTS]
    for section in re.split(r"^## ", RUNBOOKS, flags=re.MULTILINE)[1:]:
        assert re.findall(r"^- \*\*(\w+)\.\*\*", section, re.MULTILINE) == [
            "Meaning",
            "Impact",
            "Diagnosis",
            "Mitigation",
        ]


def test_d5_the_commands_of_the_runbooks_exist() -> None:
    named = re.findall(r"`(tracekit [^`]+)`", " ".join(RUNBOOKS.split()))
    assert len(named) > 20
    for line in named:
        words = [word for word in line.split()[1:] if not word.startswith(("<", "…"))]
        found: click.Command = cli
        while isinstance(found, click.Group) and words and (inner := found.commands.get(words[0])):
            found, words = inner, words[1:]
        assert found is not cli, f"there is no {line}"
        options = {option for parameter in found.params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= options | {"--help"}, line


def test_the_settings_and_log_lines_of_the_runbooks_exist() -> None:
    source = "".join(path.read_text() for path in (ROOT / "src").rglob("*.py"))
    named = set(re.findall(r"`([a-z]+)\.([a-z_]+)`", RUNBOOKS))
    assert len(named) > 8
    for first, second in named:
        section = getattr(Settings(), first, None)
        assert hasattr(section, second) or f'"{first}.{second}"' in source or second in LISTENER_STATES, (
            f"{first}.{second}"
        )


def test_d6_every_value_that_a_rule_asks_for_is_one_that_is_emitted() -> None:
    known = {
        (metrics.HOPS.name, "state"): {"ready", "scheduled", "running", "parked"},
        (metrics.HOP_OLDEST_AGE.name, "state"): {"ready", "scheduled", "running", "parked"},
        (metrics.HOP_OLDEST_AGE.name, "priority"): {priority.value for priority in Priority},
        (metrics.LISTENER_STATE.name, "state"): set(LISTENER_STATES),
        (metrics.TASKS_ENDED.name, "state"): set(get_args(EndState)),
        (metrics.TASKS_ENDED.name, "destructive"): {"true", "false"},
        (metrics.INGRESS_REFUSALS.name, "reason"): {reason.label for reason in Reason},
        (metrics.UNPRICED_CALLS.name, "synthetic"): {"true", "false"},
        (metrics.CALLS_PRICED_LATER.name, "synthetic"): {"true", "false"},
        ("up", "job"): {"tracekit"},
    }
    asked = 0
    for expression in EXPRESSIONS.values():
        for metric, matchers in re.findall(r"(\w+)\{([^}]*)\}", expression.text):
            for label, values in re.findall(r'(\w+)=~?"([^"]*)"', matchers):
                assert set(values.split("|")) <= known[metric, label], f"{metric}{{{label}}}"
                asked += 1
    assert asked > 10
    assert not set(FAILING) & set(MISTAKEN)


def test_d6_every_series_that_a_rule_names_is_of_the_catalogue_or_recorded_before() -> None:
    made = rules(Bases())
    recorded: set[str] = set()
    emitted = {metric.name for metric in metrics.CATALOGUE} | {"up"}
    for rule in (rule for group in made["groups"] for rule in group["rules"]):
        named = set(re.findall(r"\b(?:\w+:)?(?:tracekit_\w+|up)\b(?::\w+)?", rule["expr"]))
        assert named, rule
        assert named <= emitted | recorded, rule
        recorded |= {rule["record"]} if "record" in rule else set()


# --- Alertmanager -----------------------------------------------------------------------------------------------------


def amtool(*arguments: str | Path) -> str:
    done = subprocess.run([require_program("amtool"), *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_amtool_takes_the_configuration() -> None:
    assert "SUCCESS" in amtool("check-config", ROOT / "alerts/alertmanager.yaml")


def test_no_secret_stands_in_the_configuration() -> None:
    text = files(Bases())["alertmanager.yaml"]
    assert not re.search(r"^[^#]*\b(password|token|credentials|secret|api_key|user_key): *\S", text, re.MULTILINE)
    assert text.count("credentials_file:") == 2


@pytest.mark.parametrize(
    ("labels", "receivers"),
    [
        ("alertname=DiskFull severity=warning", "tracekit,nobody"),
        ("alertname=DiskFull severity=info", "tracekit,nobody"),
        ("alertname=DiskFull", "tracekit,nobody"),
        ("alertname=DiskFull severity=critical", "tracekit,people"),
        ("alertname=DiskFull severity=page", "tracekit,people"),
        ("alertname=DiskFull severity=critical service=nas", "tracekit,people"),
        ("alertname=Watchdog severity=none", "nobody"),
        ("alertname=TracekitDeadLetters severity=warning service=tracekit mode=executor", "people"),
        ("alertname=TracekitNoWorker severity=critical service=tracekit mode=executor", "people"),
        # Who took the label away, or watches tracekit with rules of their own, makes no loop either.
        ("alertname=TracekitDeadLetters severity=warning", "people"),
        ("alertname=TargetDown severity=warning job=tracekit", "people"),
        ("alertname=TargetDown severity=critical job=node", "tracekit,people"),
    ],
)
def test_where_an_alert_goes(labels: str, receivers: str) -> None:
    config = f"--config.file={ROOT / 'alerts/alertmanager.yaml'}"
    assert amtool("config", "routes", "test", config, *labels.split()).strip() == receivers


def test_no_alert_about_tracekit_goes_to_tracekit() -> None:
    config = f"--config.file={ROOT / 'alerts/alertmanager.yaml'}"
    for alert in ALERTS:
        labels = [f"{name}={value}" for name, value in alert.rule(Bases())["labels"].items()]
        said = amtool("config", "routes", "test", config, f"alertname={alert.name}", *labels)
        assert said.strip() == "people"


def test_tracekit_knows_its_own_alerts_by_the_label_that_they_have() -> None:
    assert incidents.OWN == {"service": SERVICE, "job": JOB, "alertname": "Tracekit.+"}

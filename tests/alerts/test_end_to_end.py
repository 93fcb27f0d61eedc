"""All of it at once, with the real programs: tracekit, Prometheus with our rules, Alertmanager with our routes, and a
person's receiver.

The rules are the generated ones but for their times: they are evaluated twice a second, and `for` and `keep_firing_for`
are a second. So are Alertmanager's own waits. Addresses and secrets are the test's.
"""

from __future__ import annotations

import copy
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.alerts.programs import alertmanager, answers
from tests.cli.running import Cli, environment
from tests.ingress.conftest import ALERTS as ALERTS_TOKEN
from tests.ingress.conftest import OPERATOR, TOKENS
from tests.support.ports import free_port
from tests.support.processes import Process, eventually
from tests.support.prometheus import Prometheus
from tests.support.receiving import Received, serving
from tracekit.alerts.catalogue import ALERTS, JOB
from tracekit.alerts.files import rules
from tracekit.alerts.routing import configuration
from tracekit.alerts.rule import Bases
from tracekit.queue import Queue

SOON = "1s"


def settings(port: int) -> str:
    """tracekit's configuration."""
    lines = ["[ingress]", f"port = {port}", "[principals]"]
    lines += [f'{name} = {{ role = "{role}" }}' for name, role in (("rob", "operator"), ("renee", "household"))]
    lines += ['guest = { role = "household" }', 'system = { role = "system" }']
    for token in TOKENS:
        lines += ["[[tokens]]"]
        lines += [
            f'{name} = "{value}"' for name, value in token.model_dump(mode="json").items() if isinstance(value, str)
        ]
    return "\n".join(lines)


def hurried_rules() -> dict[str, Any]:
    """Ours, hurried, and one of somebody else's that fires from the start."""
    made = copy.deepcopy(rules(Bases()))
    for group in made["groups"]:
        group["interval"] = "500ms"
        for rule in group["rules"]:
            rule.update({name: SOON for name in ("for", "keep_firing_for") if name in rule})
    foreign = {"alert": "FreezerWarm", "expr": "vector(1)", "labels": {"severity": "warning"}}
    return {"groups": [*made["groups"], {"name": "house", "interval": "500ms", "rules": [foreign]}]}


def hurried_routes(home: Path, people: str, tracekit: str) -> dict[str, Any]:
    """Ours, hurried, to these addresses, with each secret in a file."""
    made = copy.deepcopy(configuration(ALERTS))

    def hurry(route: dict[str, Any]) -> None:
        route.update({"group_wait": "100ms", "group_interval": SOON})
        for child in route.get("routes", ()):
            hurry(child)

    hurry(made["route"])
    addresses = {"people": (people, "not looked at"), "tracekit": (tracekit, ALERTS_TOKEN)}
    for receiver in made["receivers"]:
        for webhook in receiver.get("webhook_configs", ()):
            webhook["url"], secret = addresses[receiver["name"]]
            file = home / f"{receiver['name']}-token"
            file.write_text(secret)
            webhook["http_config"]["authorization"]["credentials_file"] = str(file)
    return made


@asynccontextmanager
async def monitored(home: Path, tracekit: int, people: str) -> AsyncIterator[None]:
    """Alertmanager and Prometheus, watching the tracekit at that port."""
    (home / "rules.yaml").write_text(yaml.safe_dump(hurried_rules()))
    routes = hurried_routes(home, people, f"http://127.0.0.1:{tracekit}/ingress/alertmanager")
    async with alertmanager(home, routes) as address:
        jobs = {JOB: [f"127.0.0.1:{tracekit}"]}
        alerting = {
            "rule_files": [str(home / "rules.yaml")],
            "alerting": {"alertmanagers": [{"static_configs": [{"targets": [address]}]}]},
        }
        # It finds its Alertmanager some seconds after its first alerts, and would say them again after a minute.
        soon = ("--rules.alert.resend-delay=5s",)
        with Prometheus.scraping(jobs, home / "prometheus", interval=0.5, more=alerting, arguments=soon):
            yield


class Inbox:
    """What a person was told: the alerts that came, each with its group's status."""

    def __init__(self, received: Received) -> None:
        self._received = received
        self.told: list[dict[str, Any]] = []

    async def gets(self, status: str, **labels: str) -> dict[str, Any]:
        """Wait for an alert with these labels in that state."""

        async def look() -> dict[str, Any] | None:
            while not self._received.posted.empty():
                self.told += json.loads(self._received.posted.get())["alerts"]
            for alert in self.told:
                if alert["status"] == status and labels.items() <= alert["labels"].items():
                    return alert
            return None

        found = await eventually(look, f"a person is told of {labels} {status}")
        assert found is not None
        return found


async def test_d5_a_dead_letter_reaches_people_and_comes_back_resolved_and_what_is_foreign_reaches_tracekit(
    dsn: str, queue: Queue, tmp_path: Path
) -> None:
    port, received = free_port(), Received()
    home = tmp_path / "home"
    home.mkdir()
    env = environment(home, dsn)
    (home / "tracekit.toml").write_text(settings(port))
    cli, inbox, url = Cli(env), Inbox(received), f"http://127.0.0.1:{port}"
    async with (
        await Process.start("tracekit", "up", log=tmp_path / "log", env=env),
        httpx.AsyncClient(base_url=url, headers={"Authorization": f"Bearer {OPERATOR}"}) as http,
    ):
        await eventually(lambda: answers(f"{url}/readyz"), "tracekit is ready")
        # It has no Home Assistant to ask: no attempt will do better.
        request = {"intent": "turn on the kitchen light", "idempotency_key": "light"}
        task = (await http.post("/v1/tasks", json=request)).json()["task_id"]

        async def dead() -> bool:
            return (await queue.task(task)).state == "dead"

        await eventually(dead, "the task is dead")
        [entry] = await queue.dead_letters(task_id=task)
        async with AsyncExitStack() as stack:
            people = stack.enter_context(serving(received))
            await stack.enter_async_context(monitored(tmp_path, port, people))
            told = await inbox.gets("firing", alertname="TracekitDeadLetters", mode=entry.mode)
            assert told["annotations"]["summary"] == f"Dead in mode {entry.mode}: 1"
            assert told["annotations"]["dashboard_url"].endswith(f"/d/tracekit-queue?var-mode={entry.mode}")

            async def filed() -> list[str]:
                return [one.intent for one in await queue.tasks() if one.surface == "alertmanager"]

            assert await eventually(filed, "the foreign alert is a task") == ["Alert firing: FreezerWarm"]
            await cli.ok("dlq", "abandon", task)
            over = await inbox.gets("resolved", alertname="TracekitDeadLetters", mode=entry.mode)
            assert over["fingerprint"] == told["fingerprint"]
            # Neither of them was tracekit's to work on, and a warning from elsewhere was nobody's to be woken for.
            assert await filed() == ["Alert firing: FreezerWarm"]
            assert "FreezerWarm" not in {alert["labels"]["alertname"] for alert in inbox.told}

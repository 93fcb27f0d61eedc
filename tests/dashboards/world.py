"""A real run of everything, for the dashboards to show: `tracekit up`, a second worker, a house, a model, a phone, a
synthetic week, and a Prometheus that scrapes it from before the first task to after the last.

What is in it when it is handed over: tasks that are done, dead, rejected, expired, abandoned, restricted and still
waiting for a person; calls of models with and without a price; budgets; a pull request, a CI run and a deploy that
are known.
"""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from importlib.resources import files
from pathlib import Path
from typing import Any

import psycopg

from tests.queue.driving import settle, submission, take
from tests.support.prometheus import Prometheus
from tracekit.dashboards import expand
from tracekit.dashboards.expand import Scope
from tracekit.demo.phone import NtfyStandIn
from tracekit.demo.stage import Stage
from tracekit.envelope import Priority
from tracekit.postgres import EmbeddedServer, open_pool
from tracekit.queue import Done, Park, Queue

SCRAPE_S = 0.5
WAIT_S = 90.0

SECRET = "the safe opens with 4711"
"""What a restricted task is about."""

_MODELS = """
[models.remote]
base_url = "{url}"
model = "gpt-4o-mini"

[models.strange]
base_url = "{url}"
model = "nobody-knows-1"
provider = "nobody"

"""

_RULES = """
[[plan]]
name = "ask"
intent = '''ask (?P<model>remote|strange|gone): (?P<question>.{1,200})'''
[[plan.step]]
capability = "model.chat"
arguments = { model = "{model}", prompt = "{question}" }
"""


@dataclass
class World:
    """The running system, as a dashboard sees it."""

    stage: Stage
    phone: NtfyStandIn
    prometheus: Prometheus
    dsn: str
    began: datetime
    tasks: dict[str, str] = field(default_factory=dict)
    """Ids by what the task is about."""

    @property
    def scope(self) -> Scope:
        """The time of the run, scraped often."""
        return Scope(self.began - timedelta(days=8), datetime.now(UTC) + timedelta(minutes=1), scrape=SCRAPE_S)

    @property
    def run(self) -> Scope:
        """Without the synthetic week: so short that a rate's window is a few scrapes."""
        return Scope(self.began, datetime.now(UTC), scrape=SCRAPE_S)

    def sql(self, query: str) -> tuple[list[str], list[tuple[Any, ...]]]:
        """Columns and rows, as the role that ships with the migrations sees them."""
        with psycopg.connect(self.dsn) as connection:
            connection.execute("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY")
            connection.execute("SET ROLE tracekit_grafana")
            cursor = connection.execute(query.encode())
            return [column.name for column in cursor.description or []], cursor.fetchall()

    def owner(self, query: str) -> Any:
        """The one value of a query, as the owner of the tables sees it."""
        with psycopg.connect(self.dsn) as connection:
            row = connection.execute(query.encode()).fetchone()
            assert row is not None
            return row[0]

    def promql(self, query: str, *, instant: bool) -> list[dict[str, Any]]:
        """The series that a query finds over the run, or now."""
        scope = self.run
        if instant:
            return self.prometheus.query(query, scope.ends)
        return self.prometheus.query_range(query, scope.begins, scope.ends, expand.duration(scope.step))


@contextlib.asynccontextmanager
async def world(home: Path) -> AsyncIterator[World]:
    """All of it, from before its first task to after its last."""
    with NtfyStandIn() as phone, Stage(ntfy_url=phone.url, keep=False) as stage:
        model = stage.start("model", "tracekit.demo.model", "--port", "0")
        url = stage.wait("the model served", lambda: model.log.read_text().strip(), timeout=WAIT_S, needs=(model,))
        rules = home / "rules.toml"
        rules.write_text(_RULES)
        stage.config.write_text(f'rules = "{rules}"\n' + stage.config.read_text() + _MODELS.format(url=url))
        began = datetime.now(UTC)
        house = stage.start(
            "house", "tracekit.demo.home_assistant", "--port", str(stage.house_port), "--token", stage.house_token
        )
        up = stage.start("up", "tracekit", "up")
        stage.wait("it was ready", stage.ready, timeout=WAIT_S, needs=(up, house))
        target = stage.url.removeprefix("http://")
        with Prometheus.scraping({"tracekit": [target]}, home / "prometheus", interval=SCRAPE_S) as prometheus:
            made = World(stage, phone, prometheus, EmbeddedServer(stage.home).dsn, began)
            prometheus.until("up == 1", "tracekit is scraped")
            _command(made, "demo", "--week")
            _go_well(made)
            # From now on: in a budget of dollars a call without a price has no room.
            _command(made, "budget", "set", "5", "--per", "day")
            _command(made, "budget", "set", "2M", "--unit", "tokens", "--per", "week", "--requester", "rob")
            _need_a_person(made)
            _die(made)
            await _change_things(made)
            _are_scraped(made)
            yield made


def _go_well(made: World) -> None:
    """Tasks that are done, some by a model; and what ingress refuses."""
    stage = made.stage
    for _ in range(2):  # the second is a duplicate
        _submit(made, "light", "renee", "Turn on the kitchen light", key="light")
    _submit(made, "failed", "rob", "Turn on the attic light")
    _ends(made, "failed", "failed")
    _submit(made, "secret", "rob", f"note: {SECRET}", data_tier="restricted")
    for number in range(3):
        _submit(made, f"remote {number}", "rob", f"ask remote: what is {number} and {number}?")
        _submit(made, f"strange {number}", "rob", f"ask strange: what is {number} and {number}?")
        for name in ("remote", "strange"):
            _ends(made, f"{name} {number}", "done")
    for name in ("light", "secret"):
        _ends(made, name, "done")
    body = files("tracekit.demo").joinpath("alertmanager_webhook.json").read_bytes()
    headers = {"Content-Type": "application/json"}
    answer = stage.ask("POST", "/ingress/alertmanager", "alertmanager", content=body, headers=headers)
    assert answer.status_code == 200
    made.tasks |= {f"alert {number}": task for number, task in enumerate(answer.json()["tasks"])}
    _ends(made, "alert 0", "done")
    assert stage.ask("POST", "/v1/tasks", "rob", json={"intent": 3}).status_code == 422


def _need_a_person(made: World) -> None:
    """Plans that are approved, rejected, left to expire, and that still wait."""
    for name, intent, label in (
        ("approved", "Unlock the front door", "Approve"),
        ("rejected", "Unlock the back door", "Reject"),
    ):
        _submit(made, name, "renee", intent)
        message = made.phone.wait_for(made.tasks[name], timeout=WAIT_S)
        assert message is not None
        link = next(action["url"] for action in message["actions"] if action["label"] == label)
        assert made.stage.ask("POST", link).status_code == 200
        _ends(made, name, "done" if label == "Approve" else "rejected")
    _submit(made, "expired", "rob", "note: burn the letters", destructive=True, ttl=1)
    _ends(made, "expired", "expired")
    _submit(made, "waiting", "renee", "Unlock the garage")
    assert made.phone.wait_for(made.tasks["waiting"], timeout=WAIT_S) is not None


def _die(made: World) -> None:
    """Tasks that end in the DLQ: one stays there, one is abandoned."""
    twice = {"max_attempts": 2, "initial_delay": 0.001, "multiplier": 1, "max_delay": 0.001}
    for name in ("dead", "abandoned"):
        _submit(made, name, "rob", f"ask gone: is anybody there, or {name}?", retry_policy=twice)
        _ends(made, name, "dead")
    _command(made, "dlq", "abandon", made.tasks["abandoned"])
    _ends(made, "abandoned", "abandoned")


async def _change_things(made: World) -> None:
    """What nobody files yet: a task that waits for its pull request, its CI run and its deploy, and is told of each.
    And two tasks in a mode that nobody serves.
    """
    async with await open_pool(made.dsn, min_size=1, max_size=2, name="test", autocommit=True) as pool:
        queue = Queue(pool)
        accepted = await queue.enqueue([submission("outside", intent="bump the chart")])
        made.tasks["changed"] = accepted[0].task_id
        for kind in ("pull_request", "ci", "flux"):
            at = await take(queue, "outside")
            wait = Park(kind, f"{kind}:1", timedelta(hours=1), {"title": f"the {kind}"})
            assert await settle(queue, at, wait)
            told = {"title": f"the {kind}", "url": f"https://example.org/{kind}/1", "state": "success"}
            await queue.signal(f"{kind}:1", told, dedupe_key=f"{kind}:1", sent_by="system")
        assert await settle(queue, await take(queue, "outside"), Done(summary="bumped"))
        await queue.enqueue([submission("nobody", priority=priority) for priority in (Priority.LOW, Priority.URGENT)])
        async with queue.connection() as connection:
            # Autovacuum comes when it comes.
            await connection.execute("VACUUM tracekit.queue")


def _are_scraped(made: World) -> None:
    """Prometheus has seen all of it, and a few scrapes after it."""
    for query in (
        "sum(tracekit_dead_letters) == 1",
        'sum(tracekit_hops{state="ready"}) == 2',
        "sum(tracekit_approvals_pending) >= 1",
        'sum(tracekit_model_calls_total{synthetic="false"}) == 6',
        "count(tracekit_budget_amount) == 2",
        'sum(tracekit_tasks_ended_total{state="expired"}) >= 1',
        f"min(timestamp(tracekit_database_up)) > {time.time() + 3 * SCRAPE_S}",
    ):
        made.prometheus.until(query, "what happened is scraped")


def _submit(made: World, name: str, holder: str, intent: str, **fields: Any) -> None:
    body = {"intent": intent, "idempotency_key": fields.pop("key", name), **fields}
    answer = made.stage.ask("POST", "/v1/tasks", holder, json=body)
    assert answer.status_code in (200, 201, 202), answer.text
    made.tasks[name] = answer.json()["task_id"]


def _ends(made: World, name: str, state: str) -> None:
    task = made.tasks[name]

    def look() -> bool:
        _, rows = made.sql(f"SELECT state, summary FROM grafana.tasks WHERE task_id = '{task}'")
        assert rows[0][0] in ("open", "dead", state), f"{name}: {rows}"
        return bool(rows[0][0] == state)

    made.stage.wait(f"{name} was {state}", look, timeout=WAIT_S)


def _command(made: World, *arguments: str) -> None:
    code, out = made.stage.run(*arguments, stdout=subprocess.PIPE, timeout=2 * WAIT_S)
    assert code == 0, f"{arguments}: {code} {out}"

"""The observer against the real Alertmanager, and against servers that are not as they should be."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog
import yaml
from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from tests.queue.driving import accept, claim, settle, take
from tests.support.ports import free_port
from tests.support.processes import eventually
from tests.support.programs import require_program
from tests.support.receiving import Received, serving
from tracekit import ids
from tracekit.config import AlertmanagerSettings, Principal, Settings
from tracekit.queue import Done, GiveUp, LeaseLost, Outcome, Queue
from tracekit.workers.incidents import parse_webhook, submission
from tracekit.workers.mode import Hop, NoInput, Services
from tracekit.workers.modes import observer
from tracekit.workers.modes.observer import AlertmanagerSource, Observer, ObserverError


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient() as client:
        yield client


def services(queue: Queue, http: httpx.AsyncClient, url: str) -> Services:
    return Services(Settings(alertmanager=AlertmanagerSettings(url=url)), queue, http)


async def run(queue: Queue, serves: Services) -> Outcome:
    """One attempt at the next hop of the observer, settled."""
    position = await take(queue, "observer")
    mode = Observer(serves)
    outcome = await mode.run(Hop(position, NoInput(), serves, structlog.get_logger()))
    assert await settle(queue, position, outcome)
    return outcome


# --- the real one ---------------------------------------------------------------------------------------------------


@contextmanager
def alertmanager(home: Path, webhook: str) -> Iterator[str]:
    program = require_program("alertmanager")
    config = {
        "route": {
            "receiver": "tracekit",
            "group_by": ["..."],
            "group_wait": "1ms",
            "group_interval": "1s",
            "repeat_interval": "1h",
        },
        "receivers": [{"name": "tracekit", "webhook_configs": [{"url": webhook, "send_resolved": True}]}],
    }
    (home / "alertmanager.yml").write_text(yaml.safe_dump(config))
    port = free_port()
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                program,
                f"--config.file={home / 'alertmanager.yml'}",
                f"--storage.path={home / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
                "--cluster.listen-address=",
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


async def ready(http: httpx.AsyncClient, url: str) -> bool:
    try:
        return (await http.get(f"{url}/-/ready")).status_code == 200
    except httpx.TransportError:
        return False


def fires(name: str, **labels: str) -> dict[str, Any]:
    return {
        "labels": {"alertname": name, **labels},
        "annotations": {"summary": f"{name} needs you"},
        # Nanoseconds, as Prometheus has them.
        "startsAt": f"{datetime.now(UTC) - timedelta(minutes=3):%Y-%m-%dT%H:%M:%S}.123456789Z",
        "generatorURL": "http://prometheus.example/graph",
    }


async def webhooks(received: Received, number: int) -> list[Any]:
    """The next alerts that Alertmanager delivers, each as its own message."""
    bodies = [await asyncio.to_thread(received.posted.get, True, 30) for _ in range(number)]
    return [json.loads(body) for body in bodies]


async def test_one_task_an_incident_from_the_real_alertmanager(
    queue: Queue, http: httpx.AsyncClient, tmp_path: Path
) -> None:
    received = Received()
    with serving(received) as webhook, alertmanager(tmp_path, webhook) as url:
        await eventually(lambda: ready(http, url), "Alertmanager is ready")
        alerts = [fires("DiskFull", severity="page", host="nas"), fires("PodCrashLooping", severity="critical")]
        assert (await http.post(f"{url}/api/v2/alerts", json=alerts)).status_code == 200
        delivered = [parse_webhook(body) for body in await webhooks(received, 2)]

        source = AlertmanagerSource(services(queue, http, url))
        assert [await source.poll(), await source.poll()] == [2, 0]
        tasks = {task.intent: task for task in await queue.tasks()}
        assert set(tasks) == {
            "Alert firing: DiskFull – DiskFull needs you",
            "Alert firing: PodCrashLooping – PodCrashLooping needs you",
        }
        assert {(task.requester, task.origin, task.surface) for task in tasks.values()} == {
            ("system", "observer", "alertmanager")
        }

        # What the webhook had brought of the same incidents is the same two tasks.
        for parsed in delivered:
            assert parsed.faults == []
            [alert] = parsed.alerts
            made = submission(alert, requester="system", trace_id=ids.new_trace_id())
            [receipt] = await queue.enqueue([made])
            assert (receipt.duplicate, receipt.task_id) == (True, tasks[alert.intent].id)

        # The page is claimed first, and has what the webhook would have given it.
        urgent = await take(queue, "router")
        assert urgent.input["alert"]["labels"]["host"] == "nas"
        assert urgent.input["alert"]["endsAt"] is None

        # A resolved one is delivered by the webhook alone; the poll guesses at nothing.
        over = {**alerts[0], "endsAt": f"{datetime.now(UTC) - timedelta(seconds=1):%Y-%m-%dT%H:%M:%S}.987654321Z"}
        assert (await http.post(f"{url}/api/v2/alerts", json=[over])).status_code == 200
        [ended] = [parse_webhook(body) for body in await webhooks(received, 1)]
        assert await source.poll() == 0
        [alert] = ended.alerts
        assert (alert.status, alert.ends_at and alert.ends_at.microsecond) == ("resolved", 987000)
        made = submission(alert, requester="system", trace_id=ids.new_trace_id())
        assert [receipt.duplicate for receipt in await queue.enqueue([made])] == [False]
        assert made.envelope.intent == "Alert resolved: DiskFull – DiskFull needs you"


async def test_a_silenced_alert_files_no_task(queue: Queue, http: httpx.AsyncClient, tmp_path: Path) -> None:
    received = Received()
    with serving(received) as webhook, alertmanager(tmp_path, webhook) as url:
        await eventually(lambda: ready(http, url), "Alertmanager is ready")
        now = datetime.now(UTC)
        silence = {
            "matchers": [{"name": "alertname", "value": "Known", "isRegex": False, "isEqual": True}],
            "startsAt": now.isoformat(),
            "endsAt": (now + timedelta(hours=1)).isoformat(),
            "createdBy": "rob",
            "comment": "known",
        }
        assert (await http.post(f"{url}/api/v2/silences", json=silence)).status_code == 200
        await http.post(f"{url}/api/v2/alerts", json=[fires("Known"), fires("Unknown")])
        await webhooks(received, 1)

        async def silenced() -> bool:
            everything = (await http.get(f"{url}/api/v2/alerts")).json()
            return [alert["status"]["state"] for alert in everything].count("suppressed") == 1

        await eventually(silenced, "the silence is in force")
        assert await AlertmanagerSource(services(queue, http, url)).poll() == 1
        assert [task.intent for task in await queue.tasks()] == ["Alert firing: Unknown – Unknown needs you"]


async def test_an_alert_about_tracekit_files_no_task(queue: Queue, http: httpx.AsyncClient, tmp_path: Path) -> None:
    received = Received()
    with serving(received) as webhook, alertmanager(tmp_path, webhook) as url:
        await eventually(lambda: ready(http, url), "Alertmanager is ready")
        alerts = [fires("TracekitDeadLetters", service="tracekit"), fires("DiskFull", service="nas")]
        await http.post(f"{url}/api/v2/alerts", json=alerts)
        await webhooks(received, 2)
        assert await AlertmanagerSource(services(queue, http, url)).poll() == 1
        assert [task.intent for task in await queue.tasks()] == ["Alert firing: DiskFull – DiskFull needs you"]


# --- as a mode ------------------------------------------------------------------------------------------------------


def polled(number: int) -> dict[str, Any]:
    return {
        "fingerprint": f"{number:016x}",
        "status": {"state": "active"},
        "labels": {"alertname": f"A{number}"},
        "annotations": {},
        "startsAt": "2026-11-23T07:12:08.586Z",
        "endsAt": "2026-11-23T07:13:08.586Z",
    }


async def test_a_task_for_the_observer_looks_once_and_says_what_it_filed(
    queue: Queue, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(observer, "BATCH", 2)
    received = Received()
    received.answer = (200, json.dumps([*(polled(number) for number in range(5)), {"status": "odd"}]).encode())
    with serving(received) as url:
        serves = services(queue, http, f"{url}/am/")
        await accept(queue, "observer")
        outcome = await run(queue, serves)
        assert isinstance(outcome, Done)
        assert outcome.summary == "5 alerts firing, 5 new tasks filed. 4 faults made others unreadable."
        assert received.asked == ["/am/api/v2/alerts?active=true&silenced=false&inhibited=false"]

        again = await accept(queue, "observer")
        await run(queue, serves)
        assert (await queue.task(again)).summary == (
            "5 alerts firing, 0 new tasks filed. 4 faults made others unreadable."
        )


async def test_a_look_whose_attempt_died_after_it_is_not_repeated_Q5(queue: Queue, http: httpx.AsyncClient) -> None:
    received = Received()
    received.answer = (200, json.dumps([polled(1)]).encode())
    with serving(received) as url:
        serves = services(queue, http, url)
        await accept(queue, "observer")
        dead = await take(queue, "observer", lease=timedelta(0))
        mode = Observer(serves)
        # Its lease runs out: the sweep gives the hop to another.
        await queue.sweep()
        with pytest.raises(LeaseLost):
            await mode.run(Hop(dead, NoInput(), serves, structlog.get_logger()))
        assert received.asked == []
        first = await take(queue, "observer")
        assert isinstance(await mode.run(Hop(first, NoInput(), serves, structlog.get_logger())), Done)
        outcome = await mode.run(Hop(first, NoInput(), serves, structlog.get_logger()))
        assert isinstance(outcome, Done)
        assert outcome.summary == "1 alert firing, 1 new task filed."
        assert len(received.asked) == 1


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ((503, b""), "answered 503"),
        ((200, b"<html>"), "did not answer a list"),
        ((200, b'{"data": []}'), "did not answer a list"),
        ((302, b""), "answered 302"),
        ((200, b"[" + b" " * 2_000 + b"]"), "answered more than 1000 bytes"),
    ],
)
async def test_an_answer_that_is_none_is_a_failed_look(
    queue: Queue, http: httpx.AsyncClient, answer: tuple[int, bytes], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(observer, "MAX_ANSWER", 1_000)
    received = Received()
    received.answer = answer
    with serving(received) as url, pytest.raises(ObserverError, match=says):
        await AlertmanagerSource(services(queue, http, url)).poll()
    assert await claim(queue) is None


async def test_one_that_is_away_is_said_without_its_password(queue: Queue, http: httpx.AsyncClient) -> None:
    url = f"http://rob:hunter2@127.0.0.1:{free_port()}"
    with pytest.raises(ObserverError, match=r"cannot be reached \(ConnectError\)") as failed:
        await AlertmanagerSource(services(queue, http, url)).poll()
    assert "hunter2" not in f"{failed.value!r} {failed.value.hint}"


async def test_a_poll_makes_no_spans_and_a_task_does_T9(queue: Queue, http: httpx.AsyncClient) -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    HTTPXClientInstrumentor().instrument_client(http, tracer_provider=provider)
    received = Received()
    with serving(received) as url:
        serves = services(queue, http, url)
        await AlertmanagerSource(serves).poll()
        assert exporter.get_finished_spans() == ()
        assert "traceparent" not in received.headers[-1]
        await accept(queue, "observer")
        await run(queue, serves)
        assert len(exporter.get_finished_spans()) == 1
        assert "traceparent" in received.headers[-1]


async def test_without_an_address_nothing_is_polled_and_a_task_gives_up(queue: Queue, http: httpx.AsyncClient) -> None:
    serves = services(queue, http, "")
    assert Observer(serves).sources() == []
    assert len(Observer(services(queue, http, "http://127.0.0.1:9")).sources()) == 1
    await accept(queue, "observer")
    assert await run(queue, serves) == GiveUp("no Alertmanager is configured: set alertmanager.url")


def test_a_program_asks_as_the_principal_that_is_the_system() -> None:
    assert Settings().system_principal == "system"
    renamed = {"ann": Principal(role="operator"), "house": Principal(role="system")}
    assert Settings(principals=renamed, cli_principal="ann").system_principal == "house"

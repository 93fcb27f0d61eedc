"""`prometheus.query` against the real Prometheus, and alerts with and without one."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.ports import free_port
from tests.support.processes import patience
from tests.support.programs import require_program
from tests.workers.modes.driving import Driver, settings_for
from tracekit.config import PrometheusSettings
from tracekit.demo.home_assistant import HomeAssistantStandIn
from tracekit.envelope import Origin

ALERT = {
    "fingerprint": "a33b9ba9c13c0f3e",
    "status": "firing",
    "labels": {"alertname": "PodCrashLooping", "pod": "jellyfin-0"},
    "annotations": {"summary": "jellyfin-0 crash looping"},
    "startsAt": "2026-11-23T07:12:08.586Z",
    "endsAt": None,
    "generatorURL": "http://prometheus.local/graph?g0.expr=vector%2842%29&g0.tab=1",
}


async def alerted(driver: Driver, **alert: Any) -> Any:
    """What the reviewer says of an alert's task."""
    await driver.do(
        "Alert firing: PodCrashLooping", input={"alert": {**ALERT, **alert}}, requester="system", origin=Origin.OBSERVER
    )
    return await driver.reviewed()


def at(driver: Driver, house: HomeAssistantStandIn, tmp_path: Path, url: str) -> Driver:
    """A driver whose Prometheus is at `url`."""
    settings = settings_for(tmp_path, house, prometheus=PrometheusSettings(url=url))
    return Driver(driver.queue, settings, driver.http)


@pytest.fixture(scope="module")
async def prometheus(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    """The address of a real Prometheus that scrapes nothing."""
    program = require_program("prometheus")
    home = tmp_path_factory.mktemp("prometheus")
    (home / "prometheus.yml").write_text("global: {}\n")
    port = free_port()
    arguments = [
        f"--config.file={home}/prometheus.yml",
        f"--storage.tsdb.path={home}/data",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    process = await asyncio.create_subprocess_exec(program, *arguments, stderr=asyncio.subprocess.PIPE)
    assert process.stderr is not None
    async with patience():
        while b"ready to receive web requests" not in (line := await process.stderr.readline()):
            assert line, "Prometheus ended before it was ready"
    draining = asyncio.create_task(process.stderr.read())
    yield f"http://127.0.0.1:{port}"
    process.terminate()
    await draining
    await process.wait()


async def test_an_alerts_expression_is_asked_and_kept(
    driver: Driver, house: HomeAssistantStandIn, tmp_path: Path, prometheus: str
) -> None:
    reviewed = await alerted(at(driver, house, tmp_path, prometheus))
    query, note = reviewed.steps
    assert (query.outcome, query.result["type"], query.result["series"]) == ("done", "vector", 1)
    assert query.result["values"][0]["value"][1] == "42"
    assert note.outcome == "done"


@pytest.mark.parametrize(
    ("expression", "series", "kept"),
    [
        ("scalar(vector(7))", 1, 1),
        ("vector(1) > 2", 0, 0),
        ("label_replace(vector(1), %22a%22, %22" + "b" * 3000 + "%22, %22%22, %22%22)", 1, 1),
    ],
)
async def test_answers_of_other_shapes(
    driver: Driver,
    house: HomeAssistantStandIn,
    tmp_path: Path,
    prometheus: str,
    expression: str,
    series: int,
    kept: int,
) -> None:
    url = f"http://p/graph?g0.expr={expression}"
    reviewed = await alerted(at(driver, house, tmp_path, prometheus), generatorURL=url)
    assert reviewed.steps[0].outcome == "done", reviewed.steps[0].detail
    assert reviewed.steps[0].result["series"] == series
    assert len(reviewed.steps[0].result["values"]) == kept


async def test_an_expression_that_is_none_is_left_out_and_the_alert_noted(
    driver: Driver, house: HomeAssistantStandIn, tmp_path: Path, prometheus: str
) -> None:
    reviewed = await alerted(at(driver, house, tmp_path, prometheus), generatorURL="http://p/graph?g0.expr=%29%28")
    assert [step.outcome for step in reviewed.steps] == ["skipped", "done"]
    assert "Prometheus does not understand the query" in reviewed.steps[0].detail
    assert reviewed.outcome == "done"


async def test_a_prometheus_that_is_down_or_something_else_does_not_stop_an_alert(
    driver: Driver, house: HomeAssistantStandIn, tmp_path: Path
) -> None:
    other = await alerted(at(driver, house, tmp_path, house.url))
    assert other.outcome == "done"
    assert "is not Prometheus (404)" in other.steps[0].detail
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        gone = await alerted(at(driver, house, tmp_path, f"http://127.0.0.1:{closed.getsockname()[1]}"))
    assert gone.outcome == "done"
    assert gone.steps[0].detail == "Prometheus cannot be reached; check prometheus.url and that it runs"


async def test_without_prometheus_an_alert_is_noted(driver: Driver) -> None:
    reviewed = await alerted(driver)
    assert [step.capability for step in reviewed.steps] == ["note.write"]
    [file] = (driver.settings.notes_dir / "alerts").iterdir()
    assert file.read_text().startswith("# PodCrashLooping: firing\n\njellyfin-0 crash looping\n")
    assert driver.visited == ["router", "planner", "guardian", "executor", "reviewer"]

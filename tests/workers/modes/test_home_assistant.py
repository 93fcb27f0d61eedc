"""`home_assistant.call_service`: 200 is not success; what is said of a failure is plain and holds no token."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.queue.driving import settle, take
from tests.workers.modes.driving import Driver, settings_for
from tracekit.config import HomeAssistantSettings
from tracekit.demo.home_assistant import Entity, HomeAssistantStandIn
from tracekit.envelope import RetryPolicy
from tracekit.queue.model import Failed
from tracekit.workers import approvals
from tracekit.workers.capabilities import difference
from tracekit.workers.capabilities.home_assistant import CallService, services

WAIT = timedelta(milliseconds=300)


async def unlocked(driver: Driver) -> str:
    """Unlock the front door, with a yes; the task's id."""
    task = await driver.do("unlock the front door")
    await approvals.decide(driver.queue, await approvals.find(driver.queue, task.id), "approve", by="rob")
    await driver.run()
    return task.id


async def test_a_lock_that_takes_its_time_is_waited_for(driver: Driver, house: HomeAssistantStandIn) -> None:
    house.entities["lock.front_door"].turning = timedelta(seconds=2)
    await unlocked(driver)
    reviewed = await driver.reviewed()
    assert reviewed.outcome == "done"
    assert reviewed.steps[0].result["states"]["lock.front_door"]["state"] == "unlocking"
    assert reviewed.steps[0].observed["lock.front_door"]["state"] == "unlocked"


async def test_a_lock_that_jams_has_failed_and_is_not_tried_again(driver: Driver, house: HomeAssistantStandIn) -> None:
    lock = house.entities["lock.front_door"]
    lock.behaviour, lock.turning = "jams", timedelta(milliseconds=100)
    await unlocked(driver)
    reviewed = await driver.reviewed()
    assert reviewed.outcome == "failed"
    assert (
        reviewed.summary
        == "Could not unlock lock.front_door: lock.front_door: state should be unlocked, but is jammed."
    )
    assert house.count("lock", "unlock") == 1


@pytest.mark.parametrize(("behaviour", "turning"), [("deaf", timedelta(0)), ("well", timedelta(minutes=1))])
async def test_a_device_that_does_not_get_there_in_time_has_failed(
    driver: Driver, house: HomeAssistantStandIn, tmp_path: Path, behaviour: Any, turning: timedelta
) -> None:
    settings = HomeAssistantSettings.model_validate({"url": house.url, "token": house.token, "verify_timeout": WAIT})
    impatient = Driver(driver.queue, settings_for(tmp_path, house, home_assistant=settings), driver.http)
    light = house.entities["light.kitchen"]
    light.behaviour, light.turning = behaviour, turning
    await impatient.do("turn on the kitchen light")
    reviewed = await impatient.reviewed()
    assert reviewed.outcome == "failed"
    assert "light.kitchen: state should be on, but is off" in reviewed.summary


async def test_a_light_that_is_on_already_is_no_failure(driver: Driver, house: HomeAssistantStandIn) -> None:
    """Home Assistant answers `200 []` to it, as it does where there is no such light."""
    house.entities["light.kitchen"].set("on", "earlier")
    await driver.do("turn on the kitchen light")
    assert (await driver.reviewed()).outcome == "done"


async def test_an_entity_that_does_not_exist_has_failed_before_anything_was_done(
    driver: Driver, house: HomeAssistantStandIn
) -> None:
    task = await driver.do("turn on the ballroom light", requester="renee")
    reviewed = await driver.reviewed()
    assert reviewed.outcome == "failed"
    assert "Home Assistant has no entity light.ballroom" in reviewed.summary
    assert house.calls == []
    assert (await driver.queue.task(task.id)).mode == "historian"


async def test_a_step_after_a_refused_one_does_not_run(driver: Driver, house: HomeAssistantStandIn) -> None:
    calls = [("light.ballroom", "turn_on"), ("light.kitchen", "turn_on")]
    steps = [
        {
            "capability": "home_assistant.call_service",
            "arguments": {"domain": "light", "service": service, "entity_id": entity},
        }
        for entity, service in calls
    ]
    await driver.do("both", mode="guardian", input={"plan": {"steps": steps}})
    reviewed = await driver.reviewed()
    assert [step.outcome for step in reviewed.steps] == ["failed", "not_run"]
    assert house.entities["light.kitchen"].state == "off"


async def test_down_is_tried_again_and_works_once_it_is_back(driver: Driver, house: HomeAssistantStandIn) -> None:
    await house.stop()
    task_id = await driver.file("turn on the kitchen light", retry_policy=RetryPolicy())
    await driver.run(until=("historian", "executor"))
    position = await take(driver.queue, "executor")
    answer = await driver.answer(position)
    assert answer == Failed("Unavailable", "Home Assistant cannot be reached")
    assert await settle(driver.queue, position, answer)
    await house.start()
    await driver.let_time_pass(task_id)
    await driver.run()
    assert (await driver.reviewed()).outcome == "done"
    assert house.count("light", "turn_on") == 1


async def test_down_for_good_ends_in_the_dlq_in_plain_words(driver: Driver, house: HomeAssistantStandIn) -> None:
    await house.stop()
    task = await driver.do("turn on the kitchen light")
    assert task.state == "dead"
    [dead] = await driver.queue.dead_letters()
    assert (dead.mode, dead.error_type, dead.error) == ("executor", "Unavailable", "Home Assistant cannot be reached")


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (401, "refused tracekit's credential (401)"),
        (403, "refused tracekit's credential (403)"),
        (302, "answered with a redirect (302)"),
        (503, "answered with an error of its own (503)"),
    ],
)
async def test_what_answers_otherwise_is_named_without_address_or_token(
    driver: Driver, house: HomeAssistantStandIn, status: int, words: str
) -> None:
    house.failing = status
    task = await driver.do("turn on the kitchen light")
    assert task.state == "dead"
    [dead] = await driver.queue.dead_letters()
    assert words in (dead.error or "")
    record = json.dumps([event.data for event in await driver.queue.events(task.id)])
    for told in (dead.error or "", record, str(await driver.notices(task.id))):
        assert house.token not in told
        assert house.url not in told


async def test_without_a_token_nothing_is_planned(driver: Driver, house: HomeAssistantStandIn, tmp_path: Path) -> None:
    settings = settings_for(tmp_path, house, home_assistant=HomeAssistantSettings(url=house.url))
    task = await Driver(driver.queue, settings, driver.http).do("turn on the kitchen light")
    assert task.state == "dead"
    [dead] = await driver.queue.dead_letters()
    assert (dead.mode, dead.error) == (
        "planner",
        "rule light: Home Assistant is not configured: set home_assistant.url and home_assistant.token",
    )


async def test_an_address_that_is_none_is_said_so(driver: Driver, house: HomeAssistantStandIn, tmp_path: Path) -> None:
    settings = HomeAssistantSettings.model_validate({"url": "homeassistant", "token": "a-token-of-the-house"})
    other = Driver(driver.queue, settings_for(tmp_path, house, home_assistant=settings), driver.http)
    await other.do("turn on the kitchen light")
    [dead] = await driver.queue.dead_letters()
    assert "is not a usable address" in (dead.error or "")


async def test_the_last_state_of_each_entity_counts(driver: Driver, house: HomeAssistantStandIn) -> None:
    house.entities["light.hall"] = Entity("light.hall", "off", behaviour="deaf")
    step = {
        "capability": "home_assistant.call_service",
        "arguments": {"domain": "light", "service": "turn_on", "entity_id": ["light.kitchen", "light.hall"]},
    }
    settings = driver.settings.model_copy(
        update={"home_assistant": driver.settings.home_assistant.model_copy(update={"verify_timeout": WAIT})}
    )
    other = replace(driver, settings=settings, modes={}, log=[])
    await other.do("both", mode="guardian", input={"plan": {"steps": [step]}})
    reviewed = await driver.reviewed()
    assert reviewed.outcome == "failed"
    assert reviewed.steps[0].detail == "light.hall: state should be on, but is off"


def test_the_table_holds_what_must_be_asked_for() -> None:
    ask = {f"{domain}.{name}" for (domain, name), service in services().items() if service.destructive}
    assert ask == {"lock.unlock", "lock.open", "cover.open_cover", "alarm_control_panel.alarm_disarm"}
    assert not any(service.destructive and service.repeatable for service in services().values())


def test_a_code_is_not_shown() -> None:
    arguments = {"domain": "lock", "service": "unlock", "entity_id": "lock.front_door", "data": {"code": "1234"}}
    call = CallService()
    assert call.describe(call.parse(arguments)) == "unlock lock.front_door (code (hidden))"


@pytest.mark.parametrize(
    ("expect", "seen", "words"),
    [
        ({"state": "on"}, {"state": "on", "more": 1}, None),
        ({"state": ["on", "idle"]}, {"state": "idle"}, None),
        ({"state": ["on", "idle"]}, {"state": "off"}, "state should be on or idle, but is off"),
        ({"attributes": {"temperature": 21}}, {"attributes": {"temperature": 21.0}}, None),
        ({"attributes": {"temperature": 21}}, {"attributes": {}}, "temperature should be 21, but is unknown"),
        ({"attributes": {"temperature": 21}}, {}, "attributes should be known, but is unknown"),
        ({"muted": True}, {"muted": 1}, "muted should be true, but is 1"),
        ({}, {"state": "anything"}, None),
    ],
)
def test_what_is_different(expect: Any, seen: Any, words: str | None) -> None:
    assert difference(expect, seen) == words


async def test_the_stand_in_keeps_to_the_shape_of_a_captured_answer(house: HomeAssistantStandIn) -> None:
    house.entities["lock.front_door"].turning = timedelta(milliseconds=50)
    headers = {"Authorization": f"Bearer {house.token}"}
    async with httpx.AsyncClient(base_url=house.url, headers=headers) as http:
        answer = await http.post("/api/services/lock/unlock", json={"entity_id": "lock.front_door"})
        [state] = answer.json()
        assert set(state) == {
            "entity_id",
            "state",
            "attributes",
            "last_changed",
            "last_reported",
            "last_updated",
            "context",
        }
        assert set(state["context"]) == {"id", "parent_id", "user_id"}
        assert state["state"] == "unlocking"
        unknown = await http.post("/api/services/lock/unlock", json={"entity_id": "lock.none"})
        assert (unknown.status_code, unknown.json()) == (200, [])
        assert (await http.get("/api/states/lock.none")).status_code == 404
        assert (await http.post("/api/services/lock/melt", json={})).status_code == 400
        assert (await http.get("/api/states", headers={"Authorization": "Bearer x"})).status_code == 401


def test_the_stand_in_serves_by_itself() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "tracekit.demo.home_assistant", "--port", "0"], stdout=subprocess.PIPE, text=True
    ) as served:
        assert served.stdout is not None
        url = served.stdout.readline().split()[-1]
        assert httpx.get(f"{url}/api/", headers={"Authorization": "Bearer stand-in"}).status_code == 200
        served.terminate()

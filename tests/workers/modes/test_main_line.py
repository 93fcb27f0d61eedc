"""router → planner → guardian → executor → reviewer, on real HTTP and a real queue."""

from __future__ import annotations

from datetime import timedelta

from tests.workers.modes.driving import Driver
from tracekit.demo.home_assistant import HomeAssistantStandIn
from tracekit.envelope import Origin
from tracekit.workers import approvals

WAY = ["router", "planner", "guardian", "executor", "reviewer"]


async def test_a_household_member_switches_a_light_without_anybody_being_asked(
    driver: Driver, house: HomeAssistantStandIn
) -> None:
    task = await driver.do("Turn on the kitchen light", requester="renee", origin=Origin.HA_VOICE)
    assert driver.visited == WAY
    assert (task.mode, task.destructive, task.tags) == ("historian", False, [])
    reviewed = await driver.reviewed()
    assert (reviewed.outcome, reviewed.summary) == ("done", "Done: turn on light.kitchen.")
    assert house.entities["light.kitchen"].state == "on"
    assert reviewed.steps[0].observed["light.kitchen"]["context"] == house.entities["light.kitchen"].context
    assert await driver.notices(task.id) == []


async def test_unlocking_waits_for_a_yes_and_is_then_done_P5_P6(driver: Driver, house: HomeAssistantStandIn) -> None:
    house.entities["lock.front_door"].turning = timedelta(milliseconds=150)
    task = await driver.do("unlock the front door")
    assert (task.hop_state, task.wait_kind, task.destructive) == ("parked", "approval", True)
    assert house.entities["lock.front_door"].state == "locked"
    [approval] = await approvals.pending(driver.queue)
    assert approval == await approvals.find(driver.queue, task.id[:20])
    assert (approval.what, approval.requester, approval.round) == (("unlock lock.front_door",), "rob", 1)
    decided = await approvals.decide(driver.queue, approval, "approve", by="rob")
    assert (decided.accepted, decided.decision, decided.by) == (True, "approve", "rob")
    await driver.run()
    assert driver.visited == ["router", "planner", "guardian", "guardian", "executor", "reviewer"]
    reviewed = await driver.reviewed()
    assert reviewed.outcome == "done"
    assert house.entities["lock.front_door"].state == "unlocked"
    assert house.count("lock", "unlock") == 1

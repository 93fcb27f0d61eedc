"""Who must be asked, what an answer is bound to, and that nothing destructive runs without one (P2, P4, P5, P6)."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.queue.driving import LEASE, settle, take
from tests.workers.modes.driving import Driver, settings_for
from tracekit.config import GuardianSettings, Settings
from tracekit.demo.home_assistant import HomeAssistantStandIn
from tracekit.envelope import DataTier, Origin, Priority
from tracekit.queue import GiveUp, HandOff, Park, QueueError, TaskNotFound
from tracekit.workers import approvals, links
from tracekit.workers.approvals import Approval, ApprovalRefused
from tracekit.workers.plan import ApprovedPlan, GuardianInput, Plan, Step, plan_hash

UNLOCK: dict[str, Any] = {"domain": "lock", "service": "unlock", "entity_id": ["lock.front_door"]}
LIGHT: dict[str, Any] = {"domain": "light", "service": "turn_on", "entity_id": ["light.kitchen"]}


def plan_of(*arguments: dict[str, Any], **fields: Any) -> Plan:
    steps = [Step(capability="home_assistant.call_service", arguments=each, **fields) for each in arguments]
    return Plan(steps=tuple(steps))


async def asked(driver: Driver, intent: str = "unlock the front door", **fields: Any) -> Approval:
    """A task that waits for its approval."""
    task = await driver.do(intent, **fields)
    return await approvals.find(driver.queue, task.id)


def nothing_moved(house: HomeAssistantStandIn) -> bool:
    return house.calls == [] and house.entities["lock.front_door"].state == "locked"


# --- what needs a yes (P2, P4) ----------------------------------------------------------------------------------------


async def test_a_planner_cannot_lower_what_a_capability_calls_destructive_P4(
    driver: Driver, house: HomeAssistantStandIn
) -> None:
    plan = plan_of(UNLOCK, destructive=False)
    task = await driver.do("unlock", mode="guardian", input=GuardianInput(plan=plan).model_dump(mode="json"))
    assert (task.hop_state, task.wait_kind) == ("parked", "approval")
    assert nothing_moved(house)


async def test_plan_and_envelope_raise_what_is_harmless_by_itself_P4(driver: Driver) -> None:
    raised = plan_of(LIGHT, destructive=True)
    task = await driver.do("light", mode="guardian", input=GuardianInput(plan=raised).model_dump(mode="json"))
    assert task.wait_kind == "approval"
    filed = await driver.do("turn on the kitchen light", destructive=True)
    assert filed.wait_kind == "approval"
    approval = await approvals.find(driver.queue, filed.id)
    assert approval.why == ("the task was filed as destructive",)


@pytest.mark.parametrize(
    ("domain", "service"),
    [("light", "flash_the_fuse"), ("shell_command", "wipe"), ("cover", "open_cover"), ("homeassistant", "restart")],
)
async def test_what_is_not_known_is_destructive_P4(driver: Driver, domain: str, service: str) -> None:
    plan = plan_of({"domain": domain, "service": service, "entity_id": [f"{domain}.it"]})
    task = await driver.do("it", mode="guardian", input=GuardianInput(plan=plan).model_dump(mode="json"))
    assert task.wait_kind == "approval"


async def test_a_household_member_is_bound_to_the_allowlist_and_the_task_is_tagged_P2(
    driver: Driver, house: HomeAssistantStandIn
) -> None:
    approval = await asked(driver, "note: buy milk", requester="renee", origin=Origin.ANDROID)
    assert approval.why == ("renee may not use note without asking",)
    task = await driver.queue.task(approval.task_id)
    assert (task.tags, task.destructive) == (["renee-originated"], False)
    for intent in (
        "activate the movie night scene",
        "set the living room to 21 degrees",
        "pause the music in the living room",
    ):
        await driver.do(intent, requester="renee")
        assert (await driver.reviewed()).outcome == "done", intent
    assert house.entities["climate.living_room"].attributes["temperature"] == 21


async def test_somebody_who_is_not_configured_gets_the_least(driver: Driver) -> None:
    approval = await asked(driver, "note: let me in", requester="a.stranger")
    assert approval.requester == "a.stranger"
    assert (await driver.queue.task(approval.task_id)).tags == ["a.stranger-originated"]


async def test_a_light_cannot_be_used_to_reach_a_lock(driver: Driver, house: HomeAssistantStandIn) -> None:
    for arguments in (
        {**LIGHT, "entity_id": ["lock.front_door"]},
        {**LIGHT, "data": {"entity_id": "lock.front_door"}},
        {**LIGHT, "data": {"area_id": "hall"}},
        {**LIGHT, "entity_id": "all"},
    ):
        plan = GuardianInput(plan=plan_of(arguments)).model_dump(mode="json")
        task = await driver.do("light", mode="guardian", input=plan, requester="renee")
        assert task.state == "dead", arguments
    assert nothing_moved(house)


# --- the decision (P5, P6) --------------------------------------------------------------------------------------------


async def test_rejected_is_the_end(driver: Driver, house: HomeAssistantStandIn) -> None:
    approval = await asked(driver)
    await approvals.decide(driver.queue, approval, "reject", by="rob", reason="nobody is at home")
    await driver.run()
    task = await driver.queue.task(approval.task_id)
    assert (task.state, task.summary) == ("rejected", "rob rejected it: nobody is at home. Nothing was done.")
    assert nothing_moved(house)


async def test_deferred_asks_again_under_another_key_and_takes_the_ttl_along(
    driver: Driver, house: HomeAssistantStandIn
) -> None:
    first = await asked(driver, ttl=timedelta(hours=2))
    before = (await driver.queue.task(first.task_id)).expires_at
    assert before == first.deadline
    await approvals.decide(driver.queue, first, "defer", by="rob", defer_for=timedelta(hours=5))
    await driver.run()
    task = await driver.queue.task(first.task_id)
    assert task.hop_state == "scheduled"
    assert task.expires_at == before + timedelta(hours=5)
    await driver.let_time_pass(first.task_id)
    await driver.run()
    second = await approvals.find(driver.queue, first.task_id)
    assert (second.round, second.plan_hash) == (2, first.plan_hash)
    assert second.key != first.key
    assert len(await driver.notices(first.task_id)) == 2
    # What was decided in the first round says nothing about the second.
    late = await approvals.decide(driver.queue, first, "approve", by="rob")
    assert (late.accepted, late.decision) == (False, "defer")
    assert (await driver.queue.task(first.task_id)).hop_state == "parked"
    await approvals.decide(driver.queue, second, "approve", by="rob")
    await driver.run()
    assert (await driver.reviewed()).outcome == "done"
    assert house.count("lock", "unlock") == 1


async def test_the_first_decision_wins_P5(driver: Driver, house: HomeAssistantStandIn) -> None:
    approval = await asked(driver)
    answers = await asyncio.gather(
        *(
            approvals.decide(driver.queue, approval, "approve" if number % 2 else "reject", by=f"rob-{number}")
            for number in range(6)
        )
    )
    [first] = [answer for answer in answers if answer.accepted]
    assert {(answer.decision, answer.by, answer.at) for answer in answers} == {(first.decision, first.by, first.at)}
    await driver.run()
    assert house.count("lock", "unlock") == (1 if first.decision == "approve" else 0)


async def test_at_the_deadline_it_expires_unexecuted_and_the_operator_is_told_P6(
    driver: Driver, house: HomeAssistantStandIn
) -> None:
    approval = await asked(driver)
    await driver.let_time_pass(approval.task_id)
    # Late by less than a sweep is late all the same.
    with pytest.raises(ApprovalRefused, match="it was not executed"):
        await approvals.decide(driver.queue, approval, "approve", by="rob")
    await driver.run()
    task = await driver.queue.task(approval.task_id)
    assert task.state == "expired"
    told = (await driver.notices(task.id))[-1]
    assert (told["kind"], told["recipient"]) == ("task_expired", "operator")
    assert "unlock the front door" in told["body"]
    assert await approvals.pending(driver.queue) == []
    with pytest.raises(ApprovalRefused, match="it was not executed"):
        await approvals.decide(driver.queue, approval, "approve", by="rob")
    with pytest.raises(TaskNotFound, match="it is expired"):
        await approvals.find(driver.queue, task.id)
    await driver.run()
    assert nothing_moved(house)


async def test_urgent_plans_wait_shorter_and_page_P6(driver: Driver) -> None:
    urgent = await asked(driver, priority=Priority.URGENT)
    normal = await asked(driver)
    assert urgent.deadline - urgent.opened_at <= timedelta(hours=1, seconds=1)
    assert normal.deadline - normal.opened_at > timedelta(hours=23)
    assert (await driver.notices(urgent.task_id))[0]["urgent"]
    assert not (await driver.notices(normal.task_id))[0]["urgent"]
    assert [approval.task_id for approval in await approvals.pending(driver.queue)] == [urgent.task_id, normal.task_id]


async def test_the_notice_shows_the_whole_plan_and_links_for_each_decision(driver: Driver) -> None:
    approval = await asked(driver)
    [notice] = await driver.notices(approval.task_id)
    assert (notice["kind"], notice["title"]) == ("approval", "Approve? unlock lock.front_door")
    assert "rob asked: unlock the front door" in notice["body"]
    assert "1. unlock lock.front_door" in notice["body"]
    assert set(notice["data"]["links"]) == {"approve", "reject", "defer"}
    secret = links.load_secret(driver.settings)
    for decision, url in notice["data"]["links"].items():
        base, _, token = url.rpartition("/")
        assert base == "http://127.0.0.1:8420/approvals"
        claimed = links.verify(secret, token, now=approval.opened_at)
        assert (claimed.decision, claimed.key, claimed.plan_hash) == (decision, approval.key, approval.plan_hash)
        assert await approvals.look_up(driver.queue, claimed) == (approval, None)


async def test_a_restricted_notice_says_nothing_of_its_content_P8(driver: Driver) -> None:
    approval = await asked(driver, data_tier=DataTier.RESTRICTED)
    [notice] = await driver.notices(approval.task_id)
    assert "front_door" not in str({**notice, "data": None})
    assert approval.task_id in notice["body"]
    assert notice["data"]["links"] == {}
    await approvals.decide(driver.queue, approval, "approve", by="rob")
    await driver.run()
    assert (await driver.reviewed()).summary == "Done."


async def test_a_used_link_answers_what_was_decided_and_one_of_an_edited_plan_is_refused_P5(driver: Driver) -> None:
    approval = await asked(driver)
    secret = links.load_secret(driver.settings)
    token = links.sign(secret, approval, "approve", expires_at=approval.deadline)
    claimed = links.verify(secret, token, now=approval.opened_at)
    edited = Plan.model_validate(approval.plan).model_copy(update={"reason": "something else"})
    other = approvals.Approval(
        **{name: getattr(approval, name) for name in approval.__slots__}
        | {
            "plan_hash": plan_hash(edited),
            "key": approvals.approval_key(approval.task_id, plan_hash(edited), approval.round),
        }
    )
    with pytest.raises(ApprovalRefused, match="does not wait for a decision on this plan"):
        await approvals.decide(driver.queue, other, "approve", by="rob")
    forged = links.verify(secret, links.sign(secret, other, "approve", expires_at=other.deadline), now=other.opened_at)
    with pytest.raises(ApprovalRefused, match="no plan that waits here"):
        await approvals.look_up(driver.queue, forged)
    await approvals.decide(driver.queue, approval, "approve", by="rob")
    _, decided = await approvals.look_up(driver.queue, claimed)
    assert decided is not None
    assert (decided.decision, decided.by) == ("approve", "rob")


async def test_a_signal_that_is_no_decision_decides_nothing(driver: Driver, house: HomeAssistantStandIn) -> None:
    for nonsense in (None, "approve", {"decision": "approve"}, {"decision": "approve", "plan_hash": "0" * 64}):
        approval = await asked(driver)
        await driver.queue.signal(approval.key, nonsense, dedupe_key="webhook", sent_by="somebody")
        await driver.run()
        again = await approvals.find(driver.queue, approval.task_id)
        assert (again.round, again.plan_hash) == (2, approval.plan_hash)
    assert nothing_moved(house)


@pytest.mark.parametrize("for_", [timedelta(0), timedelta(days=31)])
async def test_a_deferral_is_bounded(driver: Driver, for_: timedelta) -> None:
    approval = await asked(driver)
    with pytest.raises(ApprovalRefused, match="by a minute at least"):
        await approvals.decide(driver.queue, approval, "defer", by="rob", defer_for=for_)


# --- the executor believes the database (P6) --------------------------------------------------------------------------


async def test_nothing_destructive_runs_that_was_handed_over_directly_P6(
    driver: Driver, house: HomeAssistantStandIn
) -> None:
    handed = ApprovedPlan(plan=plan_of(UNLOCK), approval="approval:made-up:1").model_dump(mode="json")
    task = await driver.do("unlock", mode="executor", input=handed)
    assert task.state == "dead"
    [dead] = [entry for entry in await driver.queue.dead_letters() if entry.task_id == task.id]
    assert dead.error == "nobody has approved exactly this plan; nothing was executed"
    assert nothing_moved(house)


async def test_a_household_plan_outside_the_allowlist_does_not_run_directly_either_P2(driver: Driver) -> None:
    note = Plan(steps=(Step(capability="note.write", arguments={"path": "a.md", "text": "a"}),))
    handed = ApprovedPlan(plan=note).model_dump(mode="json")
    assert (await driver.do("a", mode="executor", input=handed, requester="renee")).state == "dead"
    assert not driver.settings.notes_dir.exists()


async def test_a_plan_edited_after_its_approval_does_not_run_P5(driver: Driver, house: HomeAssistantStandIn) -> None:
    approval = await asked(driver)
    await approvals.decide(driver.queue, approval, "approve", by="rob")
    position = await take(driver.queue, "guardian")
    passed = await driver.answer(position)
    assert isinstance(passed, HandOff)
    changed = {
        **passed.input["plan"],
        "steps": [
            *passed.input["plan"]["steps"],
            {
                "capability": "home_assistant.call_service",
                "arguments": {"domain": "cover", "service": "open_cover", "entity_id": ["cover.garage_door"]},
            },
        ],
    }
    assert await settle(driver.queue, position, HandOff("executor", {**passed.input, "plan": changed}))
    await driver.run()
    assert (await driver.queue.task(approval.task_id)).state == "dead"
    assert nothing_moved(house)


async def test_another_tasks_approval_is_no_approval_P5(driver: Driver, house: HomeAssistantStandIn) -> None:
    approval = await asked(driver)
    await approvals.decide(driver.queue, approval, "approve", by="rob")
    await driver.run(until=("historian", "guardian"))
    stolen = ApprovedPlan(plan=Plan.model_validate(approval.plan), approval=approval.key).model_dump(mode="json")
    task = await driver.do("unlock", mode="executor", input=stolen)
    assert task.state == "dead"
    # The one that was approved goes on, the other never did: one call.
    assert (await driver.queue.task(approval.task_id)).mode == "historian"
    assert house.count("lock", "unlock") == 1


async def test_a_worker_that_dies_over_an_unlock_does_not_unlock_again_Q5(
    driver: Driver, house: HomeAssistantStandIn
) -> None:
    approval = await asked(driver)
    await approvals.decide(driver.queue, approval, "approve", by="rob")
    await driver.run(until=("historian", "executor"))
    house.silent = True
    dying = await take(driver.queue, "executor", lease=timedelta(0))
    await driver.answer(dying)
    assert house.count("lock", "unlock") == 1
    house.silent = False
    await driver.run()
    assert house.count("lock", "unlock") == 1
    [dead] = [entry for entry in await driver.queue.dead_letters() if entry.task_id == approval.task_id]
    assert "may or may not have happened" in (dead.error or "")
    # The operator has looked, and says that it did not: the approval stands, and the step is free again.
    await driver.queue.resolve_dead(approval.task_id, "redriven", "rob")
    await driver.run()
    assert (await driver.reviewed()).outcome == "done"
    assert house.count("lock", "unlock") == 2


async def test_a_light_whose_answer_was_lost_is_switched_again(driver: Driver, house: HomeAssistantStandIn) -> None:
    house.silent = True
    task_id = await driver.file("turn on the kitchen light")
    await driver.run(until=("historian", "executor"))
    position = await take(driver.queue, "executor")
    assert await settle(driver.queue, position, await driver.answer(position))
    house.silent = False
    await driver.run()
    assert (await driver.queue.task(task_id)).mode == "historian"
    assert (await driver.reviewed()).outcome == "done"
    assert house.count("light", "turn_on") == 2


# --- review tasks of the DLQ (Q15) ------------------------------------------------------------------------------------


async def test_a_dead_task_is_reviewed_by_redriving_or_abandoning_it_Q15(driver: Driver) -> None:
    dead = await driver.do("do something nobody has a rule for")
    assert dead.state == "dead"
    [entry] = await driver.queue.dead_letters()
    assert "no rule says what to do" in (entry.error or "")
    assert entry.review_task_id is not None
    review = await driver.queue.task(entry.review_task_id)
    assert (review.hop_state, review.wait_kind) == ("parked", "review")
    assert await approvals.pending(driver.queue) == []
    await driver.queue.resolve_dead(dead.id, "abandoned", "rob")
    await driver.run()
    ended = await driver.queue.task(review.id)
    assert (ended.state, ended.summary) == ("done", f"Task {dead.id} was abandoned by rob.")
    with pytest.raises(QueueError):
        await driver.queue.resolve_dead(dead.id, "redriven", "rob")


async def test_a_redriven_guardian_hop_asks_anew(driver: Driver) -> None:
    """Signals are kept: an old key would answer by itself."""
    approval = await asked(driver)
    await driver.queue.signal(approval.key, {"not": "a decision"}, dedupe_key="x", sent_by="x")
    position = await take(driver.queue, "guardian", lease=LEASE)
    assert await settle(driver.queue, position, GiveUp("to the DLQ with it"))
    await driver.queue.resolve_dead(approval.task_id, "redriven", "rob")
    ready = await driver.queue.claim("w1", {"guardian": 2}, LEASE)
    [position] = [position for position in ready if position.task_id == approval.task_id]
    asking = await driver.answer(position)
    assert isinstance(asking, Park)
    assert asking.key == approvals.approval_key(approval.task_id, approval.plan_hash, 2)


# --- settings ---------------------------------------------------------------------------------------------------------


async def test_a_wider_allowlist_is_configuration(driver: Driver, house: HomeAssistantStandIn, tmp_path: Path) -> None:
    guardian = GuardianSettings(household_allowlist=("note",))
    wider = Driver(driver.queue, settings_for(tmp_path, house, guardian=guardian), driver.http)
    await wider.do("note: buy milk", requester="renee")
    assert (await wider.reviewed()).outcome == "done"


def test_what_the_allowlist_holds_by_default() -> None:
    assert Settings().guardian.household_allowlist == ("media_player", "light", "climate", "scene")

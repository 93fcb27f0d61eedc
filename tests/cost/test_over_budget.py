"""What becomes of a call without room: refused, asked of the local model, or shown to the operator (C3)."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.cost.budgeting import call, holds_together, let_hold, limit, reserve
from tests.cost.driving import PRICES, book, ledger_of, rows, usage
from tests.cost.server import ModelServer
from tests.queue.driving import accept, take
from tests.workers.modes.driving import Driver, settings_for
from tracekit.config import Settings
from tracekit.cost import OverBudget
from tracekit.demo.home_assistant import HomeAssistantStandIn
from tracekit.envelope import DataTier
from tracekit.ingress.tasks import plain_status
from tracekit.queue import Done, GiveUp, HandOff, Park, Queue, RetryLater
from tracekit.workers.approvals import decide, find, pending
from tracekit.workers.plan import ApprovedPlan, Plan, Step

REQUESTS = limit("total", "day", "requests")


@pytest.fixture
async def server() -> AsyncIterator[ModelServer]:
    async with ModelServer().serving() as served:
        yield served


def settings(server: ModelServer, home: Path, **more: Any) -> Settings:
    models = {
        "remote": {"base_url": server.url, "model": "m-1", "provider": "test"},
        "house": {"base_url": server.url, "model": "house", "provider": "ollama", "local": True},
        "unknown": {"base_url": server.url, "model": "nobody-knows", "provider": "test"},
    }
    prices = (*PRICES, {"model": "house", "free": True})
    return settings_for(home, HomeAssistantStandIn(token="unused"), models=models, prices=prices, **more)


@pytest.fixture
async def driver(queue: Queue, server: ModelServer, tmp_path: Path) -> AsyncIterator[Driver]:
    async with httpx.AsyncClient() as http:
        yield Driver(queue, settings(server, tmp_path), http)


def plan(*models: str, **step: Any) -> dict[str, Any]:
    """A plan that asks each of these models once."""
    steps = tuple(
        Step(capability="model.chat", arguments={"model": model, "prompt": "swallows?", "max_tokens": 20}, **step)
        for model in models or ("remote",)
    )
    return ApprovedPlan(plan=Plan(steps=steps)).model_dump(mode="json")


async def file(driver: Driver, *models: str, **fields: Any) -> str:
    return await driver.file("ask", mode="executor", input=plan(*models), **fields)


async def test_c3_at_the_limit_a_call_is_refused_in_plain_words(driver: Driver, server: ModelServer) -> None:
    await let_hold(driver.queue, REQUESTS, 1, policy="refuse")
    task_id = await file(driver, "remote", "remote")
    await driver.run(until=("guardian", "historian"))
    [(_, outcome)] = driver.log
    assert isinstance(outcome, GiveUp)
    assert "the total budget for today is 1 request, with 1 request spent" in outcome.reason
    assert "tracekit budget show" in outcome.reason
    assert len(server.requests) == 1
    # To whoever asked: that it did not work, and nothing of money (P7).
    assert plain_status(await driver.queue.task(task_id)) == ("Something went wrong. It is being looked into.", False)
    # The step that was not done is as if it had not begun: redriven, it is done.
    await let_hold(driver.queue, REQUESTS, 2)
    await driver.queue.resolve_dead(task_id, "redriven", "rob")
    await driver.run(until=("guardian", "historian"))
    assert driver.visited[1:] == ["executor", "reviewer"]
    assert len(server.requests) == 2


async def test_c3_the_operator_is_asked_about_exactly_this_call_and_their_yes_is_one_call(
    driver: Driver, server: ModelServer
) -> None:
    queue = driver.queue
    await let_hold(queue, REQUESTS, 0)
    task_id = await file(driver, "remote", "remote")
    await driver.run()
    [(_, outcome)] = driver.log
    assert isinstance(outcome, Park)
    assert server.requests == []
    assert plain_status(await queue.task(task_id))[0] == "Somebody has to say yes to this first. They have been asked."
    [approval] = await pending(queue)
    assert approval.plan["model"] == "m-1"
    assert "spend beyond its budget: ask the model m-1, for $0.00" in approval.what[0]
    assert approval.why == (
        "The total budget for today is 0 requests, with 0 requests spent, and this call may take 1 request",
    )
    assert approval.plan_hash == (await find(queue, task_id)).plan_hash
    [used_up, asked] = sorted(await driver.notices(task_id), key=lambda notice: str(notice["kind"]), reverse=True)
    assert (used_up["kind"], asked["kind"]) == ("budget_used_up", "approval")
    assert set(asked["data"]["links"]) == {"approve", "reject", "defer"}
    assert asked["recipient"] == used_up["recipient"] == "operator"

    await decide(queue, approval, "approve", by="rob")
    await driver.run()
    assert len(server.requests) == 1
    granted = await rows(queue, "SELECT approval, unit, amount, granted_by FROM tracekit.budget_grants ORDER BY unit")
    assert [(key, unit, by) for key, unit, _, by in granted] == [
        (approval.key, unit, "rob") for unit in ("requests", "tokens", "usd")
    ]
    assert granted[0][2] == 1
    # One call was shown and one was made: of the next they are asked again.
    [second] = await pending(queue)
    assert (second.round, second.key != approval.key) == (2, True)
    await decide(queue, second, "approve", by="rob")
    await driver.run()
    assert len(server.requests) == 2
    assert driver.visited == ["executor", "executor", "executor", "reviewer"]
    await holds_together(queue)


async def test_c3_a_lost_call_has_used_up_what_was_granted_for_it(queue: Queue) -> None:
    """Two calls were approved, a small one and a large one, and the small one was lost. What is left is the large one's
    tokens, and not both's.
    """
    await let_hold(queue, limit("total", "day", "requests"), 0)
    ledger, task_id = ledger_of(queue), await accept(queue)
    at = await take(queue)
    small, large = call(input=100, output=200), call(input=300, output=300)
    for number, wanted in enumerate((small, large)):
        shown = {"provider": wanted.provider, "model": wanted.model, "tokens": wanted.input + wanted.output}
        data = {"plan": {**shown, "usd": "0.01", "requests": 1}}
        await rows(
            queue,
            "INSERT INTO tracekit.waits (task_id, hop, attempt, kind, key, data, deadline, on_deadline, opened_at)"
            " VALUES (%s, 1, %s, 'approval', %s, %s, now(), 'expire', now()) RETURNING key",
            task_id, number + 5, f"grant-{number}", json.dumps(data),
        )  # fmt: skip
        await rows(
            queue,
            "INSERT INTO tracekit.budget_grants (task_id, approval, unit, amount, granted_by)"
            " SELECT %s, %s, unit, amount, 'rob' FROM (VALUES ('usd', 0.01), ('tokens', %s::numeric), ('requests', 1))"
            " AS g(unit, amount) RETURNING unit",
            task_id, f"grant-{number}", shown["tokens"],
        )  # fmt: skip
    await reserve(ledger, at, "small", small)
    await book(ledger, at, usage(key="small", input=0, output=0, basis="lost"))
    with pytest.raises(OverBudget):
        await reserve(ledger, at, "both", call(input=400, output=300))
    await reserve(ledger, at, "large", large)
    with pytest.raises(OverBudget):
        await reserve(ledger, at, "more", small)


async def test_c3_a_grant_is_for_the_model_that_was_shown(driver: Driver, server: ModelServer) -> None:
    await let_hold(driver.queue, REQUESTS, 0)
    task_id = await file(driver, "remote")
    await driver.run()
    [approval] = await pending(driver.queue)
    async with driver.queue.connection() as connection:
        await connection.execute(
            "UPDATE tracekit.envelopes"
            " SET input = jsonb_set(input::jsonb, '{plan,steps,0,arguments,model}', '\"unknown\"') WHERE id = %s",
            [task_id],
        )
    await decide(driver.queue, approval, "approve", by="rob")
    await driver.run()
    assert server.requests == []
    [again] = await pending(driver.queue)
    assert again.plan["model"] == "nobody-knows"


async def test_c3_a_call_of_unknown_price_is_granted_as_such(driver: Driver, server: ModelServer) -> None:
    await let_hold(driver.queue, limit("total", "day", "usd"), 100)
    await file(driver, "unknown")
    await driver.run()
    [approval] = await pending(driver.queue)
    assert "at a price that nobody knows" in approval.what[0]
    assert "what this call would cost nobody knows" in approval.why[0]
    assert server.requests == []
    await decide(driver.queue, approval, "approve", by="rob")
    await driver.run()
    assert len(server.requests) == 1


@pytest.mark.parametrize("decision", ["reject", "defer"])
async def test_c3_a_no_ends_the_task_and_a_later_asks_again(driver: Driver, server: ModelServer, decision: Any) -> None:
    await let_hold(driver.queue, REQUESTS, 0)
    task_id = await file(driver)
    await driver.run()
    [approval] = await pending(driver.queue)
    await decide(driver.queue, approval, decision, by="rob", reason="not today", defer_for=timedelta(hours=2))
    await driver.run()
    (_, outcome) = driver.log[-1]
    if decision == "reject":
        said = "rob rejected spending more than the budget has: not today."
        assert outcome == Done("rejected", said)
        assert (await driver.queue.task(task_id)).state == "rejected"
    else:
        assert outcome == RetryLater(timedelta(hours=2), "rob deferred it: not today", extend_ttl=True)
    assert server.requests == []


async def test_c3_where_the_budget_begins_anew_first_the_call_is_tried_then(driver: Driver) -> None:
    await let_hold(driver.queue, REQUESTS, 0)
    task_id = await file(driver)
    await driver.run()
    [(_, outcome)] = driver.log
    assert isinstance(outcome, Park)
    assert outcome.on_deadline == "resume"
    assert outcome.within <= timedelta(days=1)
    await driver.let_time_pass(task_id)
    async with driver.queue.connection() as connection:
        # The next day.
        await connection.execute(
            "UPDATE tracekit.budget_counters SET begins = begins - interval '2 days', ends = ends - interval '2 days'"
        )
    await let_hold(driver.queue, REQUESTS, 1)
    await driver.run()
    assert driver.visited == ["executor", "executor", "reviewer"]


async def test_c3_a_cap_of_a_task_never_begins_anew(driver: Driver) -> None:
    await let_hold(driver.queue, limit("task", "task", "requests"), 0)
    await file(driver)
    await driver.run()
    [(_, outcome)] = driver.log
    assert isinstance(outcome, Park)
    assert (outcome.on_deadline, outcome.within) == ("expire", timedelta(hours=24))


async def test_c3_a_budget_asked_about_does_not_undo_the_approval_of_the_plan(
    driver: Driver, server: ModelServer
) -> None:
    """A destructive plan that was approved, and whose call then finds no room, runs once both have been allowed."""
    await let_hold(driver.queue, REQUESTS, 0)
    await driver.file("ask", mode="guardian", input={"plan": plan(destructive=True)["plan"]})
    for asked in ("is destructive", "budget"):
        await driver.run()
        [approval] = await pending(driver.queue)
        assert asked in f"{approval.why} {approval.what}"
        await decide(driver.queue, approval, "approve", by="rob")
    await driver.run()
    assert driver.visited == ["guardian", "guardian", "executor", "executor", "reviewer"]
    assert len(server.requests) == 1


async def test_p8_of_a_restricted_task_the_notice_says_only_that_it_waits(driver: Driver) -> None:
    await let_hold(driver.queue, REQUESTS, 0)
    task_id = await driver.file("secret", mode="executor", input=plan("house"), data_tier=DataTier.RESTRICTED)
    await driver.run()
    [asked] = [one for one in await driver.notices(task_id) if one["kind"] == "approval"]
    assert "secret" not in str(asked)
    assert asked["data"]["links"] == {}


# --- downgrade ------------------------------------------------------------------------------------------------------


@pytest.fixture
async def thrifty(queue: Queue, server: ModelServer, tmp_path: Path) -> AsyncIterator[Driver]:
    async with httpx.AsyncClient() as http:
        yield Driver(queue, settings(server, tmp_path, cost={"local_model": "house"}), http)


async def test_c3_at_the_limit_the_local_model_is_asked_in_its_place(thrifty: Driver, server: ModelServer) -> None:
    server.body["model"] = "house"
    await let_hold(thrifty.queue, limit("total", "day", "usd"), 0, policy="downgrade")
    await file(thrifty)
    await thrifty.run()
    [(_, outcome)] = thrifty.log[:1]
    assert isinstance(outcome, HandOff)
    assert [request["body"]["model"] for request in server.requests] == ["house"]
    assert await rows(thrifty.queue, "SELECT provider, local, cost FROM tracekit.spend") == [("ollama", True, 0)]
    [(place,)] = await rows(
        thrifty.queue,
        "SELECT attributes ->> 'tracekit.model.in_place_of' FROM tracekit.spans WHERE source = 'sdk' AND kind = 3"
        " AND name = 'chat house'",
    )
    assert place == "remote"
    await holds_together(thrifty.queue)


async def test_c3_where_the_local_model_has_no_room_either_the_call_is_refused(
    thrifty: Driver, server: ModelServer
) -> None:
    await let_hold(thrifty.queue, REQUESTS, 0, policy="downgrade")
    await file(thrifty)
    await thrifty.run(until=("guardian", "historian"))
    [(_, outcome)] = thrifty.log
    assert isinstance(outcome, GiveUp)
    assert server.requests == []


async def test_c3_without_a_local_model_there_is_nothing_to_ask_instead(driver: Driver, server: ModelServer) -> None:
    await let_hold(driver.queue, limit("total", "day", "usd"), 0, policy="downgrade")
    await file(driver)
    await driver.run(until=("guardian", "historian"))
    [(_, outcome)] = driver.log
    assert isinstance(outcome, GiveUp)
    assert server.requests == []

"""`model.chat` through LiteLLM's proxy, the real one, on models with mock responses."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.cost.driving import all_counted, all_spent, rows
from tests.support.litellm import KEY, litellm_proxy
from tests.workers.modes.driving import Driver, settings_for
from tracekit.demo.home_assistant import HomeAssistantStandIn
from tracekit.queue import Queue
from tracekit.tracing.instrument import instrument_handlers
from tracekit.workers.plan import ApprovedPlan, Plan, Step

PROMPT = "What is the airspeed of a swallow?"

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with litellm_proxy(tmp_path_factory.mktemp("litellm")) as url:
        yield url


@pytest.fixture
async def driver(queue: Queue, proxy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Driver]:
    monkeypatch.setenv("PROXY_KEY", KEY)
    models = {
        name: {"base_url": proxy, "model": model, "api_key_env": "PROXY_KEY", "max_tokens": 100}
        for name, model in (("planner", "planner"), ("unknown", "unknown"), ("missing", "not-there"))
    }
    models["stranger"] = {"base_url": proxy, "model": "planner", "api_key": "sk-of-somebody-else"}
    async with httpx.AsyncClient() as http:
        instrument_handlers().client(http)
        house = HomeAssistantStandIn(token="unused")
        yield Driver(queue, settings_for(tmp_path, house, models=models), http)


def plan(model: str, **arguments: Any) -> dict[str, Any]:
    step = Step(capability="model.chat", arguments={"model": model, "prompt": PROMPT, **arguments})
    return ApprovedPlan(plan=Plan(steps=(step,))).model_dump(mode="json")


async def result(driver: Driver, task_id: str) -> Any:
    [found] = await rows(driver.queue, "SELECT result FROM tracekit.effects WHERE task_id = %s", task_id)
    return found[0]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_c1_a_call_through_litellm_is_booked_at_litellm_s_price(driver: Driver, stream: bool) -> None:
    task_id = await driver.file("ask", mode="executor", input=plan("planner", stream=stream))
    await driver.run(until=("historian", "reviewer"))
    answered = await result(driver, task_id)
    assert answered["text"] == "hello from mock"
    assert (answered["model"], answered["finish_reason"]) == ("gpt-4o-mini", "stop")
    # $0.15 and $0.60 a million. The mock counts the tokens of a stream otherwise.
    given, made = answered["tokens"]["input"], answered["tokens"]["output"]
    assert (given, made) == ((16, 3) if stream else (10, 20))
    cost = (given * Decimal("0.15") + made * Decimal("0.60")) / 1_000_000
    [row] = await rows(
        driver.queue,
        "SELECT provider, model, input_tokens, output_tokens, cost, price_source, price_version, basis, mode"
        " FROM tracekit.usage WHERE task_id = %s",
        task_id,
    )
    assert row == ("openai", "gpt-4o-mini", given, made, cost, "provider", "litellm", "reported", "executor")
    assert answered["cost"] == f"{cost:f}".rstrip("0")
    assert await rows(driver.queue, "SELECT outcome FROM tracekit.reservations") == [("settled",)]
    [[said]] = await rows(driver.queue, "SELECT attributes FROM tracekit.spans WHERE name = 'chat planner'")
    assert said["gen_ai.usage.input_tokens"] == given
    assert (said["gen_ai.request.model"], said["gen_ai.response.model"]) == ("planner", "gpt-4o-mini")
    assert said["gen_ai.response.finish_reasons"] == ["stop"]
    assert PROMPT not in str(said)
    assert await all_counted(driver.queue) == await all_spent(driver.queue)


async def test_c1_a_model_that_litellm_has_no_price_for_is_unpriced(driver: Driver) -> None:
    task_id = await driver.file("ask", mode="executor", input=plan("unknown"))
    await driver.run(until=("historian", "reviewer"))
    assert (await result(driver, task_id))["cost"] is None
    assert await rows(driver.queue, "SELECT model, cost, price_source FROM tracekit.usage") == [
        ("a-model-of-nowhere", None, "unpriced")
    ]


@pytest.mark.parametrize(("model", "says"), [("missing", "not-there"), ("stranger", "credential")])
async def test_c1_what_the_proxy_refuses_was_no_call(driver: Driver, model: str, says: str) -> None:
    await driver.file("ask", mode="executor", input=plan(model))
    await driver.run(until=("historian", "reviewer"))
    assert await rows(driver.queue, "SELECT FROM tracekit.usage") == []
    assert await rows(driver.queue, "SELECT outcome FROM tracekit.reservations") == [("released",)]
    [(_, answer)] = driver.log
    assert KEY not in str(answer)
    assert says in str(answer) or "does not take the request" in str(answer)

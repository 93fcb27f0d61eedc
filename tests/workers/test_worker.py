"""The worker against a real queue: whatever a handler does, its hop ends, and the worker lives."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry import trace
from pydantic import BaseModel, field_serializer

from tests.queue.driving import accept
from tests.support.processes import patience
from tracekit.config import Settings, WorkerSettings
from tracekit.postgres import Pool
from tracekit.queue import Done, HandOff, Outcome, Queue, Settlement
from tracekit.queue.claim import Ask
from tracekit.queue.turn import Turn
from tracekit.tracing.hop import current_hop
from tracekit.workers.mode import Hop, Mode, Services
from tracekit.workers.personas import Persona, Personas
from tracekit.workers.worker import Worker

QUICK = WorkerSettings(
    lease=timedelta(seconds=30),
    heartbeat=timedelta(milliseconds=50),
    poll_interval=timedelta(milliseconds=20),
    grace=timedelta(seconds=10),
    handler_timeout=timedelta(seconds=20),
)


class Text(BaseModel):
    text: str = ""


Handler = Callable[[Hop[Text]], Awaitable[Any]]


def mode_of(handler: Handler, called: str = "router") -> type[Mode[Text]]:
    class Made(Mode[Text]):
        name = called
        input_type = Text

        async def run(self, hop: Hop[Text]) -> Outcome:
            return await handler(hop)  # type: ignore[no-any-return]

    return Made


@asynccontextmanager
async def working(
    queue: Queue, *modes: type[Mode[Any]], settings: WorkerSettings = QUICK, personas: Personas | None = None
) -> AsyncIterator[asyncio.Event]:
    stop = asyncio.Event()
    async with httpx.AsyncClient() as http:
        services = Services(Settings(worker=settings), queue, http, personas or Personas({}))
        worker = Worker(services, [mode(services) for mode in modes], settings)
        running = asyncio.create_task(worker.run(stop))
        sweeping = asyncio.create_task(_sweep(queue))
        try:
            yield stop
        finally:
            stop.set()
            sweeping.cancel()
            await running


async def _sweep(queue: Queue) -> None:
    while True:
        await queue.sweep()
        await asyncio.sleep(0.02)


async def until(queue: Queue, task_id: str, *states: str) -> str:
    """The state, once it is one of `states`."""
    async with patience():
        while (task := await queue.task(task_id)).state not in states:  # noqa: ASYNC110 - the event is in the database
            await asyncio.sleep(0.01)
    return task.state


async def errors(queue: Queue, task_id: str) -> list[str]:
    events = await queue.events(task_id)
    return [event.data["error"]["type"] for event in events if "error" in event.data]


async def test_a_task_goes_from_mode_to_mode(queue: Queue) -> None:
    async def route(hop: Hop[Text]) -> Outcome:
        return HandOff("executor", Text(text=hop.task.intent))

    class Executor(Mode[Text]):
        name = "executor"
        input_type = Text

        def run(self, hop: Hop[Text]) -> Outcome:
            assert threading.current_thread().name.startswith("handler")
            scope = current_hop()
            assert scope is not None
            assert scope.mode == "executor"
            assert hop.blocking.effect("upper", hop.input.text.upper) == hop.input.text.upper()
            return Done(summary=hop.blocking.effect("upper", lambda: "not run again"))

    async with working(queue, mode_of(route), Executor):
        task_id = await accept(queue, intent="lights on")
        assert await until(queue, task_id, "done", "dead") == "done"
    assert (await queue.task(task_id)).summary == "LIGHTS ON"


async def test_what_is_handed_on_is_encoded_once(queue: Queue) -> None:
    encoded = 0

    class Counted(Text):
        @field_serializer("text")
        def _count(self, text: str) -> str:
            nonlocal encoded
            encoded += 1
            return text

    async def route(hop: Hop[Text]) -> Outcome:
        return HandOff("executor", Counted(text="on"))

    async def execute(hop: Hop[Text]) -> Outcome:
        return Done(summary=hop.input.text)

    async with working(queue, mode_of(route), mode_of(execute, "executor")):
        task_id = await accept(queue)
        await until(queue, task_id, "done", "dead")
    assert ((await queue.task(task_id)).summary, encoded) == ("on", 1)


async def _raise(hop: Hop[Text]) -> Outcome:
    raise ValueError("no such lamp")


async def _exit(hop: Hop[Text]) -> Outcome:
    sys.exit(3)


async def _cancelled(hop: Hop[Text]) -> Outcome:
    raise asyncio.CancelledError


async def _interrupt(hop: Hop[Text]) -> Outcome:
    raise KeyboardInterrupt


async def _leave(hop: Hop[Text]) -> Outcome:
    raise GeneratorExit


class Speechless(BaseException):
    def __str__(self) -> str:
        raise ValueError


async def _speechless(hop: Hop[Text]) -> Outcome:
    raise Speechless


async def _nonsense(hop: Hop[Text]) -> Any:
    return {"outcome": "fine"}


async def _unstorable(hop: Hop[Text]) -> Outcome:
    return HandOff("executor", Text(text="a\x00b"))


async def _unstorable_summary(hop: Hop[Text]) -> Outcome:
    return HandOff("executor", persona="a\x00b")


async def _endless(hop: Hop[Text]) -> Outcome:
    await asyncio.Event().wait()
    raise AssertionError("unreachable")


@pytest.mark.parametrize(
    ("handler", "error"),
    [
        (_raise, "ValueError"),
        (_exit, "SystemExit"),
        (_cancelled, "CancelledError"),
        (_interrupt, "KeyboardInterrupt"),
        (_leave, "GeneratorExit"),
        (_speechless, "Speechless"),
        (_nonsense, "InvalidOutcome"),
        (_unstorable, "InvalidOutcome"),
        (_unstorable_summary, "InvalidOutcome"),
        (_endless, "timeout"),
    ],
)
async def test_a_bad_handler_is_a_failed_attempt_and_then_a_dead_letter_Q4(
    queue: Queue, handler: Handler, error: str
) -> None:
    brief = QUICK.model_copy(update={"handler_timeout": timedelta(milliseconds=100)})
    settings = brief if handler is _endless else QUICK
    async with working(queue, mode_of(handler), settings=settings):
        good = await accept(queue, mode="none")
        bad = await accept(queue)
        assert await until(queue, bad, "dead") == "dead"
        assert (await queue.task(good)).state == "open"
    assert await errors(queue, bad) == [error] * 3


async def test_input_that_does_not_fit_is_a_failed_attempt(queue: Queue) -> None:
    async with working(queue, mode_of(_raise)):
        bad = await accept(queue, input={"text": 7})
        await until(queue, bad, "dead")
    assert await errors(queue, bad) == ["InvalidInput"] * 3


async def test_a_handler_whose_lease_is_lost_is_cancelled_and_changes_nothing_Q3(queue: Queue, pool: Pool) -> None:
    begun, cancelled = asyncio.Event(), asyncio.Event()

    async def endless(hop: Hop[Text]) -> Outcome:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        raise AssertionError("unreachable")

    async with working(queue, mode_of(endless)):
        task_id = await accept(queue)
        await begun.wait()
        async with pool.connection() as connection:
            await connection.execute("UPDATE tracekit.queue SET token = token + 1 WHERE task_id = %s", [task_id])
        async with patience():
            await cancelled.wait()
    assert [event.kind for event in await queue.events(task_id)] == ["task.accepted"]


async def test_sigterm_lets_handlers_finish_and_gives_the_rest_back_Q13(queue: Queue) -> None:
    begun = asyncio.Semaphore(0)
    finish = asyncio.Event()

    async def work(hop: Hop[Text]) -> Outcome:
        begun.release()
        await (finish.wait() if hop.input.text == "quick" else asyncio.Event().wait())
        return Done()

    settings = QUICK.model_copy(update={"grace": timedelta(milliseconds=300)})
    async with working(queue, mode_of(work), settings=settings) as stop:
        quick = await accept(queue, input={"text": "quick"})
        slow = await accept(queue, input={"text": "slow"})
        for _ in range(2):
            await begun.acquire()
        stop.set()
        late = await accept(queue)
        finish.set()
    assert (await queue.task(quick)).state == "done"
    given_back = await queue.task(slow)
    assert (given_back.hop_state, given_back.attempt, given_back.max_attempts) == ("ready", 1, 4)
    # A claim may have been under way at the stop: what it took is given back like the rest.
    after = await queue.task(late)
    assert after.hop_state == "ready"
    assert (after.attempt, after.max_attempts) in {(0, 3), (1, 4)}


async def test_a_handler_sees_its_place_in_the_trace_T1_T8(queue: Queue) -> None:
    seen: dict[str, str] = {}

    async def look(hop: Hop[Text]) -> Outcome:
        here = trace.get_current_span().get_span_context()
        seen["span"] = trace.format_span_id(here.span_id)
        seen["environment"] = hop.trace.environment()["TRACEPARENT"]
        seen["expected"] = hop.task.span_id
        return Done()

    async with working(queue, mode_of(look)):
        await until(queue, await accept(queue), "done")
    assert seen["span"] == seen["expected"]
    assert seen["expected"] in seen["environment"]


async def test_a_handler_has_the_persona_of_its_route(queue: Queue, tmp_path: Path) -> None:
    (tmp_path / "butler.md").write_text("---\nname: butler\nmodel: small\n---\nBe brief.\n")
    seen: list[Persona | None] = []

    async def route(hop: Hop[Text]) -> Outcome:
        seen.append(hop.persona)
        return HandOff("executor", persona="butler")

    async def act(hop: Hop[Text]) -> Outcome:
        seen.append(hop.persona)
        return Done()

    async with working(queue, mode_of(route), mode_of(act, "executor"), personas=Personas.load(tmp_path)):
        await until(queue, await accept(queue), "done")
    assert seen == [None, Persona(name="butler", model="small", prompt="Be brief.")]


class _Holding(Queue):
    """The third turn that has something to write is not answered before `answered`."""

    def __init__(self, pool: Pool) -> None:
        super().__init__(pool)
        self.answered = asyncio.Event()
        self.held: list[str] = []
        self._writing = 0

    async def turn(self, settlements: Sequence[Settlement], ask: Ask | None = None) -> Turn:
        self._writing += bool(settlements)
        if self._writing == 3 and settlements:
            self.held = [settlement.position.task_id for settlement in settlements]
            await self.answered.wait()
        return await super().turn(settlements, ask)


async def test_a_turn_that_hangs_holds_up_no_other_q10(pool: Pool) -> None:
    """Though a busy worker's turns go to the database one after the other."""
    queue = _Holding(pool)

    async def done(hop: Hop[Text]) -> Outcome:
        return Done()

    accepted = [await accept(queue) for _ in range(40)]
    async with working(queue, mode_of(done), settings=QUICK.model_copy(update={"concurrency": 4})):
        async with patience():
            while not queue.held:  # noqa: ASYNC110 - it is the worker who brings it about
                await asyncio.sleep(0.01)
        for task_id in set(accepted) - set(queue.held):
            await until(queue, task_id, "done")
        assert {(await queue.task(task_id)).state for task_id in queue.held} == {"open"}
        queue.answered.set()
        for task_id in queue.held:
            await until(queue, task_id, "done")


class _Sleepless(Queue):
    """The turn that says that the worker sleeps is not answered."""

    def __init__(self, pool: Pool) -> None:
        super().__init__(pool)
        self.held = False
        self.claims: list[float] = []

    async def turn(self, settlements: Sequence[Settlement], ask: Ask | None = None) -> Turn:
        if ask is not None and ask.sleep:
            self.held = True
            await asyncio.Event().wait()
        if self.held and ask is not None:
            self.claims.append(asyncio.get_running_loop().time())
        return await super().turn(settlements, ask)


async def test_while_the_turn_that_says_it_sleeps_hangs_a_worker_only_polls_q10(pool: Pool) -> None:
    queue = _Sleepless(pool)

    async def done(hop: Hop[Text]) -> Outcome:
        return Done()

    settings = QUICK.model_copy(update={"poll_interval": timedelta(milliseconds=50), "grace": timedelta(0)})
    async with working(queue, mode_of(done), settings=settings):
        async with patience():
            while len(queue.claims) < 5:  # noqa: ASYNC110 - it is the worker who brings it about
                await asyncio.sleep(0.01)
        assert queue.claims[4] - queue.claims[0] > 4 * 0.04

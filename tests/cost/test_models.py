"""Asking models whatever the server does: what was spent is booked, and what nobody saw is lost."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.cost.budgeting import holds_together, let_hold, limit
from tests.cost.driving import PRICES, all_counted, all_spent, rows
from tests.cost.hops import hop_of
from tests.cost.server import BREAK, DONE, HANG, ModelServer, answer, chunk
from tests.queue.driving import submission, take
from tests.support.ports import free_port
from tests.workers.modes.driving import Driver, settings_for
from tracekit.demo.home_assistant import HomeAssistantStandIn
from tracekit.envelope import DataTier
from tracekit.queue import GiveUp, HandOff, LeaseLost, Queue
from tracekit.tracing import semconv
from tracekit.workers.capabilities import Misconfigured, Refused, Unavailable
from tracekit.workers.mode import Hop, NoInput
from tracekit.workers.models import Message, RemoteModelRefused, chat
from tracekit.workers.plan import ApprovedPlan, GuardianInput, Plan, Results, Step, StepResult

PROMPT = "What is the airspeed of a swallow?"


@pytest.fixture
async def server() -> AsyncIterator[ModelServer]:
    async with ModelServer().serving() as served:
        yield served


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient() as client:
        yield client


async def hop(queue: Queue, server: ModelServer, http: httpx.AsyncClient, **task: Any) -> Hop[NoInput]:
    await queue.enqueue([submission("asking", **task)])
    models = {
        "remote": {"base_url": server.url, "model": "m-1", "provider": "test", "api_key": "sk-very-secret"},
        "house": {"base_url": server.url, "model": "m-house", "provider": "ollama", "local": True},
        "nobody": {"base_url": f"http://127.0.0.1:{free_port()}/v1", "model": "m-1"},
    }
    return hop_of(queue, await take(queue, "asking"), http, models=models)


def ask(at: Hop[NoInput], model: str = "remote", **more: Any) -> Any:
    return chat(at, model, [Message("user", PROMPT)], **more)


async def ledger(queue: Queue) -> list[tuple[Any, ...]]:
    assert await all_counted(queue) == await all_spent(queue)
    assert await rows(queue, "SELECT FROM tracekit.reservations WHERE closed_at IS NULL") == []
    return await rows(queue, "SELECT basis, requests, input_tokens, output_tokens, cost FROM tracekit.spend")


async def test_c1_an_answer_is_booked_with_its_span(queue: Queue, server: ModelServer, http: httpx.AsyncClient) -> None:
    at = await hop(queue, server, http)
    answered = await ask(at, max_tokens=7, temperature=0.5)
    assert (answered.text, answered.model, answered.booked.cost) == ("hello", "m-1", Decimal("0.00033"))
    [request] = server.requests
    assert request["head"].startswith("POST /v1/chat/completions ")
    assert request["headers"]["authorization"] == "Bearer sk-very-secret"
    assert request["body"] == {
        "model": "m-1",
        "messages": [{"role": "user", "content": PROMPT}],
        "max_tokens": 7,
        "temperature": 0.5,
    }
    assert await ledger(queue) == [("reported", 1, 10, 20, Decimal("0.00033"))]
    [(tokens,)] = await rows(queue, "SELECT tokens FROM tracekit.reservations")
    assert tokens >= len(PROMPT) + 7
    [(parent, said)] = await rows(
        queue, "SELECT parent_span_id, attributes FROM tracekit.spans WHERE name = 'chat m-1' AND kind = 3"
    )
    assert parent == at.task.span_id
    assert PROMPT not in str(said)
    assert "secret" not in str(said)


async def test_c1_a_stream_s_usage_is_in_its_last_chunk(
    queue: Queue, server: ModelServer, http: httpx.AsyncClient
) -> None:
    usage = {"prompt_tokens": 10, "completion_tokens": 20}
    server.chunks = [chunk("hel"), chunk("lo"), chunk(reason="length"), chunk(usage=usage), DONE]
    answered = await ask(await hop(queue, server, http), stream=True)
    assert (answered.text, answered.finish_reason) == ("hello", "length")
    assert server.requests[0]["body"]["stream_options"] == {"include_usage": True}
    assert await ledger(queue) == [("reported", 1, 10, 20, Decimal("0.00033"))]


@pytest.mark.parametrize("stream", [False, True])
async def test_c1_a_server_that_does_not_count_is_estimated_and_says_so(
    queue: Queue, server: ModelServer, http: httpx.AsyncClient, stream: bool
) -> None:
    server.body = answer("hello", None)
    server.chunks = [chunk("hello"), chunk(reason="stop"), DONE] if stream else None
    answered = await ask(await hop(queue, server, http), stream=stream)
    assert answered.usage.basis == "estimated"
    cost = (9 * 3 + 2 * 15) / Decimal(1_000_000)
    assert await ledger(queue) == [("estimated", 1, 9, 2, cost)]


@pytest.mark.parametrize(
    ("status", "chunks"),
    [
        (500, None),
        (503, None),
        (200, [chunk("hel"), BREAK]),
        (200, [chunk("hel")]),
        (200, [chunk("hel"), {"error": {"message": "out of memory"}}]),
        (200, ["no json"]),
    ],
)
async def test_c1_an_answer_that_nobody_saw_to_its_end_is_lost(
    queue: Queue, server: ModelServer, http: httpx.AsyncClient, status: int, chunks: Any
) -> None:
    server.status, server.chunks = status, chunks
    with pytest.raises(Unavailable) as caught:
        await ask(await hop(queue, server, http), stream=chunks is not None)
    assert server.url not in str(caught.value)
    assert await ledger(queue) == [("lost", 1, 0, 0, None)]
    [(status_code, said)] = await rows(queue, "SELECT status, attributes FROM tracekit.spans WHERE name = 'chat m-1'")
    assert (status_code, said[semconv.ERROR_TYPE]) == (2, "Unavailable")


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, Refused),
        (422, Refused),
        (401, Misconfigured),
        (403, Misconfigured),
        (404, Misconfigured),
        (302, Misconfigured),
        (429, Unavailable),
    ],
)
async def test_c1_what_the_server_refuses_was_no_call(
    queue: Queue, server: ModelServer, http: httpx.AsyncClient, status: int, error: type[Exception]
) -> None:
    server.status, server.body = status, {"error": {"message": "no, and by the way: sk-very-secret"}}
    with pytest.raises(error) as caught:
        await ask(await hop(queue, server, http))
    assert "secret" not in str(caught.value)
    assert await ledger(queue) == []
    assert await rows(queue, "SELECT outcome FROM tracekit.reservations") == [("released",)]
    [(status_code,)] = await rows(queue, "SELECT status FROM tracekit.spans WHERE name = 'chat m-1'")
    assert status_code == 2


async def test_c1_a_server_that_is_not_there_was_not_asked(
    queue: Queue, server: ModelServer, http: httpx.AsyncClient
) -> None:
    with pytest.raises(Unavailable, match="cannot be reached"):
        await ask(await hop(queue, server, http), "nobody")
    assert await ledger(queue) == []


async def test_c1_a_handler_that_is_told_to_stop_has_made_its_call(
    queue: Queue, server: ModelServer, http: httpx.AsyncClient
) -> None:
    server.body = HANG
    asking = asyncio.create_task(ask(await hop(queue, server, http)))
    await server.asked.wait()
    asking.cancel()
    with suppress(asyncio.CancelledError):
        await asking
    assert asking.cancelled()
    assert await ledger(queue) == [("lost", 1, 0, 0, None)]


async def test_p8_restricted_data_is_sent_to_no_remote_model(
    queue: Queue, server: ModelServer, http: httpx.AsyncClient
) -> None:
    at = await hop(queue, server, http, data_tier=DataTier.RESTRICTED)
    with pytest.raises(RemoteModelRefused):
        await ask(at)
    assert server.requests == []
    assert await ledger(queue) == []
    # One in the house may have it, and its span still says nothing of it.
    await ask(at, "house")
    assert len(server.requests) == 1
    [(said,)] = await rows(queue, "SELECT attributes FROM tracekit.spans WHERE name = 'chat m-house'")
    assert PROMPT not in str(said)
    assert said["gen_ai.usage.input_tokens"] == 10


@pytest.mark.parametrize("handed", ["plan", "approved", "results"])
async def test_p8_what_a_restricted_step_brought_to_light_is_sent_to_no_remote_model(
    queue: Queue, server: ModelServer, http: httpx.AsyncClient, handed: str
) -> None:
    step = Step(capability="note.read", data_tier=DataTier.RESTRICTED)
    secret = Plan(steps=(step,))
    handed_on: dict[str, Any] = {
        "plan": GuardianInput(plan=secret),
        "approved": ApprovedPlan(plan=secret),
        "results": Results(plan=secret, steps=(StepResult(status="done", result="the code of the safe"),)),
    }
    at: Hop[Any] = await hop(queue, server, http)
    with pytest.raises(RemoteModelRefused):
        await ask(replace(at, input=handed_on[handed]))
    assert server.requests == []
    assert await ledger(queue) == []


# --- what was told before it broke off, and what is told badly ------------------------------------------------------

USED = {"prompt_tokens": 10, "completion_tokens": 20}


@pytest.mark.parametrize(
    ("chunks", "basis"),
    [
        # All of the answer has come, and what it used with it.
        ([chunk("hel"), chunk(reason="stop"), chunk(usage=USED), "no json"], "reported"),
        ([chunk("hel"), chunk(reason="stop"), chunk(usage=USED), BREAK], "reported"),
        # A server that counts as it goes: that much, and maybe more.
        ([{**chunk("hel"), "usage": USED}, BREAK], "estimated"),
        ([{**chunk("hel"), "usage": USED}, {"error": {"message": "out of memory"}}], "estimated"),
        ([{**chunk("hel"), "usage": USED}], "estimated"),
    ],
)
async def test_c1_what_a_stream_told_before_it_broke_is_booked(
    queue: Queue, server: ModelServer, http: httpx.AsyncClient, chunks: Any, basis: str
) -> None:
    server.chunks = chunks
    with suppress(Unavailable):
        await ask(await hop(queue, server, http), stream=True)
    assert await ledger(queue) == [(basis, 1, 10, 20, Decimal("0.00033"))]


async def test_c1_what_a_stream_told_before_it_hung_is_booked(
    queue: Queue, server: ModelServer, http: httpx.AsyncClient
) -> None:
    server.chunks = [{**chunk("hel"), "usage": USED}, HANG]
    await queue.enqueue([submission("asking")])
    models = {"remote": {"base_url": server.url, "model": "m-1", "provider": "test", "timeout": timedelta(seconds=2)}}
    with pytest.raises(Unavailable, match="ReadTimeout"):
        await ask(hop_of(queue, await take(queue, "asking"), http, models=models), stream=True)
    assert await ledger(queue) == [("estimated", 1, 10, 20, Decimal("0.00033"))]


async def test_c1_an_answer_without_a_choice_has_been_paid_for(
    queue: Queue, server: ModelServer, http: httpx.AsyncClient
) -> None:
    server.body = {"model": "m-1", "choices": [], "usage": USED}
    with pytest.raises(Unavailable, match="does not speak"):
        await ask(await hop(queue, server, http))
    assert await ledger(queue) == [("reported", 1, 10, 20, Decimal("0.00033"))]


@pytest.mark.parametrize("name", ["m-1\x00", "m-" + "x" * 500, "m-\ud800", "m-\x1b[31m"])
async def test_c1_a_usage_beside_a_name_that_cannot_be_one_is_kept(
    queue: Queue, server: ModelServer, http: httpx.AsyncClient, name: str
) -> None:
    server.body = {**answer("hello", USED), "model": name}
    answered = await ask(await hop(queue, server, http))
    assert answered.model.startswith("m-")
    assert await ledger(queue) == [("reported", 1, 10, 20, Decimal("0.00033"))]


@pytest.mark.parametrize("name", [None, "", 7, ["m-1"]])
async def test_c1_where_the_answer_names_no_model_it_is_the_one_that_was_asked(
    queue: Queue, server: ModelServer, http: httpx.AsyncClient, name: Any
) -> None:
    server.body = {**answer("hello", USED), "model": name}
    assert (await ask(await hop(queue, server, http))).model == "m-1"
    assert await ledger(queue) == [("reported", 1, 10, 20, Decimal("0.00033"))]


@pytest.mark.parametrize("bad", ["10", -1, 2.5, True, None, 2**50, {}])
@pytest.mark.parametrize("side", ["prompt_tokens", "completion_tokens"])
async def test_c1_a_counter_that_cannot_be_read_is_estimated_beside_a_good_one(
    queue: Queue, server: ModelServer, http: httpx.AsyncClient, side: str, bad: Any
) -> None:
    server.body = answer("hello", {**USED, side: bad})
    await ask(await hop(queue, server, http))
    tokens = (9, 20) if side == "prompt_tokens" else (10, 2)
    [(basis, requests, *counted, _)] = await ledger(queue)
    assert (basis, requests, tuple(counted)) == ("estimated", 1, tokens)


async def test_q11_a_line_without_an_end_is_cut_off(
    queue: Queue, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tracekit.workers.models.MAX_ANSWER", 200_000)
    async with EndlessLine().serving() as server:
        with pytest.raises(Unavailable, match="answered more than 200000 bytes"):
            await ask(await hop(queue, server, http), stream=True)
        assert await ledger(queue) == [("lost", 1, 0, 0, None)]


class EndlessLine(ModelServer):
    """Writes one line for as long as somebody reads it."""

    async def _whole(self, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\ndata: ")
        while True:
            writer.write(b"x" * 10_000)
            await writer.drain()


async def test_c1_lines_come_in_pieces_of_any_size(queue: Queue, http: httpx.AsyncClient) -> None:
    """A character in two pieces, line ends of both kinds, and U+2028, which ends no line here."""
    async with Dribbling().serving() as server:
        answered = await ask(await hop(queue, server, http), stream=True)
    assert answered.text == "h\u2028é"
    assert await ledger(queue) == [("reported", 1, 10, 20, Decimal("0.00033"))]


class Dribbling(ModelServer):
    """Sends its answer byte by byte."""

    async def _whole(self, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")
        events = [chunk("h\u2028é", "stop"), chunk(usage=USED)]
        text = "".join(f": hello\r\ndata: {json.dumps(event, ensure_ascii=False)}\r\n\n" for event in events)
        for byte in f"{text}data: [DONE]".encode():
            writer.write(bytes([byte]))
            await writer.drain()


# --- a server that never answers ------------------------------------------------------------------------------------


class Trickling(ModelServer):
    """Keeps the connection alive for ever, and says nothing."""

    async def _whole(self, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")
        while True:
            writer.write(b": keep-alive\n\n")
            await writer.drain()
            # Its pace is what it is about: a sign of life now and then.
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("kind", [ModelServer, Trickling])
async def test_c1_q11_a_server_that_hangs_for_ever_costs_a_handler_s_time_and_is_lost(
    queue: Queue, http: httpx.AsyncClient, kind: type[ModelServer]
) -> None:
    async with kind().serving() as server:
        server.body = HANG
        await queue.enqueue([submission("asking")])
        models = {"remote": {"base_url": server.url, "model": "m-1", "provider": "test"}}
        worker = {"handler_timeout": timedelta(seconds=1)}
        at = hop_of(queue, await take(queue, "asking"), http, models=models, worker=worker)
        with pytest.raises(Unavailable, match="did not finish its answer within 1 s"):
            await ask(at, stream=True)
        assert await ledger(queue) == [("lost", 1, 0, 0, None)]


async def test_c1_a_server_that_hangs_is_given_the_model_s_timeout(
    queue: Queue, server: ModelServer, http: httpx.AsyncClient
) -> None:
    server.body = HANG
    await queue.enqueue([submission("asking")])
    models = {"remote": {"base_url": server.url, "model": "m-1", "timeout": timedelta(seconds=1)}}
    with pytest.raises(Unavailable, match=r"did not finish its answer \(ReadTimeout\)"):
        await ask(hop_of(queue, await take(queue, "asking"), http, models=models))
    assert await ledger(queue) == [("lost", 1, 0, 0, None)]


# --- a worker that is slow, and not dead ----------------------------------------------------------------------------


async def test_c1_q3_the_sweep_beside_a_slow_worker_books_its_call_once(
    queue: Queue, server: ModelServer, http: httpx.AsyncClient
) -> None:
    """Its lease ends while the model thinks: the sweep books the call as lost, another attempt makes its own, and what
    the slow one learns in the end takes the lost one's place.
    """
    await let_hold(queue, limit("total", "day", "usd"), 100)
    await let_hold(queue, limit("task", "task", "tokens"), 100_000)
    server.held = asyncio.Event()
    slow = await hop(queue, server, http)
    asking = asyncio.create_task(ask(slow))
    await server.asked.wait()
    async with queue.connection() as connection:
        await connection.execute("UPDATE tracekit.queue SET due_at = clock_timestamp() - interval '1 s'")
    assert await queue.sweep() == 1
    swept = slow.services.ledger
    assert sorted(await asyncio.gather(swept.sweep(), swept.sweep()))[-1] == 1
    await holds_together(queue)
    assert await ledger(queue) == [("lost", 1, 0, 0, None)]
    held, server.held = server.held, None
    again = replace(slow, task=await take(queue, "asking"))
    await ask(again)
    held.set()
    with pytest.raises(LeaseLost):
        await asking
    assert await ledger(queue) == 2 * [("reported", 1, 10, 20, Decimal("0.00033"))]
    assert await rows(queue, "SELECT count(*), max(version) FROM tracekit.usage") == [(3, 2)]
    assert await swept.sweep() == 0
    await holds_together(queue)


# --- model.chat -----------------------------------------------------------------------------------------------------


@pytest.fixture
async def driver(queue: Queue, server: ModelServer, http: httpx.AsyncClient, tmp_path: Path) -> Driver:
    models = {"remote": {"base_url": server.url, "model": "m-1", "provider": "test"}}
    house = HomeAssistantStandIn(token="unused")
    return Driver(queue, settings_for(tmp_path, house, models=models, prices=PRICES), http)


def plan(**step: Any) -> dict[str, Any]:
    arguments = {"model": "remote", "prompt": PROMPT}
    return ApprovedPlan(plan=Plan(steps=(Step(capability="model.chat", arguments=arguments, **step),))).model_dump(
        mode="json"
    )


async def test_c1_model_chat_is_asked_once_and_its_answer_kept(driver: Driver, server: ModelServer) -> None:
    task_id = await driver.file("ask", mode="executor", input=plan())
    await driver.run()
    assert driver.visited == ["executor", "reviewer"]
    assert (await driver.reviewed()).summary == "Done: ask the model remote."
    [(kept,)] = await rows(driver.queue, "SELECT result FROM tracekit.effects WHERE task_id = %s", task_id)
    assert (kept["text"], kept["cost"], kept["price_source"]) == ("hello", "0.00033", "override")
    assert kept["tokens"] == {"input": 10, "cache_read": 0, "cache_write": 0, "output": 20, "reasoning": 0}
    assert len(server.requests) == 1


async def test_p8_a_restricted_step_is_asked_of_no_remote_model(driver: Driver, server: ModelServer) -> None:
    await driver.file("ask", mode="executor", input=plan(data_tier="restricted"))
    await driver.run(until=("reviewer", "historian"))
    [(_, outcome)] = driver.log
    assert isinstance(outcome, HandOff)
    assert outcome.input["steps"][0]["status"] == "refused"
    assert "does not run in the house" in outcome.input["steps"][0]["detail"]
    assert server.requests == []


async def test_a_model_that_is_not_configured_is_said(driver: Driver) -> None:
    step = Step(capability="model.chat", arguments={"model": "other", "prompt": PROMPT})
    await driver.file("ask", mode="executor", input=ApprovedPlan(plan=Plan(steps=(step,))).model_dump(mode="json"))
    await driver.run(until=("guardian",))
    [(_, outcome)] = driver.log
    assert isinstance(outcome, GiveUp)
    assert "configured are: remote" in outcome.reason


@pytest.mark.parametrize("stream", [False, True])
async def test_c1_what_was_paid_for_can_be_kept_whatever_it_says(
    queue: Queue, server: ModelServer, http: httpx.AsyncClient, stream: bool
) -> None:
    said = '{"choices": [{"%s": {"content": "a\\u0000\\ud800"}, "finish_reason": "\\u0000%s"}]}'
    if stream:
        server.chunks = [said % ("delta", "x" * 1000), chunk(5, None), DONE]  # type: ignore[arg-type]
    else:
        server.body = said % ("message", "x" * 1000)
    answered = await ask(await hop(queue, server, http), stream=stream)
    assert answered.text == "a\ufffd\ufffd" + ("5" if stream else "")
    assert answered.finish_reason.startswith("\ufffdxx")
    assert len(answered.finish_reason) == 100
    [(basis, *_)] = await ledger(queue)
    assert basis == "estimated"


@pytest.mark.parametrize("key", ["sk-sécret", "sk-secret\n", "sk secret"])
async def test_c1_a_credential_that_cannot_be_sent_is_no_call_and_is_not_shown(
    queue: Queue, server: ModelServer, http: httpx.AsyncClient, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODEL_KEY", key)
    await queue.enqueue([submission("asking")])
    models = {"remote": {"base_url": server.url, "model": "m-1", "api_key_env": "MODEL_KEY"}}
    with pytest.raises(Misconfigured) as caught:
        await ask(hop_of(queue, await take(queue, "asking"), http, models=models))
    assert key not in repr(caught.value)
    assert server.requests == []
    assert await ledger(queue) == []


async def test_c1_a_usage_that_counts_nothing_is_none(
    queue: Queue, server: ModelServer, http: httpx.AsyncClient
) -> None:
    server.body = answer("hello", {"prompt_tokens": "10", "completion_tokens": None})
    assert (await ask(await hop(queue, server, http))).usage.basis == "estimated"

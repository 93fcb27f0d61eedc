"""Telling people: what is sent, over HTTP, to servers that answer as ntfy 2.27 and Pushover's API do."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import parse_qs

import httpx
import pytest
import structlog
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from pydantic import SecretStr

from tests.queue.driving import accept, settle, take
from tests.support.processes import patience
from tracekit import instruments
from tracekit.config import GuardianSettings, NtfySettings, PushoverSettings, Settings
from tracekit.queue import Done, Notice, Park, Queue
from tracekit.queue.outbox import Notification
from tracekit.tracing.instrument import instrument_handlers
from tracekit.workers import notifications
from tracekit.workers.notifications import NTFY_MESSAGE, NTFY_REQUEST, Deliverer, DeliveryFailed

LINKS = {decision: f"https://tracekit.example/approvals/{decision}-abc" for decision in ("approve", "reject", "defer")}

SOME = Notification(
    id=7,
    task_id="01JDB3Y8Z0000000000000000A",
    trace_id="1" * 32,
    requester="rob",
    data_tier="internal",
    recipient="operator",
    kind="approval",
    urgent=False,
    title="Approve: unlock the front door",
    body="One step, destructive.",
    data={"links": LINKS},
    created_at=datetime(2026, 11, 23, tzinfo=UTC),
    attempts=1,
)


@dataclass
class Phone:
    """Both services on one address: ntfy's `POST /` and Pushover's `POST /1/messages.json`."""

    url: str = ""
    published: list[dict[str, Any]] = field(default_factory=list)
    paged: list[dict[str, str]] = field(default_factory=list)
    authorization: list[str | None] = field(default_factory=list)
    ntfy_fails: tuple[int, bytes] | None = None
    pushover_fails: tuple[int, bytes] | None = None

    def ntfy(self, body: bytes) -> tuple[int, bytes]:
        if self.ntfy_fails:
            return self.ntfy_fails
        # As ntfy: a body over twice the message limit is refused, an unknown field is ignored.
        if len(body) > 8192:
            return 400, b'{"code":40015,"http":400,"error":"invalid request: request body must be valid JSON"}'
        message = json.loads(body)
        self.published.append(message)
        echo = {"id": "WtzAM3gewHxJ", "time": 1795418372, "event": "message", "topic": message["topic"]}
        return 200, json.dumps(echo).encode()

    def pushover(self, body: bytes) -> tuple[int, bytes]:
        if self.pushover_fails:
            return self.pushover_fails
        form = {name: values[0] for name, values in parse_qs(body.decode(), strict_parsing=True).items()}
        if form["priority"] != "2" or int(form["retry"]) < 30 or int(form["expire"]) > 10_800:
            return 400, b'{"status":0,"request":"r","errors":["expire must be supplied with priority=2"]}'
        self.paged.append(form)
        return (
            200,
            b'{"status":1,"request":"647d2300-702c-4b38-8b2f-d56326ae460b","receipt":"rLqVuqTRh62UzxtmqiaLzQmVcPgiCy"}',
        )


@pytest.fixture
def phone() -> Iterator[Phone]:
    phone = Phone()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path == "/":
                phone.authorization.append(self.headers["Authorization"])
                status, answer = phone.ntfy(body)
            else:
                assert self.path == "/1/messages.json"
                status, answer = phone.pushover(body)
            self.send_response(status)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        phone.url = f"http://127.0.0.1:{server.server_port}"
        try:
            yield phone
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient() as client:
        yield client


def settings(phone: Phone, *, ntfy: bool = True, pushover: bool = True) -> Settings:
    return Settings(
        ntfy=NtfySettings(url=phone.url, topic="house-topic" if ntfy else "", token=SecretStr("tk_hunter2")),
        pushover=PushoverSettings(
            url=phone.url, user=SecretStr("user-key" if pushover else ""), token=SecretStr("app-hunter3")
        ),
        guardian=GuardianSettings(urgent_ttl=timedelta(minutes=30)),
    )


def counted(channel: str, outcome: str) -> float:
    return (
        instruments.REGISTRY.get_sample_value("tracekit_notifications_total", {"channel": channel, "outcome": outcome})
        or 0
    )


# --- what is sent ---------------------------------------------------------------------------------------------------


async def test_a_normal_one_is_published_with_its_three_buttons(phone: Phone, http: httpx.AsyncClient) -> None:
    before = counted("ntfy", "delivered")
    assert await Deliverer(settings(phone), http)(SOME) == {"channel": "ntfy", "id": "WtzAM3gewHxJ"}
    assert phone.published == [
        {
            "topic": "house-topic",
            "title": "Approve: unlock the front door",
            "message": "One step, destructive.",
            "priority": 4,
            "tags": ["approval"],
            "sequence_id": SOME.task_id,
            "actions": [
                {"action": "http", "label": label, "url": LINKS[decision], "method": "POST", "clear": True}
                for decision, label in (("approve", "Approve"), ("reject", "Reject"), ("defer", "Defer"))
            ],
        }
    ]
    assert phone.authorization == ["Bearer tk_hunter2"]
    assert phone.paged == []
    assert counted("ntfy", "delivered") == before + 1


async def test_without_links_there_are_no_buttons(phone: Phone, http: httpx.AsyncClient) -> None:
    deliver = Deliverer(settings(phone), http)
    await deliver(replace(SOME, data={}))
    await deliver(replace(SOME, data={"links": "odd"}))
    await deliver(replace(SOME, data={"links": {"approve": "javascript:alert()", "burn": "https://x.example"}}))
    assert [(message["actions"], message["priority"]) for message in phone.published] == [([], 3)] * 3


async def test_an_urgent_one_pages_until_somebody_acknowledges_P6(phone: Phone, http: httpx.AsyncClient) -> None:
    receipt = await Deliverer(settings(phone), http)(replace(SOME, urgent=True))
    assert receipt == {"channel": "pushover", "receipt": "rLqVuqTRh62UzxtmqiaLzQmVcPgiCy"}
    assert phone.paged == [
        {
            "token": "app-hunter3",
            "user": "user-key",
            "priority": "2",
            "retry": "60",
            "expire": "1800",
            "title": "Approve: unlock the front door",
            "message": "One step, destructive.",
            "url": LINKS["approve"],
            "url_title": "Decide",
        }
    ]
    assert phone.published == []


async def test_an_urgent_one_without_pushover_goes_over_ntfy_at_its_loudest_P6(
    phone: Phone, http: httpx.AsyncClient
) -> None:
    receipt = await Deliverer(settings(phone, pushover=False), http)(replace(SOME, urgent=True))
    assert receipt == {"channel": "ntfy", "id": "WtzAM3gewHxJ"}
    assert [message["priority"] for message in phone.published] == [5]


async def test_a_page_that_fails_goes_over_ntfy_instead(phone: Phone, http: httpx.AsyncClient) -> None:
    phone.pushover_fails = 429, b'{"status":0,"errors":["application over quota"]}'
    failed, delivered = counted("pushover", "failed"), counted("ntfy", "delivered")
    receipt = await Deliverer(settings(phone), http)(replace(SOME, urgent=True))
    assert receipt == {"channel": "ntfy", "id": "WtzAM3gewHxJ", "instead_of": "pushover"}
    assert [message["priority"] for message in phone.published] == [5]
    assert (counted("pushover", "failed"), counted("ntfy", "delivered")) == (failed + 1, delivered + 1)


async def test_with_nothing_configured_the_log_has_the_title_only(phone: Phone, http: httpx.AsyncClient) -> None:
    deliver = Deliverer(settings(phone, ntfy=False, pushover=False), http)
    with structlog.testing.capture_logs() as lines:
        assert await deliver(SOME) == {"channel": "log"}
    assert lines == [
        {
            "event": "notification",
            "log_level": "warning",
            "title": "Approve: unlock the front door",
            "urgent": False,
            "notification": "approval",
            "task_id": SOME.task_id,
            "trace_id": SOME.trace_id,
        }
    ]


async def test_a_household_members_own_goes_to_nobodys_phone_P7(phone: Phone, http: httpx.AsyncClient) -> None:
    deliver = Deliverer(settings(phone), http)
    for requester in ("renee", "system", "stranger"):
        receipt = await deliver(replace(SOME, recipient="requester", requester=requester, urgent=True))
        assert receipt == {"channel": "log", "reason": "the requester has no address"}
    assert (phone.published, phone.paged) == ([], [])
    assert await deliver(replace(SOME, recipient="requester", requester="rob"))
    assert len(phone.published) == 1


async def test_restricted_content_never_leaves_P8(phone: Phone, http: httpx.AsyncClient) -> None:
    deliver = Deliverer(settings(phone), http)
    restricted = replace(SOME, title="clinic", body="clinic", data_tier="restricted", data={"links": LINKS})
    await deliver(restricted)
    await deliver(replace(restricted, urgent=True))
    with structlog.testing.capture_logs() as lines:
        await Deliverer(settings(phone, ntfy=False, pushover=False), http)(restricted)
    sent = json.dumps([phone.published, phone.paged, lines])
    assert "clinic" not in sent
    assert "approvals" not in sent
    assert SOME.task_id in sent


async def test_credentials_in_a_text_are_taken_out(phone: Phone, http: httpx.AsyncClient) -> None:
    body = "dsn postgresql://rob:hunter4@db/x failed, password=hunter5"
    await Deliverer(settings(phone), http)(replace(SOME, title="Authorization: Bearer hunter6hunter6", body=body))
    assert "hunter" not in json.dumps(phone.published)


async def test_an_answer_without_end_is_given_up(phone: Phone, http: httpx.AsyncClient) -> None:
    phone.ntfy_fails = (200, b'{"id": "' + b"a" * 1_000_000 + b'"}')
    with pytest.raises(DeliveryFailed, match="more than 65536 bytes"):
        await Deliverer(settings(phone), http)(SOME)


async def test_an_answer_that_trickles_is_given_up(
    phone: Phone, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def trickle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        with suppress(OSError):
            while True:
                writer.write(b" ")
                await writer.drain()
                await asyncio.sleep(0.05)

    monkeypatch.setattr(notifications, "_LONGEST", 0.3)
    async with await asyncio.start_server(trickle, "127.0.0.1", 0) as server:
        phone.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with patience():
            with pytest.raises(DeliveryFailed, match="TimeoutError"):
                await Deliverer(settings(phone), http)(SOME)
        server.close()


async def test_a_text_cannot_pass_for_another(phone: Phone, http: httpx.AsyncClient) -> None:
    forged = replace(SOME, title="Approve? \u202ekcol\r\nPriority: 1", body="\x1b[2Junlock\n\u2066the door")
    await Deliverer(settings(phone), http)(forged)
    (message,) = phone.published
    assert message["title"] == "Approve? \ufffdkcol\ufffd Priority: 1"
    assert message["message"] == "\ufffd[2Junlock\n\ufffdthe door"


@pytest.mark.parametrize("character", ["x", "\u00fc", "\U0001f6a8", "\n", '"', "\x01"])
async def test_long_texts_fit_the_services_limits(phone: Phone, http: httpx.AsyncClient, character: str) -> None:
    long = replace(SOME, title=character * 5_000, body=character * 50_000 + "end")
    deliver = Deliverer(settings(phone), http)
    await deliver(long)
    [message] = phone.published
    assert 0 < len(message["message"].encode()) <= NTFY_MESSAGE
    assert len(message["title"].encode()) <= 250
    assert len(json.dumps(message, ensure_ascii=False).encode()) <= NTFY_REQUEST
    assert len(message["actions"]) == 3
    await deliver(replace(long, urgent=True))
    [page] = phone.paged
    assert 0 < len(page["message"]) <= 1_024
    assert len(page.get("title", "")) <= 250


# --- what fails -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (
            (401, b'{"code":40101,"http":401,"error":"unauthorized"}'),
            "ntfy refused the notification (401: unauthorized)",
        ),
        ((429, b'{"code":42901,"error":"limit reached"}'), "ntfy refused the notification (429: limit reached)"),
        ((502, b"<html>"), "ntfy refused the notification (502)"),
        ((200, b"welcome"), "ntfy refused the notification (200)"),
        ((307, b""), "ntfy refused the notification (307)"),
        ((500, b'{"error": {"deep": 1}}'), "ntfy refused the notification (500)"),
    ],
)
async def test_a_refusal_is_an_error_without_secrets(
    phone: Phone, http: httpx.AsyncClient, answer: tuple[int, bytes], says: str
) -> None:
    phone.ntfy_fails = answer
    before = counted("ntfy", "failed")
    with pytest.raises(DeliveryFailed) as failed:
        await Deliverer(settings(phone), http)(SOME)
    assert str(failed.value) == says
    assert counted("ntfy", "failed") == before + 1


async def test_one_that_echoes_a_token_is_not_quoted(phone: Phone, http: httpx.AsyncClient) -> None:
    phone.pushover_fails = 400, b'{"token":"invalid","errors":["token=app-hunter3 is invalid"],"status":0}'
    with pytest.raises(DeliveryFailed, match="Pushover refused") as failed:
        await Deliverer(settings(phone, ntfy=False), http)(replace(SOME, urgent=True))
    assert "hunter" not in str(failed.value)


async def test_a_server_that_is_away_is_said_without_its_address(phone: Phone, http: httpx.AsyncClient) -> None:
    gone = Settings(ntfy=NtfySettings(url="http://rob:hunter7@127.0.0.1:1", topic="house-topic"))
    with pytest.raises(DeliveryFailed) as failed:
        await Deliverer(gone, http)(SOME)
    assert str(failed.value) == "ntfy cannot be reached (ConnectError)"


# --- out of the queue -----------------------------------------------------------------------------------------------


async def test_the_outbox_keeps_the_receipt_and_tries_again_after_a_failure(
    phone: Phone, http: httpx.AsyncClient, queue: Queue
) -> None:
    deliver = Deliverer(settings(phone), http)
    await accept(queue, intent="turn on the light")
    notice = Notice("approval", "Approve?", "The light", data={"links": LINKS})
    await settle(queue, await take(queue), Park("approval", "a:1", timedelta(hours=1), notice=notice))
    phone.ntfy_fails = 500, b""
    assert await queue.deliver(deliver) == 1
    assert await outbox(queue) == [(None, "DeliveryFailed: ntfy refused the notification (500)")]
    phone.ntfy_fails = None
    async with queue.connection() as connection:
        await connection.execute("UPDATE tracekit.outbox SET due_at = clock_timestamp()")
    assert await queue.deliver(deliver) == 1
    assert await outbox(queue) == [({"channel": "ntfy", "id": "WtzAM3gewHxJ"}, None)]
    assert await queue.deliver(deliver) == 0

    # The task's end replaces the question, buttons and all.
    await queue.signal("a:1", {"decision": "approve"}, dedupe_key="d", sent_by="rob")
    await settle(queue, await take(queue), Done(summary="The light is on.", notify=True))
    assert await queue.deliver(deliver) == 1
    asked, told = phone.published
    assert asked["sequence_id"] == told["sequence_id"]
    assert (len(asked["actions"]), told["actions"]) == (3, [])


async def outbox(queue: Queue) -> list[tuple[Any, ...]]:
    async with queue.connection() as connection:
        cursor = await connection.execute("SELECT receipt, last_error FROM tracekit.outbox ORDER BY id")
        return await cursor.fetchall()


async def test_delivering_makes_no_spans_T9(phone: Phone, http: httpx.AsyncClient) -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    instrument_handlers(provider).client(http)
    await Deliverer(settings(phone), http)(SOME)
    assert exporter.get_finished_spans() == ()

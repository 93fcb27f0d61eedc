"""What bad input and bad luck get at the door: a problem document, a count, a span, and nothing enqueued."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import signal
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from tests.ingress.conftest import ALERTS, HOUSEHOLD, OPERATOR, Served, make_settings, serving, token
from tests.ingress.test_tasks import CALLER, wish
from tests.support.postgres import ThrowawayServer
from tracekit import instruments
from tracekit.config import ConfigError, Settings, Token
from tracekit.ingress.auth import Tokens
from tracekit.ingress.database import _ending
from tracekit.postgres import Pool, migrate, open_pool
from tracekit.queue import Queue

JSON = {"Content-Type": "application/json"}


def counted(surface: str, reason: str) -> float:
    return (
        instruments.REGISTRY.get_sample_value("tracekit_ingress_refusals_total", {"surface": surface, "reason": reason})
        or 0.0
    )


async def refused(served: Served, response: Any, status: int, reason: str) -> dict[str, Any]:
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = response.json()
    assert problem["status"] == status
    assert problem["type"] == f"urn:tracekit:problem:{reason}"
    assert {"title", "detail", "instance"} <= set(problem)
    assert await served.tasks() == []
    return problem


# --- who --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "header",
    [None, "", "Bearer", f"Basic {OPERATOR}", "Bearer wrong", f"Bearer {OPERATOR}x", "Bearer caf\xe9"],
)
async def test_without_a_valid_token_nobody_is_let_in(untouched: Served, header: str | None) -> None:
    headers = {} if header is None else {b"Authorization": header.encode("latin-1")}
    for path in ("/v1/tasks", "/ingress/alertmanager", "/v1/approvals/x"):
        response = await untouched.http.post(path, json=wish(), headers=headers)
        await refused(untouched, response, 401, "unauthenticated")
        assert response.headers["www-authenticate"].startswith("Bearer ")
        assert "tracekit token" in response.json()["hint"]


async def test_without_configured_tokens_every_post_is_refused(queue: Queue, tmp_path: Any) -> None:
    async with serving(make_settings(tmp_path, tokens=()), queue) as served:
        problem = await refused(served, await served.post("/v1/tasks", wish()), 401, "unauthenticated")
        assert "no token is configured" in problem["detail"]
        assert (await served.get("/healthz", token=None)).status_code == 200


async def test_a_token_may_come_from_the_environment(queue: Queue, tmp_path: Any) -> None:
    tokens = (
        Token(surface="zulip", principal="renee", env="ZULIP_TOKEN"),
        Token(surface="x", principal="rob", env="NO"),
    )
    settings = make_settings(tmp_path, tokens=tokens)
    async with serving(settings, queue, environment={"ZULIP_TOKEN": "från miljön"}) as served:
        header = {b"Authorization": "Bearer från miljön".encode()}
        assert (await served.http.post("/v1/tasks", json=wish(), headers=header)).status_code == 202
        (task,) = await served.tasks()
        assert (task["surface"], task["requester"]) == ("zulip", "renee")
        assert (await served.post("/v1/tasks", wish(), token="")).status_code == 401


def test_one_token_for_two_surfaces_is_refused(tmp_path: Any) -> None:
    settings = make_settings(tmp_path, tokens=(token("same", "a", "rob"), token("same", "b", "renee")))
    with pytest.raises(ConfigError, match="share one token"):
        Tokens(settings)


async def test_what_a_token_may_not_do(untouched: Served) -> None:
    await refused(untouched, await untouched.post("/ingress/alertmanager", {}, token=HOUSEHOLD), 403, "forbidden")
    await refused(untouched, await untouched.get("/v1/approvals", token=HOUSEHOLD), 403, "forbidden")
    await refused(untouched, await untouched.post("/v1/approvals/x", {}, token=ALERTS), 403, "forbidden")


async def test_tokens_are_never_logged(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    await served.post("/v1/tasks", wish())
    await served.post("/v1/tasks", wish(), token="a-wrong-token")
    await served.get("/approvals/a-forged-token")
    said = "".join(capsys.readouterr())
    assert "ingress.refused" in said
    assert not [secret for secret in (OPERATOR, "a-wrong-token", "a-forged-token") if secret in said]
    for span in await served.refusals():
        assert "a-wrong-token" not in json.dumps(span, default=str)
        assert "a-forged-token" not in json.dumps(span, default=str)


# --- what -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "is empty"),
        (b"{", "is not JSON"),
        (b'{"intent": NaN}', "NaN"),
        (b'{"intent": "a", "intent": "b"}', "given twice"),
        (b'{"intent": "\\ud800"}', "surrogate"),
        (b'{"\\udfff": 1}', "surrogate"),
        (b'"\xff"', "is not UTF-8"),
        (b"\xef\xbb\xbf{}", "is not JSON"),
        (b"[" * 2000, "nested deeper"),
        (b'{"a":' * 40 + b"1" + b"}" * 40, "nested deeper"),
        (b"9" * 4000 + b"9" * 90, "422"),
        (b'{"intent": "' + b"\\" * 3001, "is not JSON"),
    ],
)
async def test_what_is_not_json_is_refused(untouched: Served, body: bytes, says: str) -> None:
    response = await untouched.post("/v1/tasks", content=body, headers=JSON)
    if says == "422":
        await refused(untouched, response, 422, "invalid")
    else:
        problem = await refused(untouched, response, 400, "malformed")
        assert says in problem["detail"]


@pytest.mark.parametrize("body", [b"null", b"[]", b"1", b'"text"', b"{}"])
async def test_json_of_another_shape_is_refused(untouched: Served, body: bytes) -> None:
    await refused(untouched, await untouched.post("/v1/tasks", content=body, headers=JSON), 422, "invalid")


@pytest.mark.parametrize("intent", ["", "a\x00b", "x" * 16_385])
async def test_what_postgresql_cannot_keep_is_a_fault(queue: Queue, tmp_path: Any, intent: str) -> None:
    async with serving(make_settings(tmp_path, ingress={"max_body": 100_000}), queue) as served:
        problem = await refused(served, await served.post("/v1/tasks", wish(intent=intent)), 422, "invalid")
        assert [fault["field"] for fault in problem["faults"]] == ["intent"]


async def test_a_refusal_stays_small_whatever_was_sent(queue: Queue, tmp_path: Any) -> None:
    async with serving(make_settings(tmp_path, ingress={"max_body": 1_000_000}), queue) as served:
        body = wish(**{f"field {number}" + "x" * 400: 1 for number in range(1000)})
        response = await served.post("/v1/tasks", body)
        problem = await refused(served, response, 422, "invalid")
        assert len(problem["faults"]) == 50
        assert problem["faults_left_out"] == 950
        assert len(response.content) < 40_000


@pytest.mark.parametrize("media", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
async def test_another_media_type_is_refused(untouched: Served, media: str) -> None:
    response = await untouched.post("/v1/tasks", content=json.dumps(wish()), headers={"Content-Type": media})
    await refused(untouched, response, 415, "unsupported-media-type")


async def test_a_compressed_body_is_refused(untouched: Served) -> None:
    body = gzip.compress(json.dumps(wish()).encode())
    response = await untouched.post("/v1/tasks", content=body, headers={**JSON, "Content-Encoding": "gzip"})
    await refused(untouched, response, 415, "unsupported-media-type")


async def chunks(size: int) -> AsyncIterator[bytes]:
    for _ in range(size // 1024):
        yield b"x" * 1024


@pytest.mark.parametrize("size", [5 * 1024, 8 * 1024, 512 * 1024])
@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_that_is_too_large_is_refused(untouched: Served, size: int, chunked: bool) -> None:
    content: Any = chunks(size) if chunked else b"x" * size
    await refused(untouched, await untouched.post("/v1/tasks", content=content, headers=JSON), 413, "too-large")


async def test_a_chunked_body_of_the_right_size_is_taken(served: Served) -> None:
    async def body() -> AsyncIterator[bytes]:
        for byte in json.dumps(wish()).encode():
            yield bytes([byte])

    assert (await served.post("/v1/tasks", content=body(), headers=JSON)).status_code == 202


async def raw(served: Served, request: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    writer.write(request)
    await writer.drain()
    return reader, writer


def head(length: int, *more: str) -> bytes:
    lines = ["POST /v1/tasks HTTP/1.1", "Host: tracekit", f"Authorization: Bearer {OPERATOR}",
             "Content-Type: application/json", f"Content-Length: {length}", *more]  # fmt: skip
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


async def test_a_body_that_does_not_come_is_given_up(queue: Queue, settings: Settings) -> None:
    async with serving(settings, queue, body_timeout=timedelta(milliseconds=200)) as served:
        reader, writer = await raw(served, head(100) + b'{"intent"')
        answer = await reader.read()
        writer.close()
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b"connection: close" in answer
        assert b"urn:tracekit:problem:too-slow" in answer
        assert await served.tasks() == []


async def test_a_caller_that_leaves_in_mid_body_is_nobodys_error(served: Served) -> None:
    before = counted("shell", "internal")
    _, writer = await raw(served, head(100) + b'{"intent"')
    writer.close()
    await writer.wait_closed()
    assert (await served.post("/v1/tasks", wish())).status_code == 202
    assert counted("shell", "internal") == before
    assert len(await served.tasks()) == 1


async def test_who_asks_first_need_not_send_a_body_that_is_refused(untouched: Served) -> None:
    reader, writer = await raw(untouched, head(1_000_000, "Expect: 100-continue"))
    answer = await reader.read()
    writer.close()
    assert answer.startswith(b"HTTP/1.1 413 ")


# --- where ------------------------------------------------------------------------------------------------------------


async def test_unknown_paths_and_methods_are_problems_too(served: Served) -> None:
    await refused(served, await served.get("/nothing"), 404, "not-found")
    await refused(served, await served.post("/v1/tasks/", wish()), 404, "not-found")
    response = await served.http.delete("/v1/tasks")
    await refused(served, response, 405, "method-not-allowed")
    assert response.headers["allow"] == "POST"
    response = await served.http.request("BREW", "/approvals/x")
    await refused(served, response, 405, "method-not-allowed")
    assert response.headers["allow"] == "GET, POST"
    names = [span["name"] for span in await served.refusals()]
    assert names == ["GET", "POST", "DELETE /v1/tasks", "HTTP /approvals/{token}"]


# --- the record of it -------------------------------------------------------------------------------------------------


async def test_a_refusal_is_counted_and_is_a_span_in_the_callers_trace(served: Served) -> None:
    trace_id, span_id = CALLER
    before = counted("voice", "invalid")
    headers = {"traceparent": f"00-{trace_id}-{span_id}-01", "User-Agent": "voice/1"}
    response = await served.post("/v1/tasks?secret=1", {}, token=HOUSEHOLD, headers=headers)
    assert counted("voice", "invalid") == before + 1
    (span,) = await served.refusals()
    assert response.headers["traceparent"] == f"00-{trace_id}-{span['span_id']}-01"
    assert response.json()["instance"] == f"urn:tracekit:trace:{trace_id}"
    assert (span["trace_id"], span["parent_span_id"], span["task_id"]) == (trace_id, span_id, None)
    assert (span["name"], span["kind"], span["status"]) == ("POST /v1/tasks", 2, 0)
    assert span["end_time"] >= span["start_time"]
    assert span["attributes"] == {
        "error.type": "invalid",
        "http.request.method": "POST",
        "http.response.status_code": 422,
        "http.route": "/v1/tasks",
        "network.protocol.version": "1.1",
        "tracekit.surface": "voice",
        "url.scheme": "http",
        "user_agent.original": "voice/1",
    }


async def test_a_flood_of_refusals_is_counted_but_does_not_fill_the_record(served: Served) -> None:
    before = counted("unknown", "unauthenticated")
    for _ in range(10):
        await asyncio.gather(*(served.post("/v1/tasks", wish(), token=None) for _ in range(20)))
    assert counted("unknown", "unauthenticated") == before + 200
    spans = await served.refusals()
    # 60 at once, and one more for each second that this took.
    assert 60 <= len(spans) < 90


async def test_a_fault_of_ours_is_a_problem_without_its_details(
    served: Served, pool: Pool, capsys: pytest.CaptureFixture[str]
) -> None:
    async with pool.connection() as connection:
        await connection.execute("ALTER TABLE tracekit.envelopes RENAME TO elsewhere")
    try:
        response = await served.post("/v1/tasks", wish())
    finally:
        async with pool.connection() as connection:
            await connection.execute("ALTER TABLE tracekit.elsewhere RENAME TO envelopes")
    problem = await refused(served, response, 500, "internal")
    assert "envelopes" not in json.dumps(problem)
    assert "UndefinedTable" in "".join(capsys.readouterr())
    (span,) = await served.refusals()
    assert span["status"] == 2


# --- bad luck ---------------------------------------------------------------------------------------------------------


async def in_the_end(served: Served, body: Any) -> httpx.Response:
    """The answer to a caller who comes back while the database is away, or takes longer than callers wait."""
    while (response := await served.post("/v1/tasks", body)).status_code == 503:
        pass
    return response


async def test_without_the_database_503_and_then_fine_again(tmp_path: Any) -> None:
    with ThrowawayServer() as server:
        dsn = server.create_database()
        await migrate(dsn)
        pool = await open_pool(dsn, min_size=2, max_size=4, name="test", autocommit=True)
        queue = Queue(pool)
        try:
            async with serving(make_settings(tmp_path), queue, patience=timedelta(seconds=1)) as served:
                await served.look()
                assert (await in_the_end(served, wish())).status_code == 202
                server.server.stop(mode="immediate")

                response = await served.post("/v1/tasks", wish(idempotency_key="k2"))
                assert response.status_code == 503
                assert response.json()["type"] == "urn:tracekit:problem:database-away"
                assert int(response.headers["retry-after"]) > 0
                assert (await served.get("/readyz")).status_code == 503
                assert (await served.get("/healthz")).status_code == 200
                with pytest.raises((psycopg.OperationalError, TimeoutError)):
                    await served.look()
                metrics = (await served.get("/metrics")).text
                assert "\ntracekit_database_up 0.0\n" in metrics
                # An old depth would be a lie: the gauges of the database are absent.
                assert "\ntracekit_hops{" not in metrics

                server._lease.ensure()
                response = await in_the_end(served, wish(idempotency_key="k2"))
                assert response.status_code == 202
                assert not response.json()["duplicate"]
                assert len(await served.tasks()) == 2
                # What was refused meanwhile is in the record, too.
                spans = await served.refusals()
                assert spans[0]["attributes"]["error.type"] == "database-away"
                assert spans[0]["status"] == 2
                while (await served.get("/readyz")).status_code != 200:
                    pass
        finally:
            await pool.close()


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


async def test_while_the_database_is_frozen_answers_come_in_time(tmp_path: Any) -> None:
    """A server that is stopped in its tracks takes connections and requests to cancel, and answers none of them."""
    with ThrowawayServer() as server:
        dsn = server.create_database()
        await migrate(dsn)
        pool = await open_pool(dsn, min_size=2, max_size=4, name="test", autocommit=True)
        try:
            async with serving(make_settings(tmp_path), Queue(pool), patience=timedelta(seconds=1)) as served:
                assert (await in_the_end(served, wish())).status_code == 202
                postmaster = server.server.status().pid
                assert postmaster is not None
                frozen = [postmaster, *children(postmaster)]
                try:
                    for pid in frozen:
                        os.kill(pid, signal.SIGSTOP)
                    assert (await served.get("/readyz")).status_code == 503
                    # psycopg waits for ten seconds until the server has heard that nobody wants its answer any more.
                    assert _ending, "the answer came after the question was given up"
                    for _ in range(2):
                        assert (await served.post("/v1/tasks", wish(idempotency_key="k2"))).status_code == 503
                finally:
                    for pid in frozen:
                        os.kill(pid, signal.SIGCONT)
                await in_the_end(served, wish(idempotency_key="k2"))
                assert len(await served.tasks()) == 2
        finally:
            await pool.close()


async def test_a_restart_of_the_database_is_sat_out(tmp_path: Any) -> None:
    with ThrowawayServer() as server:
        dsn = server.create_database()
        await migrate(dsn)
        pool = await open_pool(dsn, min_size=4, max_size=4, name="test", autocommit=True)
        try:
            async with serving(make_settings(tmp_path), Queue(pool), patience=timedelta(minutes=1)) as served:
                server.server.stop(mode="immediate")
                server._lease.ensure()
                # Every connection of the pool is broken, and the caller does not notice.
                assert (await served.post("/v1/tasks", wish())).status_code == 202
        finally:
            await pool.close()

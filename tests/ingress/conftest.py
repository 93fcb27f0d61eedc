"""The ingress on a real socket, over the test's own database."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from psycopg.rows import dict_row

from tests.support.postgres import ThrowawayServer
from tests.support.processes import PATIENCE
from tracekit.config import IngressSettings, Principal, Settings, Token
from tracekit.envelope import Origin
from tracekit.ingress import bind, create_app, serve
from tracekit.ingress.refusals import Refusals
from tracekit.instruments import DatabaseGauges
from tracekit.postgres import open_pool
from tracekit.queue import Queue
from tracekit.workers.depths import DepthReader

OPERATOR, HOUSEHOLD, OTHER, ALERTS = "operator-token", "household-token", "other-token", "alerts-token"


def token(secret: str, surface: str, principal: str, origin: Origin = Origin.MANUAL) -> Token:
    return Token(
        surface=surface, principal=principal, origin=origin, sha256=hashlib.sha256(secret.encode()).hexdigest()
    )


TOKENS = (
    token(OPERATOR, "shell", "rob"),
    token(HOUSEHOLD, "voice", "renee", Origin.HA_VOICE),
    token(OTHER, "phone", "guest", Origin.ANDROID),
    token(ALERTS, "alertmanager", "system", Origin.OBSERVER),
)


def make_settings(home: Path, **fields: Any) -> Settings:
    ingress = {"port": 0, "max_body": 4096, **fields.pop("ingress", {})}
    principals = {
        "rob": Principal(role="operator"),
        "renee": Principal(role="household"),
        "guest": Principal(role="household"),
        "system": Principal(role="system"),
    }
    return Settings(
        **{
            "home": home,
            "tokens": TOKENS,
            "principals": principals,
            "ingress": IngressSettings(**ingress),
            **fields,
        }
    )


@dataclass
class Served:
    """A running ingress, a client of it, and what its database holds."""

    app: FastAPI
    http: httpx.AsyncClient
    port: int
    settings: Settings
    queue: Queue
    gauges: DatabaseGauges

    async def post(self, path: str, json: Any = None, *, token: str | None = OPERATOR, **rest: Any) -> httpx.Response:
        headers = {**({"Authorization": f"Bearer {token}"} if token else {}), **rest.pop("headers", {})}
        if json is not None:
            rest["json"] = json
        return await self.http.post(path, headers=headers, **rest)

    async def get(self, path: str, *, token: str | None = OPERATOR, **rest: Any) -> httpx.Response:
        headers = {**({"Authorization": f"Bearer {token}"} if token else {}), **rest.pop("headers", {})}
        return await self.http.get(path, headers=headers, **rest)

    async def look(self) -> None:
        """Renew the gauges now."""
        await DepthReader(self.queue, self.gauges).look()

    async def rows(self, statement: str, *values: Any) -> list[dict[str, Any]]:
        async with self.queue.connection() as connection, connection.cursor(row_factory=dict_row) as cursor:
            await cursor.execute(statement.encode(), values)
            return await cursor.fetchall()

    async def tasks(self) -> list[dict[str, Any]]:
        return await self.rows("SELECT * FROM tracekit.tasks ORDER BY id")

    async def refusals(self) -> list[dict[str, Any]]:
        """The spans of refusals, once all that were noted are written."""
        refusals = self.app.state.refusals
        assert isinstance(refusals, Refusals)
        await refusals.written()
        return await self.rows("SELECT * FROM tracekit.spans WHERE task_id IS NULL ORDER BY seq")


@asynccontextmanager
async def serving(settings: Settings, queue: Queue, **app: Any) -> AsyncIterator[Served]:
    gauges = DatabaseGauges()
    made = create_app(settings, queue, gauges=gauges, **app)
    sock = bind(settings)
    port = sock.getsockname()[1]
    stop = asyncio.Event()
    task = asyncio.create_task(serve(made, settings, stop, sock=sock))
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE) as http:
            yield Served(made, http, port, settings, queue, gauges)
    finally:
        stop.set()
        await task


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return make_settings(tmp_path)


@pytest.fixture(scope="session")
async def untouched(
    postgres: ThrowawayServer, template: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Served]:
    """One that all tests share of which nothing may be accepted."""
    dsn = postgres.create_database(template=template)
    pool = await open_pool(dsn, min_size=1, max_size=4, name="test", autocommit=True)
    async with serving(make_settings(tmp_path_factory.mktemp("untouched")), Queue(pool)) as running:
        yield running
    await pool.close()


@pytest.fixture
async def served(settings: Settings, queue: Queue) -> AsyncIterator[Served]:
    async with serving(settings, queue) as running:
        yield running

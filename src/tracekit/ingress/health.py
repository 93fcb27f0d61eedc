"""`/healthz`, `/readyz`, `/metrics`: what a monitor looks at. Nothing here is counted as a refusal."""

from __future__ import annotations

import asyncio
import ipaddress
import time
from collections.abc import Callable
from datetime import timedelta

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from tracekit.ingress.context import ingress_of
from tracekit.ingress.database import RETRY_AFTER, within
from tracekit.ingress.exchange import exchange_of
from tracekit.ingress.problems import Reason, Refused, answer, database_away, hinted
from tracekit.instruments import exposition
from tracekit.postgres import DatabaseError, check_schema, is_away
from tracekit.queue import Queue

router = APIRouter()


class Readiness:
    """Whether the database can be used. Looks at most once a second, however often it is asked."""

    def __init__(self, queue: Queue, listener: Callable[[], str] | None, *, timeout: timedelta) -> None:
        self._queue = queue
        self._listener = listener
        self._timeout = timeout
        self._looking = asyncio.Lock()
        self._looked_at = 0.0
        self._refused: Refused | None = None

    @property
    def listener(self) -> str:
        """The state of the queue's listener, `none` where this process has none."""
        return self._listener() if self._listener else "none"

    async def refused(self) -> Refused | None:
        """Why the process is not ready, or None."""
        async with self._looking:
            if time.monotonic() - self._looked_at >= 1:
                self._refused = await self._look()
                self._looked_at = time.monotonic()
            return self._refused

    async def _look(self) -> Refused | None:
        try:
            await within(self._timeout, self._reach())
        except TimeoutError:
            return database_away()
        except DatabaseError as error:
            return hinted(Reason.DATABASE_AWAY, error)
        return None

    async def _reach(self) -> None:
        # After a restart each idle connection of the pool fails once, and is replaced by that.
        while True:
            try:
                async with self._queue.connection() as connection:
                    await connection.execute("SELECT 1")
                    await check_schema(connection)
                return
            except Exception as error:
                if not is_away(error):
                    raise
                await asyncio.sleep(0.02)


@router.api_route("/healthz", methods=["GET", "HEAD"])
async def healthz() -> Response:
    """The process is alive; whether it can do anything is for /readyz to say."""
    return answer({"status": "alive"})


@router.api_route("/readyz", methods=["GET", "HEAD"])
async def readyz(request: Request) -> Response:
    """The database is reachable and its schema fits: 200, else 503. A listener that polls is slower, not unready."""
    readiness: Readiness = request.app.state.readiness
    refused = await readiness.refused()
    if refused is None:
        return answer({"status": "ready", "database": "up", "schema": "fits", "listener": readiness.listener})
    refused.headers.setdefault("Retry-After", str(RETRY_AFTER))
    return refused.response(f"urn:tracekit:trace:{exchange_of(request).trace_id}")


@router.api_route("/metrics", methods=["GET", "HEAD"])
async def metrics(request: Request) -> Response:
    """What Prometheus scrapes: OpenMetrics, with exemplars, where it asks for that. On any address but loopback it
    needs a token (any that is configured; `authorization` in the scrape_config): exemplars name traces.
    """
    ingress = ingress_of(request)
    if not is_loopback(ingress.settings.ingress.host):
        ingress.identify(request)
    body, content_type = exposition(request.headers.get("accept", ""), ingress.collectors)
    return Response(body, headers={"Content-Type": content_type})


def is_loopback(host: str) -> bool:
    """Whether an address can only be reached from this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"

"""The application: which endpoints there are, and what runs beside them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta

from fastapi import FastAPI
from prometheus_client.registry import Collector
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match

from tracekit import instruments
from tracekit.config import Settings
from tracekit.cost import Ledger, PriceBook
from tracekit.ingress import alertmanager, approvals, health, overview, tasks, usage
from tracekit.ingress.auth import Tokens
from tracekit.ingress.boundary import Boundary
from tracekit.ingress.context import Ingress
from tracekit.ingress.database import PATIENCE
from tracekit.ingress.exchange import NOBODY
from tracekit.ingress.health import Readiness
from tracekit.ingress.problems import Reason
from tracekit.ingress.refusals import Refusals
from tracekit.instruments import DatabaseGauges
from tracekit.metrics import begin
from tracekit.queue import Queue
from tracekit.workers.depths import DepthReader
from tracekit.workers.links import load_secret
from tracekit.workers.loops import end, keep
from tracekit.workers.overview import Overviews

ListenerState = Callable[[], str]
"""Tells what the queue's listener knows of itself."""

_ROUTERS = (tasks.router, usage.router, alertmanager.router, approvals.router, health.router, overview.router)


def create_app(
    settings: Settings,
    queue: Queue,
    *,
    listener: ListenerState | None = None,
    registry: Collector = instruments.REGISTRY,
    gauges: DatabaseGauges = instruments.DATABASE,
    environment: Mapping[str, str] = os.environ,
    body_timeout: timedelta = timedelta(seconds=10),
    patience: timedelta = PATIENCE,
) -> FastAPI:
    """The ingress over a queue. Its lifespan runs what it needs beside the endpoints: the depth that 429 follows from,
    and the writer of refusals' spans.

    `listener` tells the state of the queue's listener, where this process has one. `body_timeout` is how long a body
    may take to arrive: longer suits worse networks, shorter frees connections from those who hold them on purpose.
    `patience` is how long a request waits for a database that is away. Raises `ConfigError`.
    """
    refusals = Refusals(queue)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        loops = [
            asyncio.create_task(DepthReader(queue, gauges).keep()),
            asyncio.create_task(keep("refusals", refusals.round)),
        ]
        try:
            yield
        finally:
            await end(*loops)
            await refusals.close()

    app = FastAPI(
        title="tracekit",
        lifespan=lifespan,
        redirect_slashes=False,
        # Bodies are read and checked by hand, so that a refusal lists every fault; a generated page would know nothing.
        openapi_url=None,
        # Its spans would hold the address, which in an approval link is the credential, and there would be one for
        # each probe and for each request of a flood. What is worth a span here is written with its task or refusal.
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
    )
    tokens = Tokens(settings, environment)
    begin(instruments.INGRESS_TASKS, tokens.surfaces, ("true", "false"))
    begin(instruments.INGRESS_REFUSALS, {*tokens.surfaces, NOBODY}, [reason.label for reason in Reason])
    app.state.ingress = Ingress(
        settings=settings,
        queue=queue,
        ledger=Ledger(queue, PriceBook(settings.prices)),
        tokens=tokens,
        gauges=gauges,
        collectors=(registry, gauges),
        body_timeout=body_timeout,
        patience=patience,
        approval_secret=load_secret(settings),
    )
    app.state.refusals = refusals
    app.state.overviews = Overviews(queue, time_zone=settings.cost.time_zone, gauges=gauges)
    app.state.readiness = Readiness(queue, listener, timeout=min(patience, timedelta(seconds=2)))
    app.add_exception_handler(HTTPException, _refuse)
    app.add_middleware(Boundary, refusals=refusals)
    for router in _ROUTERS:
        app.include_router(router)
    return app


async def _refuse(request: Request, error: Exception) -> Response:
    """What the framework refuses goes the way of all refusals: up, to `Boundary`."""
    if isinstance(error, HTTPException) and error.status_code == 405:
        raise HTTPException(405, headers={"Allow": ", ".join(sorted(_methods(request)))})
    raise error


def _methods(request: Request) -> set[str]:
    """The methods that a path takes, over all of its routes."""
    return {
        method
        for router in _ROUTERS
        for route in router.routes
        if route.matches(request.scope)[0] is not Match.NONE
        for method in getattr(route, "methods", None) or ()
    }

"""The outermost layer: whatever happens inside, the caller gets an answer of one shape, and the record a line of it."""

from __future__ import annotations

import asyncio
from typing import Any

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tracekit.ingress import pages
from tracekit.ingress.exchange import SCOPE_KEY, Exchange
from tracekit.ingress.problems import Reason, Refused, refusal_of
from tracekit.ingress.refusals import Refusals

log = structlog.get_logger()

_DRAIN_SECONDS = 2.0
_DRAIN_BYTES = 8 * 1_048_576
"""How far an unwanted body is read on, and dropped. To close on a sender in mid-body resets its connection, and the
reset may overtake the answer that says why."""


class Boundary:
    """ASGI middleware around everything."""

    def __init__(self, app: ASGIApp, *, refusals: Refusals) -> None:
        self._app = app
        self._refusals = refusals

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = Exchange.begin(scope)
        scope[SCOPE_KEY] = exchange
        started = False
        finished_body = False

        async def receiving() -> Message:
            nonlocal finished_body
            message = await receive()
            if message["type"] == "http.disconnect" or not message.get("more_body", False):
                finished_body = True
            return message

        async def sending(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(scope=message)
                headers.setdefault("X-Content-Type-Options", "nosniff")
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        try:
            await self._app(scope, receiving, sending)
        except ClientDisconnect:
            return
        except Exception as error:
            refused = refusal_of(error)
            if refused is None:
                log.exception("ingress.broken", route=exchange.route, trace_id=exchange.trace_id)
                refused = Refused(
                    Reason.INTERNAL,
                    "the request met a fault of ours; nothing of it was accepted that was not answered",
                    hint="the operator finds this trace in the log",
                )
            if started:
                raise
            self._refusals.note(exchange, refused)
            if not finished_body and refused.reason is not Reason.TOO_SLOW:
                await _drain(scope, receiving)
            response = refused.response(f"urn:tracekit:trace:{exchange.trace_id}")
            if pages.wanted(exchange.route, Headers(scope=scope).get("accept", "")):
                response = pages.problem(refused)
            response.headers["traceparent"] = exchange.traceparent
            if not finished_body:
                response.headers["connection"] = "close"
            await response(scope, receiving, sending)


async def _drain(scope: Scope, receive: Receive) -> None:
    """Read on what is not wanted, up to a bound. Not where the sender asked first whether to send it."""
    if "expect" in Headers(scope=scope):
        return
    size = 0
    try:
        async with asyncio.timeout(_DRAIN_SECONDS):
            while size <= _DRAIN_BYTES:
                message: dict[str, Any] = dict(await receive())
                size += len(message.get("body", b""))
                if message["type"] == "http.disconnect" or not message.get("more_body", False):
                    return
    except TimeoutError:
        return

"""One request and its answer: its place in a trace, who sent it, and what may be said of it in a span."""

from __future__ import annotations

import time
from collections.abc import MutableMapping
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import HTTPConnection, Request

from tracekit import ids
from tracekit.ingress.auth import Caller
from tracekit.queue import Received
from tracekit.queue.payload import plain_text
from tracekit.tracing.context import TraceContext, parse_traceparent
from tracekit.tracing.spans import AttributeValue

SCOPE_KEY = "tracekit.exchange"

NOBODY = "unknown"
"""The surface of who has shown no credential that is known."""

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"})


@dataclass(slots=True)
class Exchange:
    """What is known of a request from its head on."""

    scope: MutableMapping[str, Any]
    parent: TraceContext | None
    """The caller's place in its trace, where it gave one."""
    trace_id: str
    """The caller's trace, or a new one."""
    span_id: str = field(default_factory=ids.new_span_id)
    """Of the request's own span, should it be refused."""
    began: float = field(default_factory=time.monotonic)
    caller: Caller | None = None

    @classmethod
    def begin(cls, scope: MutableMapping[str, Any]) -> Exchange:
        """The exchange of a request that just arrived."""
        headers = HTTPConnection(scope).headers
        given = headers.getlist("traceparent")
        # More than one is not valid (W3C Trace Context, section 3.2): a new trace begins.
        parent = parse_traceparent(given[0], ",".join(headers.getlist("tracestate"))) if len(given) == 1 else None
        return cls(scope, parent, parent.trace_id if parent else ids.new_trace_id())

    @property
    def method(self) -> str:
        """The method, or `_OTHER` where nobody has heard of it."""
        method = str(self.scope["method"])
        return method if method in _METHODS else "_OTHER"

    @property
    def route(self) -> str | None:
        """The path as a template, without anybody's values. None: no route has it."""
        path = getattr(self.scope.get("route"), "path_format", None)
        return path if isinstance(path, str) else None

    @property
    def name(self) -> str:
        """The span's name (semantic conventions for HTTP, "Name")."""
        method = "HTTP" if self.method == "_OTHER" else self.method
        return f"{method} {self.route}" if self.route else method

    @property
    def surface(self) -> str:
        """The credential's surface, for a metric's label; `NOBODY` before anybody is known."""
        return self.caller.surface if self.caller else NOBODY

    @property
    def traceparent(self) -> str:
        """Of the request's own span."""
        return ids.traceparent(self.trace_id, self.span_id)

    @property
    def duration(self) -> float:
        """Seconds since the request arrived."""
        return time.monotonic() - self.began

    def attributes(self, status: int) -> dict[str, AttributeValue]:
        """Attributes of the request's span (semantic conventions for HTTP, server). Nothing of the body, of the
        query, or of the path's values, which may be secrets.
        """
        found: dict[str, AttributeValue] = {
            "http.request.method": self.method,
            "http.response.status_code": status,
            "url.scheme": str(self.scope.get("scheme", "http")),
            "network.protocol.version": str(self.scope.get("http_version", "1.1")),
        }
        if self.route:
            found["http.route"] = self.route
        agent = HTTPConnection(self.scope).headers.get("user-agent")
        if agent:
            found["user_agent.original"] = plain_text(agent, 256)
        return found

    def received(self, status: int) -> Received:
        """The span of a request that is accepted."""
        return Received(self.name, self.duration, self.attributes(status))


def exchange_of(request: Request) -> Exchange:
    """The exchange that a request belongs to."""
    exchange = request.scope[SCOPE_KEY]
    assert isinstance(exchange, Exchange)
    return exchange

"""Spans for what handlers do: their HTTP calls and their own database work.

Nothing is instrumented globally. psycopg's instrumentation of every connection would make spans of the queue's polling,
claiming and heartbeats (T9) and slow them to half (84 µs a statement against 161 µs); so a connection or a client is
instrumented where a handler gets it, and the queue's never is.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx
import psycopg
from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor
from opentelemetry.instrumentation.psycopg import PsycopgInstrumentor
from opentelemetry.trace import TracerProvider

ConnectionT = TypeVar("ConnectionT", psycopg.Connection[Any], psycopg.AsyncConnection[Any])
ClientT = TypeVar("ClientT", httpx.Client, httpx.AsyncClient)


@dataclass(frozen=True, slots=True)
class HandlerInstruments:
    """Makes spans of what goes through a connection or a client; see `instrument_handlers`."""

    provider: TracerProvider | None = None

    def connection(self, connection: ConnectionT) -> ConnectionT:
        """Each `execute` and `executemany` becomes a CLIENT span. `stream`, `copy` and `notifies` do not, and a
        `cursor_factory` that the connection had is replaced. For a pool, call it in the pool's `configure`.
        """
        return PsycopgInstrumentor().instrument_connection(connection, tracer_provider=self.provider)

    def client(self, client: ClientT) -> ClientT:
        """Each request becomes a CLIENT span and carries its `traceparent` (T1)."""
        HTTPXClientInstrumentor().instrument_client(client, tracer_provider=self.provider)
        return client


def instrument_handlers(provider: TracerProvider | None = None) -> HandlerInstruments:
    """The instruments, for `provider` or the global one. Unless `OTEL_SEMCONV_STABILITY_OPT_IN` is set already, it opts
    the process into the stable names of HTTP and database attributes (`url.full`, `db.query.text`).
    """
    os.environ.setdefault("OTEL_SEMCONV_STABILITY_OPT_IN", "http,database")
    return HandlerInstruments(provider)

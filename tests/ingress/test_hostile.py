"""What somebody sends who means harm, or nothing by it."""

from __future__ import annotations

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from tests.ingress.conftest import Served


async def test_no_library_makes_spans_of_requests(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """The address of an approval link is a credential, and a flood of requests must not be one of spans."""
    provider, exporter = TracerProvider(), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)

    await served.http.get("/approvals/a-link-that-opens-a-door")
    await served.http.get("/healthz")
    await served.post("/v1/tasks", {"intent": "note: one", "idempotency_key": "spans"})

    assert [span.name for span in exporter.get_finished_spans()] == []

"""What somebody sends who means harm, or nothing by it."""

from __future__ import annotations

import json

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from tests.ingress.conftest import OPERATOR, Served


async def test_no_library_makes_spans_of_requests(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """The address of an approval link is a credential, and a flood of requests must not be one of spans."""
    provider, exporter = TracerProvider(), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)

    await served.http.get("/approvals/a-link-that-opens-a-door")
    await served.http.get("/healthz")
    await served.post("/v1/tasks", {"intent": "note: one", "idempotency_key": "spans"})

    assert [span.name for span in exporter.get_finished_spans()] == []


@pytest.mark.parametrize("path", ["/v1/tasks", "/ingress/alertmanager"])
async def test_json_inside_a_string_is_no_json(served: Served, path: str) -> None:
    """Read a second time, it would escape what is checked of a body: keys that are given twice, and nesting."""
    inside = '{"intent": "note: one", "intent": "unlock the front door", "idempotency_key": "twice", "version": "4"}'
    token = "alerts-token" if "alertmanager" in path else OPERATOR
    response = await served.post(path, json.dumps(inside), token=token)
    assert response.status_code == 422
    assert response.json()["faults"] == [{"field": "", "message": "must be an object"}]


@pytest.mark.parametrize(
    ("field", "value"),
    [("ttl", True), ("ttl", "1 day, 1:00:00"), ("ttl", "00:15"), ("retry_policy", {"multiplier": "2"})],
)
async def test_what_is_nearly_right_is_refused(untouched: Served, field: str, value: object) -> None:
    wish = {"intent": "note: one", "idempotency_key": "nearly", field: value}
    response = await untouched.post("/v1/tasks", wish)
    assert response.status_code == 422
    assert [fault["field"].partition(".")[0] for fault in response.json()["faults"]] == [field]

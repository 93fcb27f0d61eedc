"""`/v1/tasks/{id}/usage`: who may report what of a call, and what is answered (C1, P1, P7)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.cost.driving import book, ledger_of, usage
from tests.ingress.conftest import ALERTS, HOUSEHOLD, Served
from tests.queue.driving import accept, settle, take
from tracekit import ids
from tracekit.cost import Usage
from tracekit.queue import Done

PAYLOADS = Path(__file__).parents[1] / "cost" / "payloads"
SESSION = "claude-code/450a08fb-31b2-4186-8816-7c12e1a5857c/claude-opus-4-8[1m]"


async def ended(served: Served, *calls: Usage) -> str:
    task_id = await accept(served.queue)
    at = await take(served.queue)
    await book(ledger_of(served.queue), at, *calls)
    await settle(served.queue, at, Done())
    return task_id


def trimmed(name: str) -> Any:
    return json.loads((PAYLOADS / name).read_text())


async def test_c1_a_program_reports_late_and_twice_is_once(served: Served) -> None:
    task_id = await ended(served, usage(key=SESSION, basis="estimated"))
    [trace] = await served.rows("SELECT trace_id FROM tracekit.tasks WHERE id = %s", task_id)
    body = {"source": "claude-code", "result": trimmed("claude_code_result.json")}
    for reference, new in ((task_id, True), (trace["trace_id"], False)):
        response = await served.post(f"/v1/tasks/{reference}/usage", body, token=ALERTS)
        assert response.status_code == 200, response.text
        assert response.json() == {
            "task_id": task_id,
            "calls": [{"call": SESSION, "version": 2, "new": new, "cost": "0.028844", "price_source": "provider"}],
        }
    [row] = await served.rows("SELECT count(*) AS versions FROM tracekit.usage")
    assert row["versions"] == 2


async def test_c1_litellm_s_headers_and_holmesgpt_s_metadata(served: Served) -> None:
    task_id = await ended(served, usage(key="a", basis="estimated"), usage(key="b", basis="estimated"))
    path = f"/v1/tasks/{task_id}/usage"
    headers = {"x-litellm-response-cost": "0.25", "x-litellm-version": "1"}
    answered = await served.post(path, {"source": "litellm", "call": "a", "headers": headers})
    assert answered.json()["calls"][0]["cost"] == "0.25"
    costs = {"total_cost": 0.5, "prompt_tokens": 8, "completion_tokens": 6}
    result = {"metadata": {"costs": costs}}
    answered = await served.post(path, {"source": "holmesgpt", "call": "b", "result": result})
    assert answered.json()["calls"][0]["cost"] == "0.5"


async def test_p7_the_household_settles_nothing_and_learns_nothing(served: Served) -> None:
    task_id = await ended(served, usage(key="k"))
    body = {"source": "counters", "call": "k", "result": {"input": 1}}
    for path in (f"/v1/tasks/{task_id}/usage", f"/v1/tasks/{ids.new_task_id()}/usage"):
        refused = await served.post(path, body, token=HOUSEHOLD)
        assert refused.status_code == 403
        assert "m-1" not in refused.text
    assert (await served.post(f"/v1/tasks/{task_id}/usage", body, token=None)).status_code == 401
    [row] = await served.rows("SELECT count(*) AS versions FROM tracekit.usage")
    assert row["versions"] == 1


async def test_c1_a_report_that_settles_nothing_is_refused_with_the_way_out(served: Served) -> None:
    task_id = await ended(served, usage(key="k"), usage("unknown", key="other"))
    path = f"/v1/tasks/{task_id}/usage"
    result = {"input": 1}
    for where, body, status, said in (
        (path, {"source": "counters", "call": "x", "result": result}, 404, "'other' (unknown, unpriced), 'k' (m-1)"),
        (path, {"source": "counters", "result": result}, 404, "name one of them"),
        (f"/v1/tasks/{ids.new_task_id()}/usage", {"source": "counters", "result": result}, 404, "no such task"),
        ("/v1/tasks/01/usage", {"source": "counters", "result": result}, 404, "no such task"),
        (path, {"source": "openai", "call": "k", "result": {}}, 422, "without a usage"),
        (path, {"source": "nobody", "call": "k", "result": result}, 422, "source"),
        (path, {"source": "counters", "call": "k", "result": {"input": -1}}, 422, "input"),
        (path, {"source": "counters", "call": "k", "result": result, "cost": 1}, 422, "cost"),
    ):
        refused = await served.post(where, body)
        assert (refused.status_code, said in refused.text) == (status, True), refused.text
    [row] = await served.rows("SELECT count(*) AS versions FROM tracekit.usage")
    assert row["versions"] == 2

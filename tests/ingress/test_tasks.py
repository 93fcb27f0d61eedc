"""`/v1/tasks`: what is accepted, what is refused, and who may see what."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.ingress.conftest import ALERTS, HOUSEHOLD, OTHER, Served
from tests.queue.driving import settle, take
from tracekit import ids
from tracekit.envelope import TaskRequest
from tracekit.queue import Done, Park

CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def wish(**fields: Any) -> dict[str, Any]:
    return {"intent": "turn on the kitchen light", "idempotency_key": "k1", **fields}


async def test_a_task_is_accepted_and_can_be_found(served: Served) -> None:
    response = await served.post("/v1/tasks", wish(priority="high", ttl="PT15M"), headers={"User-Agent": "kitchen/1"})
    assert response.status_code == 202
    body = response.json()
    (task,) = await served.tasks()
    assert body == {
        "task_id": task["id"],
        "trace_id": task["trace_id"],
        "traceparent": ids.traceparent(task["trace_id"], ids.root_span_id(task["id"])),
        "duplicate": False,
        "links": {"self": f"/v1/tasks/{task['id']}"},
    }
    assert response.text.endswith("}\n"), "a shell's prompt begins a line of its own"
    assert response.headers["location"] == body["links"]["self"]
    assert response.headers["traceparent"] == body["traceparent"]
    assert "server" not in response.headers
    assert (task["requester"], task["surface"], task["origin"], task["priority"]) == ("rob", "shell", "manual", 2)
    assert task["expires_at"] - task["created_at"] == timedelta(minutes=15)
    (queued,) = await served.rows("SELECT mode, state FROM tracekit.queue")
    assert queued == {"mode": "router", "state": "ready"}


async def test_the_request_is_a_span_of_the_task_without_its_body(served: Served) -> None:
    body = (await served.post("/v1/tasks", wish(), headers={"User-Agent": "kitchen/1"})).json()
    (span,) = await served.rows("SELECT * FROM tracekit.spans WHERE kind = 2")
    assert span["task_id"] == body["task_id"]
    assert span["name"] == "POST /v1/tasks"
    assert span["span_id"] == ids.receive_span_id(body["task_id"])
    assert span["parent_span_id"] == ids.root_span_id(body["task_id"])
    assert span["end_time"] > span["start_time"]
    assert span["attributes"] == {
        "tracekit.task.id": body["task_id"],
        "http.request.method": "POST",
        "http.response.status_code": 202,
        "http.route": "/v1/tasks",
        "network.protocol.version": "1.1",
        "url.scheme": "http",
        "user_agent.original": "kitchen/1",
    }


async def test_t1_the_callers_trace_is_continued(served: Served) -> None:
    trace_id, span_id = CALLER
    headers = {"traceparent": f"00-{trace_id}-{span_id}-00", "tracestate": "vendor=1"}
    body = (await served.post("/v1/tasks", wish(), headers=headers)).json()
    (task,) = await served.tasks()
    assert body["trace_id"] == trace_id
    assert (task["trace_id"], task["parent_span_id"], task["trace_state"]) == (trace_id, span_id, "vendor=1")


async def test_a_traceparent_that_is_not_valid_begins_a_new_trace(served: Served) -> None:
    for header in ("nonsense", f"00-{'0' * 32}-{CALLER[1]}-01", f"ff-{CALLER[0]}-{CALLER[1]}-01", ""):
        headers = {"traceparent": header, "tracestate": "vendor=1"}
        assert (await served.post("/v1/tasks", wish(idempotency_key=f"k{header}"), headers=headers)).status_code == 202
    tasks = await served.tasks()
    assert len({task["trace_id"] for task in tasks}) == 4
    assert {(task["parent_span_id"], task["trace_state"]) for task in tasks} == {(None, "")}


async def test_q5_equal_posts_at_once_are_one_task(served: Served) -> None:
    responses = await asyncio.gather(*(served.post("/v1/tasks", wish()) for _ in range(20)))
    assert sorted(response.status_code for response in responses) == [200] * 19 + [202]
    assert len({response.json()["task_id"] for response in responses}) == 1
    assert len({response.headers["traceparent"] for response in responses}) == 1
    assert sum(not response.json()["duplicate"] for response in responses) == 1
    assert len(await served.tasks()) == 1


@pytest.mark.parametrize("header", ["k2", '"k2"'])
async def test_the_idempotency_key_may_be_a_header(served: Served, header: str) -> None:
    body = wish()
    del body["idempotency_key"]
    assert (await served.post("/v1/tasks", body, headers={"Idempotency-Key": header})).status_code == 202
    again = await served.post("/v1/tasks", wish(idempotency_key="k2"), headers={"Idempotency-Key": header})
    assert again.status_code == 200
    (task,) = await served.tasks()
    assert task["idempotency_key"] == "k2"


async def test_two_different_idempotency_keys_are_a_fault(untouched: Served) -> None:
    response = await untouched.post("/v1/tasks", wish(), headers={"Idempotency-Key": "another"})
    assert response.status_code == 422
    assert [fault["field"] for fault in response.json()["faults"]] == ["idempotency_key"]
    assert await untouched.tasks() == []


async def test_the_same_key_of_another_origin_is_another_task(served: Served) -> None:
    first = await served.post("/v1/tasks", wish())
    second = await served.post("/v1/tasks", wish(), token=HOUSEHOLD)
    assert [first.status_code, second.status_code] == [202, 202]
    assert len(await served.tasks()) == 2


async def test_p1_who_asks_is_not_the_bodys_to_say(served: Served) -> None:
    for field in ("requester", "surface", "origin", "trace_id", "id", "traceparent"):
        response = await served.post("/v1/tasks", wish(**{field: "rob"}), token=HOUSEHOLD)
        assert response.status_code == 422
        assert response.json()["faults"] == [{"field": field, "message": "is not a field that can be given here"}]
    assert await served.tasks() == []
    assert (await served.post("/v1/tasks", wish(), token=HOUSEHOLD)).status_code == 202
    (task,) = await served.tasks()
    assert (task["requester"], task["surface"], task["origin"]) == ("renee", "voice", "ha-voice")


async def test_every_fault_is_listed(untouched: Served) -> None:
    response = await untouched.post("/v1/tasks", {"priority": "soon", "destructive": "no", "ttl": -1, "colour": 1})
    assert response.status_code == 422
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert {fault["field"] for fault in problem["faults"]} == {
        "intent", "idempotency_key", "priority", "destructive", "ttl", "colour",
    }  # fmt: skip
    assert problem["type"] == "urn:tracekit:problem:invalid"
    assert problem["status"] == 422
    assert await untouched.tasks() == []


async def test_p7_a_household_member_sees_their_own_task_in_plain_words(served: Served) -> None:
    task_id = (await served.post("/v1/tasks", wish(), token=HOUSEHOLD)).json()["task_id"]
    path = f"/v1/tasks/{task_id}"

    async def status() -> dict[str, Any]:
        response = await served.get(path, token=HOUSEHOLD)
        assert response.status_code == 200
        found: dict[str, Any] = response.json()
        assert set(found) == {"task_id", "status", "finished", "links"}
        return found

    assert (await status())["status"] == "It will be looked at in a moment."
    hop = await take(served.queue)
    assert (await status())["status"] == "It is being worked on."
    await settle(served.queue, hop, Park("approval", "approval:x", timedelta(hours=1)))
    assert (await status())["status"].startswith("Somebody has to say yes")
    await served.queue.signal("approval:x", {}, dedupe_key="d", sent_by="rob")
    await settle(served.queue, await take(served.queue), Done("failed", "Traceback (most recent call last)"))
    last = await status()
    assert (last["status"], last["finished"]) == ("It did not work.", True)

    stranger = await served.get(path, token=OTHER)
    nothing = await served.get(f"/v1/tasks/{ids.new_task_id()}", token=OTHER)
    assert stranger.status_code == nothing.status_code == 404
    different = {"instance"}
    assert {k: v for k, v in stranger.json().items() if k not in different} == {
        k: v for k, v in nothing.json().items() if k not in different
    }
    assert (await served.get(path, token=None)).status_code == 401


async def test_an_operator_sees_state_and_events(served: Served) -> None:
    task_id = (await served.post("/v1/tasks", wish(), token=HOUSEHOLD)).json()["task_id"]
    await settle(served.queue, await take(served.queue), Done(summary="The light is on."))
    body = (await served.get(f"/v1/tasks/{task_id}")).json()
    assert (body["task"]["state"], body["task"]["summary"]) == ("done", "The light is on.")
    assert body["task"]["priority"] == "normal"
    kinds = [event["kind"] for event in body["events"]]
    assert kinds[0] == "task.accepted"
    assert len(kinds) > 2
    later = (await served.get(f"/v1/tasks/{task_id}?since_seq={body['events'][0]['seq']}")).json()
    assert later["events"] == body["events"][1:]
    assert (await served.get(f"/v1/tasks/{task_id}?since_seq=-1")).status_code == 422


@pytest.mark.parametrize("name", ["nothing", "%00", "../../etc", "a" * 5000, "01J%25"])
async def test_what_is_no_task_id_is_not_found(untouched: Served, name: str) -> None:
    assert (await untouched.get(f"/v1/tasks/{name}")).status_code == 404


async def test_q11_a_full_queue_refuses_until_there_is_room(served: Served) -> None:
    limited = served.settings.ingress.model_copy(update={"max_depth": 2})
    object.__setattr__(served.settings, "ingress", limited)
    await served.look()
    first = [(await served.post("/v1/tasks", wish(idempotency_key=f"k{n}"))).status_code for n in range(2)]
    assert first == [202, 202]
    # What this process accepted since the last look counts too: a burst cannot slip in between two looks.
    refused = await served.post("/v1/tasks", wish(idempotency_key="k3"))
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) > 0
    assert refused.json()["type"] == "urn:tracekit:problem:queue-full"
    assert (await served.post("/ingress/alertmanager", {}, token=ALERTS)).status_code == 429
    await settle(served.queue, await take(served.queue), Done())
    await served.look()
    assert (await served.post("/v1/tasks", wish(idempotency_key="k3"))).status_code == 202


words = st.text(st.characters(min_codepoint=0x21, max_codepoint=0xFF, exclude_categories=["Cc"]), max_size=60)
NAMES = ["Authorization", "Idempotency-Key", "traceparent", "tracestate", "Content-Type", "User-Agent", "Accept"]


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(given=st.dictionaries(st.sampled_from(NAMES), words, max_size=4))
async def test_no_header_breaks_it(served: Served, given: dict[str, str]) -> None:
    headers = {name.encode(): value.encode("latin-1") for name, value in given.items()}
    authorized = {b"Authorization": b"Bearer operator-token", **headers}
    for path in ("/v1/tasks", "/approvals/x"):
        response = await served.http.post(path, json=wish(), headers=authorized)
        assert response.status_code in (200, 202, 401, 403, 415, 422)
        assert "traceparent" in response.headers


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4)
)
fields = st.dictionaries(st.sampled_from([*TaskRequest.model_fields, "requester", "id"]), values, max_size=6)
bodies = (
    st.binary(max_size=200)
    | values.map(lambda value: json.dumps(value).encode())
    | fields.map(lambda value: json.dumps(value).encode())
    | fields.map(lambda value: json.dumps({**wish(), **value}).encode())
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=bodies)
async def test_no_body_breaks_it_and_only_a_valid_one_is_enqueued(served: Served, body: bytes) -> None:
    before = len(await served.tasks())
    response = await served.post("/v1/tasks", content=body, headers={"Content-Type": "application/json"})
    added = len(await served.tasks()) - before
    if response.status_code in (200, 202):
        TaskRequest.model_validate_json(body)
        assert added == (response.status_code == 202)
    else:
        assert response.status_code in ((413,) if len(body) > served.settings.ingress.max_body else (400, 422))
        assert added == 0
        assert response.headers["content-type"] == "application/problem+json"
        assert response.json()["status"] == response.status_code

"""Decisions over HTTP (P5): a link shows and a POST decides, the first decision wins, an operator's token does both."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.ingress.conftest import HOUSEHOLD, Served, make_settings, serving
from tests.workers.modes.driving import Driver
from tracekit import ids
from tracekit.config import GuardianSettings
from tracekit.queue import Queue
from tracekit.workers import approvals, links
from tracekit.workers.approvals import Approval, Decision

SECRET = b"not-a-secret-in-tests"
UNLOCK = {
    "capability": "home_assistant.call_service",
    "arguments": {"domain": "lock", "service": "unlock", "entity_id": ["lock.front_door"]},
    "destructive": True,
}
HTML = {"Accept": "text/html,application/xhtml+xml"}


@dataclass
class Asked:
    """A plan that waits for a decision, and an ingress that takes it."""

    served: Served
    driver: Driver
    approval: Approval

    def link(self, decision: Decision, *, secret: bytes = SECRET, expires_at: datetime | None = None) -> str:
        until = expires_at or self.approval.deadline
        return f"/approvals/{links.sign(secret, self.approval, decision, expires_at=until)}"

    async def open(self, path: str, **rest: Any) -> httpx.Response:
        return await self.served.get(path, token=None, **rest)

    async def tap(self, path: str, **rest: Any) -> httpx.Response:
        return await self.served.post(path, token=None, **rest)

    async def state(self) -> str | None:
        return (await self.served.queue.task(self.approval.task_id)).hop_state

    async def signals(self) -> list[dict[str, Any]]:
        return await self.served.rows("SELECT payload, sent_by FROM tracekit.signals WHERE key = %s", self.approval.key)


@pytest.fixture
async def asked(queue: Queue, tmp_path: Path) -> AsyncIterator[Asked]:
    settings = make_settings(tmp_path, guardian=GuardianSettings.model_validate({"approval_secret": SECRET.decode()}))
    async with httpx.AsyncClient() as http, serving(settings, queue) as served:
        driver = Driver(queue, settings, http)
        await driver.do("unlock the front door", mode="guardian", input={"plan": {"steps": [UNLOCK]}})
        (approval,) = await approvals.pending(queue)
        yield Asked(served, driver, approval)


class Page(HTMLParser):
    """What a browser would make of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.values: list[str] = []
        self.text = ""
        self.loads: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "action", "onclick", "onload", "onerror"):
                self.loads.append(f"{name}={value}")
            if tag == "button" and name == "value":
                self.values.append(str(value))

    def handle_data(self, data: str) -> None:
        self.text += data


async def test_opening_a_link_shows_the_exact_plan_and_changes_nothing(asked: Asked) -> None:
    for _ in range(2):
        response = await asked.open(asked.link("approve"))
        assert response.status_code == 200
        assert "text/html" in response.headers["content-type"]
    page = Page(response.text)
    assert page.tags.count("form") == 3
    assert page.values == ["approve", "reject", "defer"]
    for told in ("unlock the front door", "lock.front_door", "rob", asked.approval.task_id, asked.approval.plan_hash):
        assert told in page.text
    assert page.loads == []
    assert "script" not in page.tags
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert response.headers["referrer-policy"] == "no-referrer"
    assert response.headers["cache-control"] == "no-store"
    assert (await asked.served.http.head(asked.link("approve"))).status_code == 405
    assert await asked.signals() == []
    assert await asked.state() == "parked"


async def test_everything_on_the_page_is_escaped(queue: Queue, tmp_path: Path) -> None:
    settings = make_settings(tmp_path, guardian=GuardianSettings.model_validate({"approval_secret": SECRET.decode()}))
    async with httpx.AsyncClient() as http, serving(settings, queue) as served:
        step: dict[str, Any] = {
            "capability": "note.write",
            "arguments": {"path": "a.md", "text": "</pre><script>alert(2)</script>"},
        }
        plan = {"steps": [{**step, "destructive": True}]}
        # An override of the direction makes one text look like another, and a terminal's escape may do anything.
        step["arguments"]["text"] += "\u202eneddih"
        intent = "<img src=x onerror=alert(1)> & \"quotes' \x1b[31m \u2066right"
        await Driver(queue, settings, http).do(intent, mode="guardian", input={"plan": plan})
        (approval,) = await approvals.pending(queue)
        token = links.sign(SECRET, approval, "approve", expires_at=approval.deadline)
        response = await served.get(f"/approvals/{token}", token=None)
    page = Page(response.text)
    assert "<img" not in response.text
    assert "<script" not in response.text
    assert {"img", "script"}.isdisjoint(page.tags)
    assert page.loads == []
    assert intent.replace("\x1b", "\ufffd").replace("\u2066", "\ufffd") in page.text
    assert not {"\x1b", "\u2066", "\u202e"} & set(response.text)


@pytest.mark.parametrize("decision", approvals.DECISIONS)
async def test_a_tap_decides_once(asked: Asked, decision: Decision) -> None:
    first = await asked.tap(asked.link(decision))
    assert first.status_code == 200
    body = first.json()
    assert (body["decision"], body["by"], body["repeated"]) == (decision, "rob (link)", False)
    (signal,) = await asked.signals()
    assert (signal["payload"]["decision"], signal["sent_by"]) == (decision, "rob (link)")
    assert await asked.state() == "ready"
    # ntfy sends again what it heard no answer of, and people tap twice.
    again = await asked.tap(asked.link(decision))
    assert again.status_code == 200
    assert again.json() == {**body, "repeated": True}
    contrary: Decision = "reject" if decision == "approve" else "approve"
    other = await asked.tap(asked.link(contrary))
    assert other.status_code == 409
    assert other.json()["type"] == "urn:tracekit:problem:conflict"
    assert f"{approvals.PAST[decision]} by rob (link)" in other.json()["detail"]
    assert len(await asked.signals()) == 1


async def test_of_contrary_taps_at_once_one_wins(asked: Asked) -> None:
    links = [asked.link("approve"), asked.link("reject")] * 8
    responses = await asyncio.gather(*(asked.tap(link) for link in links))
    (signal,) = await asked.signals()
    won = signal["payload"]["decision"]
    for link, response in zip(links, responses, strict=True):
        assert response.status_code == (200 if link == asked.link(won) else 409)
    assert sum(response.status_code == 200 and not response.json()["repeated"] for response in responses) == 1


async def test_the_pages_forms_decide_and_the_page_then_says_so(asked: Asked) -> None:
    link = asked.link("approve")
    response = await asked.tap(link, data={"decision": "reject", "reason": "not now"}, headers=HTML)
    assert response.status_code == 200
    assert "rejected" in Page(response.text).text
    (signal,) = await asked.signals()
    assert (signal["payload"]["decision"], signal["payload"]["reason"]) == ("reject", "not now")
    later = await asked.open(link)
    assert "rejected" in Page(later.text).text
    assert "form" not in Page(later.text).tags
    contrary = await asked.tap(link, headers=HTML)
    assert contrary.status_code == 409
    assert "text/html" in contrary.headers["content-type"]


@pytest.mark.parametrize("decision", ["reject", "defer"])
async def test_a_link_to_say_no_cannot_say_yes(asked: Asked, decision: Decision) -> None:
    page = Page((await asked.open(asked.link(decision))).text)
    assert page.values == [decision]
    response = await asked.tap(asked.link(decision), json={"decision": "approve"})
    assert response.status_code == 403
    assert await asked.signals() == []


async def test_links_that_do_not_count(asked: Asked) -> None:
    good = asked.link("approve").removeprefix("/approvals/")
    flipped = good[:-2] + ("A" if good[-2] != "A" else "B") + good[-1]
    forged = [flipped, "nonsense", good + "A", good[:-4], "%00", "a" * 3000, "%F0%9F%94%91", asked.link(
        "approve", secret=b"another-secret-of-somebody").removeprefix("/approvals/")]  # fmt: skip
    for token in forged:
        for response in (await asked.open(f"/approvals/{token}"), await asked.tap(f"/approvals/{token}")):
            assert response.status_code == 403, token
            assert response.json()["type"] == "urn:tracekit:problem:forbidden"
    late = asked.link("approve", expires_at=datetime.now(UTC) - timedelta(seconds=1))
    for response in (await asked.open(late), await asked.tap(late)):
        assert response.status_code == 410
    assert "text/html" in (await asked.open(late, headers=HTML)).headers["content-type"]
    stranger = Approval(
        **{
            **{name: getattr(asked.approval, name) for name in Approval.__slots__},
            "task_id": (task := ids.new_task_id()),
            "key": approvals.approval_key(task, asked.approval.plan_hash, 1),
        }
    )
    unknown = links.sign(SECRET, stranger, "approve", expires_at=asked.approval.deadline)
    assert (await asked.tap(f"/approvals/{unknown}")).status_code == 404
    assert await asked.signals() == []
    assert await asked.state() == "parked"


async def test_after_the_deadline_a_good_link_is_gone(asked: Asked) -> None:
    await asked.driver.let_time_pass(asked.approval.task_id)
    assert (await asked.tap(asked.link("approve"))).status_code == 410
    await asked.served.queue.sweep()
    assert (await asked.tap(asked.link("approve"))).status_code == 410
    assert (await asked.open(asked.link("approve"))).status_code == 410
    assert (await asked.served.queue.task(asked.approval.task_id)).state == "expired"


async def test_a_bad_body_decides_nothing(asked: Asked) -> None:
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    for status, body in (
        (422, {"json": {"decision": "maybe"}}),
        (422, {"json": {"decision": "approve", "by": "rob"}}),
        (422, {"json": {"reason": "x" * 1001}}),
        (422, {"json": []}),
        (422, {"data": {"decision": "maybe"}}),
        (415, {"content": b"approve", "headers": {"Content-Type": "text/plain"}}),
        (400, {"content": b"{", "headers": {"Content-Type": "application/json"}}),
        (400, {"content": b"\xff", "headers": form}),
        (400, {"content": b"a&" * 100, "headers": form}),
        (413, {"content": b"x" * 9000}),
    ):
        assert (await asked.tap(asked.link("approve"), **body)).status_code == status, body
    assert await asked.signals() == []


async def test_an_operator_lists_and_decides_with_a_token(asked: Asked) -> None:
    (listed,) = (await asked.served.get("/v1/approvals")).json()["approvals"]
    assert listed["task_id"] == asked.approval.task_id
    assert listed["plan"] == asked.approval.plan
    path = f"/v1/approvals/{listed['task_id']}"
    body = {"decision": "approve", "plan_hash": listed["plan_hash"], "reason": "it is me"}
    assert (await asked.served.post(path, body, token=HOUSEHOLD)).status_code == 403
    assert (await asked.served.post(path, {**body, "plan_hash": "0" * 64})).status_code == 409
    assert (await asked.served.post(path, {"decision": "approve"})).status_code == 422
    assert (await asked.served.post(path, {**body, "requester": "rob"})).status_code == 422
    assert (await asked.served.post(f"/v1/approvals/{ids.new_task_id()}", body)).status_code == 404
    assert (await asked.served.post("/v1/approvals/%00", body)).status_code == 404
    assert await asked.signals() == []
    decided = await asked.served.post(path, body)
    assert (decided.status_code, decided.json()["by"], decided.json()["repeated"]) == (200, "rob", False)
    assert (await asked.served.post(path, body)).json()["repeated"]
    assert (await asked.served.post(path, {**body, "decision": "reject"})).status_code == 409
    assert (await asked.served.get("/v1/approvals")).json() == {"approvals": []}
    (signal,) = await asked.signals()
    assert signal == {"payload": {**signal["payload"], "decision": "approve", "reason": "it is me"}, "sent_by": "rob"}


async def test_after_a_deferral_the_next_round_has_links_of_its_own(asked: Asked) -> None:
    old = asked.link("approve")
    body = {"decision": "defer", "plan_hash": asked.approval.plan_hash, "defer_for": 60}
    assert (await asked.served.post(f"/v1/approvals/{asked.approval.task_id}", body)).status_code == 200
    await asked.driver.run()
    async with asked.served.queue.connection() as connection:
        await connection.execute("UPDATE tracekit.queue SET due_at = clock_timestamp()")
    await asked.driver.run()
    (second,) = await approvals.pending(asked.served.queue)
    assert second.round == 2
    assert (await asked.tap(old)).status_code == 409
    new = links.sign(SECRET, second, "approve", expires_at=second.deadline)
    assert (await asked.tap(f"/approvals/{new}")).json()["decision"] == "approve"


async def test_the_token_of_a_link_is_not_in_the_record(asked: Asked) -> None:
    link = asked.link("reject")
    await asked.tap(link)
    await asked.tap(asked.link("approve"))
    (span,) = await asked.served.refusals()
    assert span["name"] == "POST /approvals/{token}"
    assert span["attributes"]["error.type"] == "conflict"

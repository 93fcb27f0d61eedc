"""The overview in a browser: the operator's alone, changing nothing, with the numbers of `tracekit top`."""

from __future__ import annotations

import base64
import re
from datetime import timedelta
from pathlib import Path

from tests.cost.budgeting import let_hold, limit
from tests.cost.driving import book, ledger_of, usage
from tests.ingress.conftest import HOUSEHOLD, OPERATOR, Served, make_settings, serving
from tests.ingress.test_approvals import HTML, Page
from tests.queue.driving import accept, settle, take
from tests.support.postgres import ThrowawayServer
from tracekit.envelope import DataTier
from tracekit.postgres import migrate, open_pool
from tracekit.queue import GiveUp, Park, Queue
from tracekit.workers.overview import Overviews


def basic(password: str, name: str = "anybody") -> dict[str, str]:
    return {**HTML, "Authorization": f"Basic {base64.b64encode(f'{name}:{password}'.encode()).decode()}"}


async def test_it_has_the_numbers_of_top(served: Served) -> None:
    queue = served.queue
    for _ in range(3):
        await accept(queue, "planner")
    await accept(queue, "router", intent="a dead thing")
    await settle(queue, await take(queue, "router"), GiveUp("no lamp"))
    await accept(queue, "doorman", intent="open the front door")
    await settle(queue, await take(queue, "doorman"), Park("approval", "k", timedelta(hours=3)))
    await let_hold(queue, limit("total", "day", "usd"), 1)
    await accept(queue, "executor", intent="turn on the light")
    running = await take(queue, "executor", worker="hearth-1")
    await book(ledger_of(queue), running, usage(), usage(model="nobody-knows"))
    seen = await Overviews(queue, time_zone="UTC", at_most=timedelta(0)).look()
    await served.look()
    response = await served.get("/")
    assert response.status_code == 200
    page = Page(response.text)
    for one in seen.modes:
        told = [one.ready, one.scheduled, one.running, one.parked, r"(?:-|\d+s)", one.workers]
        told += [round(one.attempts_per_minute), round(one.failures_per_minute)]
        cells = "".join(rf'<td class="number">{cell}</td>' for cell in told)
        assert re.search(rf"<tr><td>{one.mode}</td>{cells}</tr>", response.text), one
    for text in (
        "No worker serves planner.", "1: 1 given_up", "1 pending, 0 urgent", "a dead thing", "open the front door",
        running.task_id, "turn on the light", "hearth-1", "$0.00033, 60 tokens in 2 calls, 1 without a price",
        "total/day/usd", "$0.9997", seen.spans,
    ):  # fmt: skip
        assert text in page.text
    assert "script" not in page.tags
    assert page.loads == []
    assert "default-src 'none'" in response.headers["content-security-policy"]
    assert response.headers["cache-control"] == "no-store"
    assert '<meta http-equiv="refresh" content="10">' in response.text


async def test_p1_a_browser_is_asked_for_a_token_as_its_password(served: Served) -> None:
    asked = await served.get("/", token=None, headers=HTML)
    assert asked.status_code == 401
    assert asked.headers["www-authenticate"].startswith("Basic realm=")
    assert "text/html" in asked.headers["content-type"]
    assert (await served.get("/", token=None, headers=basic(OPERATOR))).status_code == 200
    for wrong in (basic("no-token"), {**HTML, "Authorization": "Basic !!"}, {**HTML, "Authorization": "Basic"}):
        assert (await served.get("/", token=None, headers=wrong)).status_code == 401


async def test_p1_a_password_is_no_credential_anywhere_else(served: Served) -> None:
    """What a browser keeps and sends by itself must not let another site's page act."""
    body = {"intent": "turn on the light", "idempotency_key": "k"}
    for path, sent in (("/v1/tasks", body), ("/v1/approvals/01M854KQ6W3V9D2R8S5T7X1Y0Z", {"decision": "approve"})):
        response = await served.post(path, sent, token=None, headers=basic(OPERATOR))
        assert response.status_code == 401
        assert response.headers["www-authenticate"].startswith("Bearer")
    assert await served.tasks() == []


async def test_p7_the_household_sees_no_number(served: Served) -> None:
    await accept(served.queue, "planner", intent="something of the operator")
    for headers in (basic(HOUSEHOLD), {**HTML, "Authorization": f"Bearer {HOUSEHOLD}"}):
        response = await served.get("/", token=None, headers=headers)
        assert response.status_code == 403
        text = Page(response.text).text
        assert "only an operator may do that" in text
        assert "planner" not in text
        assert "something" not in text


async def test_p8_what_tasks_say_is_escaped_and_what_is_restricted_is_hidden(served: Served) -> None:
    queue = served.queue
    await accept(queue, "executor", intent="</td><script>alert(1)</script>‮")
    await take(queue, "executor", worker="<b>w</b>")
    await accept(queue, "router", intent="the secret thing", data_tier=DataTier.RESTRICTED)
    await take(queue, "router")
    text = (await served.get("/")).text
    assert "<script" not in text
    assert "<b>" not in text
    assert "‮" not in text
    assert "secret" not in text
    assert "(restricted)" in text


async def test_it_only_answers_and_changes_nothing(served: Served) -> None:
    assert (await served.post("/", {})).status_code == 405
    before = await served.rows("SELECT (SELECT count(*) FROM tracekit.record), (SELECT count(*) FROM tracekit.outbox)")
    await served.get("/")
    after = await served.rows("SELECT (SELECT count(*) FROM tracekit.record), (SELECT count(*) FROM tracekit.outbox)")
    assert before == after


async def test_q10_while_the_database_is_away_the_page_says_so(tmp_path: Path) -> None:
    with ThrowawayServer() as server:
        await migrate(server.dsn)
        pool = await open_pool(server.dsn, min_size=1, max_size=4, name="test", autocommit=True)
        try:
            patience = timedelta(seconds=1)
            async with serving(make_settings(tmp_path), Queue(pool), patience=patience) as served:
                assert (await served.get("/", headers=HTML)).status_code == 200
                server.server.stop(mode="immediate")
                while (response := await served.get("/", headers=HTML)).status_code == 200:
                    pass
                assert response.status_code == 503
                assert "The database is away" in Page(response.text).text
                with server.server.acquire():
                    while (await served.get("/", headers=HTML)).status_code == 503:
                        pass
                    assert (await served.get("/", headers=HTML)).status_code == 200
        finally:
            await pool.close()

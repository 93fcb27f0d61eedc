"""The metrics: what a scrape shows is the catalogue, no more and no less (D6), and a real Prometheus reads it."""

from __future__ import annotations

import asyncio
import re
import time
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import httpx
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from tests.ingress.conftest import OPERATOR, Served, make_settings, serving
from tests.queue.driving import AT_ONCE, accept, settle, submission, take
from tests.support.processes import PATIENCE, patience
from tests.support.programs import require_program
from tests.support.prometheus import Prometheus
from tests.tracing.writing import RECEIVED, write_many
from tracekit import instruments, metrics
from tracekit.envelope import Priority
from tracekit.ingress.health import is_loopback
from tracekit.ingress.problems import Reason
from tracekit.instruments import DatabaseGauges, Reading, exposition
from tracekit.metrics import CATALOGUE
from tracekit.queue import Done, GiveUp, HandOff, Notice, Park, Queue
from tracekit.queue.enqueue import enqueue
from tracekit.workers.depths import DepthReader

OPENMETRICS = "application/openmetrics-text; version=1.0.0"


def families(accept: str, collectors: Any = (instruments.REGISTRY, instruments.DATABASE)) -> dict[str, Any]:
    body, content_type = exposition(accept, collectors)
    parse = parse_openmetrics if content_type.startswith("application/openmetrics-text") else parse_text
    found = list(parse(body.decode()))
    assert len({family.name for family in found}) == len(found), "no family twice"
    return {family.name + ("_total" if family.type == "counter" else ""): family for family in found}


@pytest.mark.parametrize("accept", [OPENMETRICS, "text/plain; version=0.0.4", ""])
def test_d6_what_is_emitted_is_the_catalogue(accept: str) -> None:
    instruments.ATTEMPTS.labels("router", "done").inc(exemplar=instruments.exemplar("0" * 31 + "1", "0" * 15 + "1"))
    instruments.HOP_DURATION.labels("router", "done").observe(0.2)
    found = families(accept)
    assert set(found) == {metric.name for metric in CATALOGUE}
    for metric in CATALOGUE:
        family = found[metric.name]
        assert (family.type, family.documentation) == (metric.type, metric.help)
        assert not [sample.name for sample in family.samples if sample.name.endswith("_created")]
        for sample in family.samples:
            assert set(sample.labels) - {"le"} == set(metric.labels)


def test_every_metric_of_the_process_has_its_instrument() -> None:
    for name, metric in vars(metrics).items():
        if isinstance(metric, metrics.Metric) and metric.source == "process" and metric is not metrics.DATABASE_UP:
            assert hasattr(instruments, name), f"instruments has no {name}"


def test_names_follow_the_conventions() -> None:
    for metric in CATALOGUE:
        assert re.fullmatch(r"tracekit_[a-z_]+", metric.name)
        assert metric.name.endswith("_total") == (metric.type == "counter")
        if metric.unit:
            assert metric.name.endswith(f"_{metric.unit}")
        assert metric.help.endswith(".")


def test_exemplars_are_in_openmetrics_only() -> None:
    trace_id, span_id = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    instruments.HOP_QUEUE_WAIT.labels("only-here").observe(0.3, instruments.exemplar(trace_id, span_id))
    buckets = families(OPENMETRICS)[metrics.HOP_QUEUE_WAIT.name].samples
    mine = [sample for sample in buckets if sample.labels.get("mode") == "only-here"]
    (exemplar,) = [sample.exemplar for sample in mine if sample.exemplar]
    assert exemplar.labels == {"trace_id": trace_id, "span_id": span_id}
    assert trace_id not in exposition("")[0].decode()


def test_the_listener_is_in_one_state() -> None:
    for state in (*instruments.LISTENER_STATES, "polling"):
        instruments.listener_is(state)
        samples = families("")[metrics.LISTENER_STATE.name].samples
        assert {sample.labels["state"]: sample.value for sample in samples} == {
            known: float(known == state) for known in instruments.LISTENER_STATES
        }


def test_gauges_of_a_database_that_is_away_are_absent() -> None:
    gauges = DatabaseGauges()
    for known in (False, True, False):
        if known:
            gauges.show(Reading([(metrics.HOPS.name, ["router", "ready", "normal"], 3.0)]))
        else:
            gauges.away()
        found = families("", [gauges])
        assert found[metrics.DATABASE_UP.name].samples[0].value == float(known)
        assert len(found[metrics.HOPS.name].samples) == int(known)
        assert gauges.depth == (3 if known else None)


async def values(queue: Queue) -> dict[tuple[str, ...], float]:
    gauges = DatabaseGauges()
    await DepthReader(queue, gauges).look()
    return {
        (sample.name.removeprefix("tracekit_"), *sample.labels.values()): sample.value
        for family in gauges.collect()
        for sample in family.samples
    }


async def test_an_empty_database_shows_zeros(queue: Queue) -> None:
    found = await values(queue)
    tables = {key: value for key, value in found.items() if key[0].startswith("table_")}
    assert {name for _, name in tables} >= {"queue", "record", "envelopes", "usage"}
    assert not [name for _, name in tables if name.startswith("record_2")], "a partition is its table's"
    assert tables["table_bytes", "record"] > 0
    assert {key: value for key, value in found.items() if key not in tables} == {
        ("database_up",): 1,
        ("dead_letter_oldest_age_seconds",): 0,
        ("approvals_pending", "true"): 0,
        ("approvals_pending", "false"): 0,
        ("spans_unshipped",): 0,
        ("span_oldest_unshipped_age_seconds",): 0,
        ("notifications_undelivered",): 0,
        ("notification_oldest_undelivered_age_seconds",): 0,
    }


async def test_the_gauges_show_what_is_in_the_database(queue: Queue) -> None:
    for _ in range(3):
        await accept(queue)
    await accept(queue, "planner")
    await take(queue, "planner")
    await accept(queue, "executor", retry_policy=AT_ONCE)
    await settle(queue, await take(queue, "executor"), GiveUp("it cannot be done"))
    for number, priority in enumerate((Priority.URGENT, Priority.NORMAL, Priority.LOW)):
        await accept(queue, "guardian", priority=priority)
        hop = await take(queue, "guardian")
        notice = Notice("approval", "a plan waits", "…")
        wait = Park(
            "approval", f"approval:{number}", timedelta(minutes=10 * (number + 1)), on_deadline="expire", notice=notice
        )
        await settle(queue, hop, wait)
    await queue.heartbeat("w1", ["router", "planner"], "listening", {}, timedelta(minutes=1))
    await queue.heartbeat("w2", ["router"], "listening", {}, timedelta(minutes=1))
    async with queue.connection() as connection:
        await connection.execute(
            "UPDATE tracekit.queue SET ready_at = ready_at - interval '90 s' WHERE mode = 'router' AND task_id ="
            " (SELECT min(task_id) FROM tracekit.queue WHERE mode = 'router')"
        )
        await connection.execute("INSERT INTO tracekit.span_shipping (destination) VALUES ('collector')")
        cursor = await connection.execute(
            "SELECT count(*), extract(epoch FROM clock_timestamp() - (SELECT end_time FROM tracekit.spans"
            " ORDER BY xid, seq LIMIT 1)) FROM tracekit.spans"
        )
        spans, oldest = await cursor.fetchone() or (0, 0)
    found = await values(queue)
    assert found["hops", "router", "ready", "normal"] == 3
    assert found["hops", "planner", "running", "normal"] == 1
    assert {key[-1]: value for key, value in found.items() if key[:3] == ("hops", "guardian", "parked")} == {
        "urgent": 1,
        "normal": 2,  # the dead task's review, which waits in its place
    }
    assert 90 <= found["hop_oldest_age_seconds", "router", "ready", "normal"] < 150
    assert 0 < found["hop_oldest_age_seconds", "planner", "running", "normal"] < 60
    assert found["dead_letters", "executor", "given_up"] == 1
    assert 0 < found["dead_letter_oldest_age_seconds",] < 60
    assert (found["approvals_pending", "true"], found["approvals_pending", "false"]) == (1, 2)
    assert 540 < found["approval_next_deadline_seconds",] <= 600
    assert found["spans_unshipped",] == spans > 5
    assert found["span_oldest_unshipped_age_seconds",] == pytest.approx(float(oldest), abs=5)
    assert found["notifications_undelivered",] >= 3
    assert 0 < found["notification_oldest_undelivered_age_seconds",] < 60
    assert (found["workers", "router"], found["workers", "planner"]) == (2, 1)
    async with queue.connection() as connection:
        await connection.execute("UPDATE tracekit.outbox SET due_at = NULL")  # given up
    found = await values(queue)
    assert found["notifications_undelivered",] >= 3
    assert found["notification_oldest_undelivered_age_seconds",] == 0
    async with queue.connection() as connection:
        await connection.execute("UPDATE tracekit.span_shipping SET (xid, seq) = (SELECT max(xid), max(seq) FROM "
                                 "tracekit.spans)")  # fmt: skip
        await connection.execute("UPDATE tracekit.workers SET seen_at = seen_at - interval '3 min' WHERE id = 'w2'")
        await connection.execute("UPDATE tracekit.outbox SET delivered_at = clock_timestamp()")
    found = await values(queue)
    assert (found["spans_unshipped",], found["span_oldest_unshipped_age_seconds",]) == (0, 0)
    assert found["notifications_undelivered",] == 0
    assert found["workers", "router"] == 1


async def test_d5_what_goes_on_at_its_deadline_does_not_expire_then(queue: Queue) -> None:
    """As an approval of money does: what expires it is the task's ttl, which binds every task that waits."""
    gauge = ("approval_next_deadline_seconds",)

    async def ask(key: str, minutes: int, on_deadline: Literal["resume", "expire"], ttl: int) -> float | None:
        await accept(queue, "guardian", ttl=timedelta(minutes=ttl))
        wait = Park("approval", key, timedelta(minutes=minutes), on_deadline=on_deadline)
        await settle(queue, await take(queue, "guardian"), wait)
        return (await values(queue)).get(gauge)

    assert await ask("money", 1, "resume", 90) is None
    assert (await values(queue))["approvals_pending", "false"] == 1
    for minutes, asked in (
        (60, await ask("a", 60, "expire", 90)),
        (40, await ask("b", 50, "expire", 40)),
        (30, await ask("c", 50, "resume", 30)),
    ):
        assert asked == pytest.approx(minutes * 60, abs=50)


async def test_the_gauge_counts_the_spans_that_a_line_of_the_record_is(queue: Queue) -> None:
    """Without making them: of each kind of line as many as the view makes of it, and kept ones."""
    hour = timedelta(hours=1)
    await queue.enqueue([submission(received=RECEIVED), submission("planner")])
    await settle(queue, await take(queue), HandOff("guardian"))
    for key, within in (("never", timedelta(0)), ("approval:1", hour)):
        await settle(queue, await take(queue, "guardian"), Park("approval", key, within))
        await queue.sweep()
    await queue.signal("approval:1", "yes", dedupe_key="decision", sent_by="rob")
    await settle(queue, await take(queue, "guardian"), GiveUp("it cannot be done"))
    dead = await take(queue, "planner")
    await settle(queue, dead, GiveUp("nor this"))
    [entry] = [entry for entry in await queue.dead_letters() if entry.mode == "guardian"]
    await queue.resolve_dead(entry.task_id, "redriven", "rob")
    await queue.resolve_dead(dead.task_id, "abandoned", "rob")
    await settle(queue, await take(queue, "guardian"), Done())
    async with queue.connection() as connection:
        await enqueue(connection, [submission("planner", ttl=hour)])
        await connection.execute("UPDATE tracekit.queue SET expires_at = statement_timestamp() WHERE mode = 'planner'")
        await queue.sweep()
        await write_many(connection, 2)
        await connection.execute("INSERT INTO tracekit.span_shipping (destination) VALUES ('collector')")
        cursor = await connection.execute("SELECT xid::text::bigint, seq, count(*) FROM tracekit.spans GROUP BY 1, 2")
        lines = sorted(await cursor.fetchall())
        assert {spans for *_, spans in lines} == {1, 2, 3}
        for number, (xid, seq, _) in enumerate(lines):
            await connection.execute("UPDATE tracekit.span_shipping SET (xid, seq) = (%s::text::xid8, %s)", [xid, seq])
            assert (await values(queue))["spans_unshipped",] == sum(spans for *_, spans in lines[number + 1 :])


async def test_a_young_reading_is_not_renewed(queue: Queue) -> None:
    gauges = DatabaseGauges()
    readers = [DepthReader(queue, gauges) for _ in range(2)]
    await readers[0].read()
    first = gauges.reading
    await readers[1].read()
    assert gauges.reading is first
    await DepthReader(queue, gauges, at_most=timedelta(0)).look()
    assert gauges.reading is not first


# --- over HTTP --------------------------------------------------------------------------------------------------------


@pytest.fixture
async def served(queue: Queue, tmp_path: Path) -> Any:
    async with serving(make_settings(tmp_path), queue, listener=lambda: "polling") as running:
        yield running


async def test_metrics_are_served_in_both_formats(served: Served) -> None:
    await served.post("/v1/tasks", {"intent": "a", "idempotency_key": "a"})
    await served.look()
    text = await served.get("/metrics", token=None)
    assert text.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert {family.name for family in parse_text(text.text)} >= {"tracekit_hops", "tracekit_ingress_tasks"}
    openmetrics = await served.get("/metrics", token=None, headers={"Accept": OPENMETRICS})
    assert openmetrics.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    assert openmetrics.text.endswith("# EOF\n")
    assert 'tracekit_hops{mode="router",priority="normal",state="ready"} 1.0' in openmetrics.text
    accepted = [line for line in openmetrics.text.splitlines() if line.startswith("tracekit_ingress_tasks_total{")]
    assert any("# {" in line and "trace_id=" in line for line in accepted)
    assert (await served.http.head("/metrics")).status_code == 200


async def test_d6_refusals_are_shown_before_the_first(served: Served) -> None:
    text = (await served.get("/metrics", token=None)).text
    for surface in ("unknown", *(token.surface for token in served.settings.tokens)):
        for reason in Reason:
            assert f'tracekit_ingress_refusals_total{{reason="{reason.label}",surface="{surface}"}}' in text
        assert (surface == "unknown") or f'{{duplicate="true",surface="{surface}"}}' in text


async def test_health_is_told_without_a_token(served: Served) -> None:
    assert (await served.get("/healthz", token=None)).json() == {"status": "alive"}
    assert (await served.get("/readyz", token=None)).json() == {
        "status": "ready",
        "database": "up",
        "schema": "fits",
        "listener": "polling",
    }


async def test_a_schema_that_does_not_fit_is_not_ready(served: Served) -> None:
    async with served.queue.connection() as connection:
        await connection.execute("DELETE FROM tracekit.schema_migrations")
    response = await served.get("/readyz", token=None)
    assert response.status_code == 503
    assert response.json()["hint"] == "Run: tracekit db migrate"
    # A probe is no refusal: it must not fill the record of them.
    assert await served.refusals() == []


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("127.8.9.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False)],
)
async def test_away_from_loopback_metrics_need_a_token(queue: Queue, tmp_path: Path, host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback
    settings = make_settings(tmp_path)
    async with serving(settings, queue) as served:
        object.__setattr__(settings, "ingress", settings.ingress.model_copy(update={"host": host}))
        assert (await served.get("/metrics", token=None)).status_code == (200 if loopback else 401)
        assert (await served.get("/metrics")).status_code == 200


# --- the real thing ---------------------------------------------------------------------------------------------------


async def test_a_real_prometheus_scrapes_it(served: Served, tmp_path: Path) -> None:
    require_program("prometheus")
    accepted = (await served.post("/v1/tasks", {"intent": "a", "idempotency_key": "a"})).json()
    await served.look()
    targets = {"tracekit": [f"127.0.0.1:{served.port}"]}
    with Prometheus.scraping(targets, tmp_path / "prometheus", interval=0.5, token=OPERATOR) as prometheus:
        async with httpx.AsyncClient(base_url=prometheus.url, timeout=PATIENCE) as http:

            async def query(path: str, **params: str) -> Any:
                response = await http.get(f"/api/v1/{path}", params=params)
                return response.json().get("data") if response.status_code == 200 else None

            async with patience():
                while True:
                    up = await query("query", query="up{job='tracekit'} == 1")
                    if up and up["result"]:
                        break
                    await asyncio.sleep(0.05)
            (hops,) = (await query("query", query="tracekit_hops{state='ready'}"))["result"]
            assert (hops["metric"]["mode"], hops["value"][1]) == ("router", "1")
            (database,) = (await query("query", query="tracekit_database_up"))["result"]
            assert database["value"][1] == "1"
            known = await query("metadata")
            # Prometheus 2 keys the metadata of an OpenMetrics counter by its family's name, without `_total`.
            names = {metric.name.removesuffix("_total"): metric for metric in CATALOGUE}
            assert {name for name in known if name.startswith("tracekit_")} == set(names)
            for name, metric in names.items():
                assert (known[name][0]["type"], known[name][0]["help"]) == (metric.type, metric.help)
            series = await query("label/__name__/values")
            of_catalogue = tuple(metric.name for metric in CATALOGUE)
            assert [name for name in series if name.startswith("tracekit_") and not name.startswith(of_catalogue)] == []
            exemplars = await query(
                "query_exemplars",
                query="tracekit_ingress_tasks_total",
                start=str(time.time() - 60),
                end=str(time.time() + 60),
            )
            traces = {exemplar["labels"]["trace_id"] for row in exemplars for exemplar in row["exemplars"]}
            assert accepted["trace_id"] in traces

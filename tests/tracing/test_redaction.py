"""T10: nothing restricted in spans, and no credentials in any."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from contextlib import suppress
from urllib.parse import quote

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import trace

from tests.support.otlp import OtlpReceiver
from tests.tracing.hops import hop
from tracekit.envelope import DataTier
from tracekit.postgres import Pool
from tracekit.tracing.hop import hop_scope
from tracekit.tracing.instrument import instrument_handlers
from tracekit.tracing.otlp import Collector
from tracekit.tracing.redaction import redact_span
from tracekit.tracing.sdk import TracingHandle, configure_tracing
from tracekit.tracing.secrets import REDACTED, is_secret_name, redact_text, redact_value, register_secret

PRIVATE = "renees-diagnosis"
PASSWORD = "hunter2hunter2"


async def live_through(handle: TracingHandle, receiver: OtlpReceiver, pool: Pool, tier: DataTier) -> None:
    """A handler that puts what the task is about, and credentials, wherever a span has room."""
    instruments = instrument_handlers(handle.provider)
    tracer = handle.provider.get_tracer("handler")
    url = f"{receiver.endpoint}/wait?spans=0&requests=0&timeout=0&about={PRIVATE}&access_token={PASSWORD}"
    with hop_scope(hop(data_tier=tier)):
        with suppress(RuntimeError), tracer.start_as_current_span(f"search {PRIVATE}") as span:
            span.set_attributes(
                {
                    "question": PRIVATE,
                    "gen_ai.input.messages": PRIVATE,
                    "gen_ai.request.model": "claude",
                    "gen_ai.usage.input_tokens": 12,
                    "dsn": f"postgresql://renee:{PASSWORD}@db/house",
                    "http.request.header.authorization": [f"Bearer {PASSWORD}"],
                    "argv": f"psql password={PASSWORD}",
                }
            )
            span.add_event(f"found {PRIVATE}", {"answer": PRIVATE})
            span.add_link(trace.SpanContext(1, 2, is_remote=True), {"why": PRIVATE})
            raise RuntimeError(f"cannot find {PRIVATE} at https://renee:{PASSWORD}@house")
        async with instruments.client(httpx.AsyncClient()) as client:
            await client.get(url)
        async with pool.connection() as connection:
            instruments.connection(connection)
            await connection.execute(f"SELECT '{PRIVATE}', 'password={PASSWORD}'")
    await asyncio.to_thread(handle.shutdown)


async def test_t10_a_restricted_task_leaves_no_free_text_in_spans(
    pool: Pool, receiver: OtlpReceiver, collector: Collector
) -> None:
    await live_through(configure_tracing(make_global=False), receiver, pool, DataTier.RESTRICTED)
    everything = (receiver.directory / "spans.jsonl").read_text()
    assert PRIVATE not in everything
    assert PASSWORD not in everything

    handler, request, statement = receiver.spans()
    common = {name: handler["attributes"][name] for name in handler["attributes"] if name.startswith("tracekit.")}
    assert common["tracekit.data_tier"] == "restricted"
    assert handler["attributes"] == {**common, "gen_ai.request.model": "claude", "gen_ai.usage.input_tokens": 12}
    assert handler["name"] == "handler"
    assert handler["status"] == {"code": 2, "message": ""}
    assert [(event["name"], set(event["attributes"])) for event in handler["events"]] == [
        ("exception", {"exception.type", "exception.escaped"})
    ]
    assert request["name"] == "GET"
    assert request["attributes"]["http.response.status_code"] == 200
    assert request["attributes"]["server.address"] == "127.0.0.1"
    assert statement["name"] == "SELECT"
    assert "db.query.text" not in statement["attributes"]


async def test_t10_no_tier_leaves_credentials_in_spans(
    pool: Pool, receiver: OtlpReceiver, collector: Collector
) -> None:
    await live_through(configure_tracing(make_global=False), receiver, pool, DataTier.PUBLIC)
    everything = (receiver.directory / "spans.jsonl").read_text()
    assert PASSWORD not in everything

    handler, request, statement = receiver.spans()
    assert handler["name"] == f"search {PRIVATE}"
    assert handler["attributes"]["question"] == PRIVATE
    assert handler["attributes"]["dsn"] == f"postgresql://{REDACTED}@db/house"
    assert handler["attributes"]["http.request.header.authorization"] == REDACTED
    assert handler["status"]["message"] == f"RuntimeError: cannot find {PRIVATE} at https://{REDACTED}@house"
    assert f"about={PRIVATE}&access_token={REDACTED}" in request["attributes"]["url.full"]
    assert PRIVATE in statement["attributes"]["db.query.text"]


def test_t10_a_span_that_lost_its_tier_counts_as_restricted() -> None:
    """The SDK drops the oldest attributes of a span with too many; the tier is among the oldest."""
    tracer = configure_tracing(make_global=False).provider.get_tracer("handler")
    with hop_scope(hop(data_tier=DataTier.RESTRICTED)), tracer.start_as_current_span(PRIVATE) as span:
        span.set_attributes({f"note.{number}": PRIVATE for number in range(200)})
    shown = redact_span(span._readable_span()).to_json()  # type: ignore[attr-defined]
    assert PRIVATE not in shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://rob:pw@host/path", f"https://{REDACTED}@host/path"),
        ("GET https://h/?a=1&token=abc&b=2", f"GET https://h/?a=1&token={REDACTED}&b=2"),
        ("https://h/cb#access_token=abc&x=1", f"https://h/cb#access_token={REDACTED}&x=1"),
        ("https://h/?api_key=abc", f"https://h/?api_key={REDACTED}"),
        ("https://h/?key=abc&monkeys=2", f"https://h/?key={REDACTED}&monkeys=2"),
        ("host=db user=rob password=abc dbname=x", f"host=db user=rob password={REDACTED} dbname=x"),
        ("password = 'a b\\'c' dbname=x", f"password = {REDACTED} dbname=x"),
        ('{"password": "a \\" b", "n": 1}', f'{{"password": {REDACTED}, "n": 1}}'),
        ("Authorization: Bearer abc.def", f"Authorization: {REDACTED}"),
        ("authorization: Basic cm9iOnB3", f"authorization: {REDACTED}"),
        ("sent with Bearer abcdefghij", f"sent with Bearer {REDACTED}"),
        ("PGPASSWORD=abc psql", f"PGPASSWORD={REDACTED} psql"),
    ],
)
def test_t10_credentials_in_text(text: str, shown: str) -> None:
    assert redact_text(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "turn on the kitchen light",
        "https://host/path?page=2",
        "mail rob@example.org",
        "input_tokens=5, output_tokens: 6",
        "basic understanding of tokens",
        "postgresql://host:5432/house",
    ],
)
def test_t10_other_text_stays(text: str) -> None:
    assert redact_text(text) == text


@pytest.mark.parametrize(
    "name",
    [
        "password",
        "DB_PASSWORD",
        "dbPassword",
        "authorization",
        "http.request.header.authorization",
        "X-Api-Key",
        "apiKey",
        "access_token",
        "accessToken",
        "token",
        "set-cookie",
        "cookies",
        "client_secret",
        "private_key",
        "signing-key",
    ],
)
def test_t10_names_of_secrets(name: str) -> None:
    assert is_secret_name(name)


@pytest.mark.parametrize(
    "name", ["input_tokens", "gen_ai.usage.input_tokens", "key", "author", "mode", "tracekit.task.id", "token.type", ""]
)
def test_t10_names_of_no_secrets(name: str) -> None:
    assert not is_secret_name(name)


def test_t10_values_are_redacted_inside_structures() -> None:
    found = redact_value("call", {"headers": [{"Authorization": "abc"}], "pin": 7, "token": 42, "password": 1234})
    assert found == {"headers": [{"Authorization": REDACTED}], "pin": 7, "token": 42, "password": REDACTED}


@given(st.text(min_size=6, max_size=40), st.text(max_size=20), st.text(max_size=20))
def test_t10_a_registered_secret_is_found_anywhere(secret: str, before: str, after: str) -> None:
    register_secret(secret)
    encodable = secret.encode(errors="ignore").decode() == secret
    assert secret not in redact_text(before + secret + after).replace(REDACTED, "")
    if encodable and len(quote(secret, safe="")) > len(secret):
        assert quote(secret, safe="") not in redact_text(before + quote(secret, safe="") + after).replace(REDACTED, "")


def test_t10_a_short_secret_is_found_only_where_it_is_the_whole_text() -> None:
    program = (
        "from tracekit.tracing.secrets import redact_text, register_secret\n"
        "register_secret('1234')\n"
        "register_secret('')\n"
        "print(redact_text('1234'), redact_text('at 12345'), redact_text(''))"
    )
    seen = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    assert seen == f"{REDACTED} at 12345 \n"


@given(st.text())
def test_t10_redacting_never_fails_and_is_done_once(text: str) -> None:
    once = redact_text(text)
    assert redact_text(once) == once


def test_t10_redacting_long_text_takes_linear_time() -> None:
    """A log line may hold anything; none may stop the process."""
    for piece in ("a", "://", "?a", "://a@", "password", "token=", "Bearer ", "authorization:", "'\\'", "&key"):
        redact_text(piece * (400_000 // len(piece)))

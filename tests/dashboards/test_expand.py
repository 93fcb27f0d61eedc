"""Variables and macros, replaced as Grafana's documentation says."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from tracekit.dashboards import expand
from tracekit.dashboards.expand import ExpansionError, Scope, Values

NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)
SCOPE = Scope(NOON - timedelta(hours=1), NOON).having(
    mode=Values(["router", "up.stream"]),
    one=Values(["a-b.c"], texts=["The A"]),
    all=Values(raw=".*"),
    name=Values(["O'Neill"]),
)


@pytest.mark.parametrize(
    ("query", "expanded"),
    [
        ("mode ~ $$^(${mode:regex})\\Z$$", "mode ~ $$^((router|up\\.stream))\\Z$$"),
        ("mode ~ $$^(${all:regex})\\Z$$", "mode ~ $$^(.*)\\Z$$"),
        ("x IN (${name:sqlstring})", "x IN ('O''Neill')"),
        ("x IN (${mode:sqlstring})", "x IN ('router','up.stream')"),
        ("'${one:text}'", "'The A'"),
        ("$__timeFilter(at)", "at BETWEEN '2026-11-24T11:00:00+00:00' AND '2026-11-24T12:00:00+00:00'"),
        ("$__timeFrom() $__timeTo()", "'2026-11-24T11:00:00+00:00' '2026-11-24T12:00:00+00:00'"),
        ("AT TIME ZONE '${__timezone}'", "AT TIME ZONE 'UTC'"),
    ],
)
def test_sql(query: str, expanded: str) -> None:
    assert expand.sql(query, SCOPE) == expanded


@pytest.mark.parametrize(
    ("query", "expanded"),
    [
        ('x{mode=~"$mode"}', 'x{mode=~"(router|up\\\\.stream)"}'),
        ('x{mode=~"${one}"}', 'x{mode=~"a-b\\\\.c"}'),
        ('x{mode=~"$all"}', 'x{mode=~".*"}'),
        ("rate(x[$__rate_interval])", "rate(x[60000ms])"),
        ("x[$__range] x[$__interval]", "x[3600000ms] x[30000ms]"),
    ],
)
def test_promql(query: str, expanded: str) -> None:
    assert expand.promql(query, SCOPE) == expanded


def test_the_rate_interval_is_four_scrapes_or_a_point_and_a_scrape() -> None:
    assert Scope(NOON - timedelta(hours=1), NOON).rate_interval == 60
    assert Scope(NOON - timedelta(days=10), NOON).rate_interval == 7200 + 15
    assert Scope(NOON - timedelta(minutes=1), NOON, scrape=0.5).rate_interval == 2


def test_a_trace_is_its_id() -> None:
    assert expand.text("${one}", SCOPE) == "a-b.c"


@pytest.mark.parametrize(
    "query",
    [
        "${unknown:regex}",
        "x IN ($mode)",  # what it is quoted like depends on how many there are
        "${mode:csv}",
        "$__timeGroup(at, '5m')",
    ],
)
def test_what_is_not_known_is_not_guessed(query: str) -> None:
    with pytest.raises(ExpansionError):
        expand.sql(query, SCOPE)

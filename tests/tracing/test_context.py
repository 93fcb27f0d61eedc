"""T1: one trace across every border. W3C Trace Context, section 3 and 4."""

from __future__ import annotations

import subprocess
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import baggage, context, trace
from opentelemetry.propagate import extract
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

from tests.tracing.hops import hop
from tracekit.tracing.context import TraceContext, parse_traceparent
from tracekit.tracing.hop import current_hop, current_trace_context, hop_scope

trace_ids = st.integers(1, 2**128 - 1).map(lambda number: f"{number:032x}")
span_ids = st.integers(1, 2**64 - 1).map(lambda number: f"{number:016x}")
flags = st.integers(0, 255).map(lambda number: f"{number:02x}")


@given(trace_ids, span_ids, flags)
def test_t1_a_valid_traceparent_is_continued(trace_id: str, span_id: str, flags: str) -> None:
    parsed = parse_traceparent(f"00-{trace_id}-{span_id}-{flags}")
    assert parsed == TraceContext(trace_id, span_id)
    # Sampled, whatever the caller's flags were (T9).
    assert parsed.traceparent == f"00-{trace_id}-{span_id}-01"


@given(trace_ids, span_ids, st.integers(1, 254), st.text("0123456789abcdef-", max_size=20))
def test_t1_a_later_version_is_read_as_far_as_it_is_known(trace_id: str, span_id: str, version: int, more: str) -> None:
    later = f"{version:02x}-{trace_id}-{span_id}-01"
    assert parse_traceparent(later) == TraceContext(trace_id, span_id)
    assert parse_traceparent(f"{later}-{more}") == TraceContext(trace_id, span_id)
    assert parse_traceparent(f"00-{trace_id}-{span_id}-01-{more}") is None


@given(st.text(max_size=80))
def test_t1_what_is_no_traceparent_starts_a_new_trace_and_never_raises(header: str) -> None:
    parsed = parse_traceparent(header, header)
    assert parsed is None or parse_traceparent(parsed.traceparent) is not None


@given(trace_ids, span_ids, st.integers(0, 54), st.characters())
def test_t1_a_traceparent_that_is_damaged_agrees_with_the_sdk(
    trace_id: str, span_id: str, position: int, character: str
) -> None:
    """The SDK's own propagator is the reference. Where it takes upper case or a bad end, we are as strict as W3C."""
    sound = f"00-{trace_id}-{span_id}-01"
    damaged = sound[:position] + character + sound[position + 1 :]
    ours = parse_traceparent(damaged)
    theirs = trace.get_current_span(extract({"traceparent": damaged}, context=context.Context())).get_span_context()
    if ours is not None:
        assert theirs.is_valid
        assert (int(ours.trace_id, 16), int(ours.span_id, 16)) == (theirs.trace_id, theirs.span_id)


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
        "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "00-4BF92F3577B34DA6A3CE929D0E0E4736-00F067AA0BA902B7-01",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
        "4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    ],
)
def test_t1_what_w3c_forbids_is_refused(header: str | None) -> None:
    assert parse_traceparent(header) is None


@given(trace_ids, span_ids)
def test_t1_what_goes_out_comes_in_as_the_same(trace_id: str, span_id: str) -> None:
    here = TraceContext(trace_id, span_id, "vendor=1")
    assert parse_traceparent(here.headers()["traceparent"], here.headers()["tracestate"]) == here
    there = here.environment()
    assert parse_traceparent(there["TRACEPARENT"], there["TRACESTATE"]) == here


@given(trace_ids)
def test_t9_an_attempts_context_is_sampled_local_and_without_baggage(trace_id: str) -> None:
    token = context.attach(baggage.set_baggage("who", "renee"))
    try:
        with hop_scope(hop(trace_id=trace_id, trace_state="vendor=1")) as scope:
            place = trace.get_current_span().get_span_context()
            assert not baggage.get_all()
    finally:
        context.detach(token)
    assert (trace.format_trace_id(place.trace_id), trace.format_span_id(place.span_id)) == (trace_id, scope.span_id)
    assert place.trace_flags.sampled
    assert not place.is_remote
    assert place.trace_state.to_header() == "vendor=1"


def test_t1_a_subprocess_and_a_commit_carry_the_attempt() -> None:
    with hop_scope(hop(trace_state="vendor=1")) as scope:
        here = current_trace_context()
        assert here == TraceContext(scope.trace_id, scope.span_id, "vendor=1")
        seen = subprocess.run(["env"], env=here.environment(), capture_output=True, text=True, check=True).stdout
        assert f"TRACEPARENT=00-{scope.trace_id}-{scope.span_id}-01" in seen
        trailers = subprocess.run(
            ["git", "interpret-trailers", "--parse"],
            input=f"Fix the light\n\n{here.git_trailers(scope.task_id)}",
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert trailers == f"Tracekit-Task: {scope.task_id}\nTraceparent: {here.traceparent}\n"


def test_t1_a_hop_replaces_its_surroundings_and_gives_them_back() -> None:
    around = NonRecordingSpan(SpanContext(1, 2, is_remote=False, trace_flags=TraceFlags(0)))
    with trace.use_span(around):
        with hop_scope(hop()) as outer:
            assert current_hop() is outer
            with suppress(ZeroDivisionError), hop_scope(hop()) as inner:
                assert current_hop() is inner
                raise ZeroDivisionError
            assert current_hop() is outer
            here = current_trace_context()
            assert here is not None
            assert here.span_id == outer.span_id
        assert current_hop() is None
        assert trace.get_current_span() is around
    assert current_trace_context() is None

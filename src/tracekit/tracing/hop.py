"""The hop that the running code belongs to.

A worker opens `hop_scope` around a handler. Everything called inside, in the same asyncio task or in tasks and threads
made from it (`asyncio.create_task`, `asyncio.to_thread` copy the context), then knows its task, starts its spans as
children of the attempt's span (T2), and writes log lines that name both (T8).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from opentelemetry import context, trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import Span, SpanProcessor
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, TraceState
from opentelemetry.util.types import AttributeValue

from tracekit.envelope import DataTier
from tracekit.tracing import semconv
from tracekit.tracing.context import TraceContext


@dataclass(frozen=True, slots=True)
class HopScope:
    """One attempt at one hop. `span_id` is the attempt's own (`ids.attempt_span_id`), fixed when it was claimed."""

    task_id: str
    trace_id: str
    span_id: str
    hop: int
    attempt: int
    mode: str
    persona: str | None = None
    data_tier: DataTier = DataTier.INTERNAL
    trace_state: str = ""

    @property
    def restricted(self) -> bool:
        """Whether free text must stay out of spans and log lines (T10)."""
        return self.data_tier is DataTier.RESTRICTED

    def attributes(self) -> dict[str, AttributeValue]:
        """What every span of the hop carries."""
        persona = {} if self.persona is None else {semconv.PERSONA: self.persona}
        return {
            semconv.TASK_ID: self.task_id,
            semconv.HOP: self.hop,
            semconv.ATTEMPT: self.attempt,
            semconv.MODE: self.mode,
            semconv.DATA_TIER: str(self.data_tier),
            **persona,
        }


_hop: ContextVar[HopScope | None] = ContextVar("tracekit_hop", default=None)


def current_hop() -> HopScope | None:
    """The hop that the caller runs in, or None outside of any."""
    return _hop.get()


def current_trace_context() -> TraceContext | None:
    """Where the caller is in its trace: the current span, in a hop at least the attempt's. For what goes out by other
    ways than an instrumented client: subprocesses (`.environment()`), commits (`.git_trailers()`).
    """
    here = trace.get_current_span().get_span_context()
    if not here.is_valid:
        return None
    return TraceContext(
        trace.format_trace_id(here.trace_id), trace.format_span_id(here.span_id), here.trace_state.to_header()
    )


def attempt_context(trace_id: str, span_id: str, trace_state: str = "") -> Context:
    """An OpenTelemetry context whose current span is the attempt's, which is written by the queue and not by the SDK.

    It is sampled whatever the caller's flags said (T9), and holds nothing else: no baggage. Raises ValueError where the
    ids are not hexadecimal.
    """
    place = SpanContext(
        int(trace_id, 16),
        int(span_id, 16),
        is_remote=False,
        trace_flags=TraceFlags(TraceFlags.SAMPLED),
        trace_state=TraceState.from_header([trace_state]) if trace_state else TraceState(),
    )
    return trace.set_span_in_context(NonRecordingSpan(place), Context())


@contextmanager
def hop_scope(scope: HopScope) -> Iterator[HopScope]:
    """Makes `scope` the caller's hop until the block ends. Enter and leave it in the same asyncio task."""
    place = context.attach(attempt_context(scope.trace_id, scope.span_id, scope.trace_state))
    hop = _hop.set(scope)
    try:
        yield scope
    finally:
        _hop.reset(hop)
        context.detach(place)


class HopSpanProcessor(SpanProcessor):
    """Writes the hop's identity on every span that is started inside it."""

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Called by the SDK in the code that starts the span, and so in its context."""
        scope = _hop.get()
        if scope is not None:
            span.set_attributes(scope.attributes())

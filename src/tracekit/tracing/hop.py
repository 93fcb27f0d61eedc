"""The hop that the running code belongs to.

A worker enters a hop (`enter_hop`) in the asyncio task that runs its handler. Everything called there, and in tasks
and threads made from it (`asyncio.create_task`, `asyncio.to_thread` copy the context), then knows its task, starts its
spans as children of the attempt's span (T2), and writes log lines that name both (T8).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar, Token
from functools import cached_property
from typing import NamedTuple

from opentelemetry import context, trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import Span, SpanProcessor
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, TraceState
from opentelemetry.util.types import AttributeValue

from tracekit import ids
from tracekit.envelope import DataTier
from tracekit.tracing import semconv
from tracekit.tracing.context import TraceContext


class HopScope(NamedTuple):
    """One attempt at one hop."""

    task_id: str
    trace_id: str
    hop: int
    attempt: int
    mode: str
    persona: str | None = None
    data_tier: DataTier = DataTier.INTERNAL
    trace_state: str = ""

    @property
    def span_id(self) -> str:
        """The attempt's own span, which is fixed when it is claimed."""
        return ids.attempt_span_id(self.task_id, self.hop, self.attempt)

    @property
    def restricted(self) -> bool:
        """Whether free text must stay out of spans and log lines (T10)."""
        return self.data_tier is DataTier.RESTRICTED

    def context(self) -> Context:
        """The attempt's span as the current one, and nothing else: no baggage of whoever started the task."""
        return trace.set_span_in_context(AttemptSpan(self), _NOTHING)

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


_SAMPLED, _NO_STATE, _NOTHING = TraceFlags(TraceFlags.SAMPLED), TraceState(), Context()

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


class AttemptSpan(NonRecordingSpan):
    """The attempt's span as those inside it see it: it is the record's, not the SDK's. It is sampled whatever the
    caller's flags said (T9).

    Its context is made when somebody asks: most hops start no span, and the id is a hash.
    """

    def __init__(self, scope: HopScope) -> None:
        self._scope = scope

    def get_span_context(self) -> SpanContext:
        """The attempt's place in the trace. Raises ValueError where the ids are not hexadecimal."""
        return self._place

    @cached_property
    def _place(self) -> SpanContext:
        scope = self._scope
        state = TraceState.from_header([scope.trace_state]) if scope.trace_state else _NO_STATE
        return SpanContext(int(scope.trace_id, 16), int(scope.span_id, 16), False, _SAMPLED, state)


def enter_hop(scope: HopScope) -> Token[Context]:
    """Makes `scope` the hop of the caller's asyncio task and of all that is made from it, until the task ends."""
    _hop.set(scope)
    return context.attach(scope.context())


@contextmanager
def hop_scope(scope: HopScope) -> Iterator[HopScope]:
    """The same until the block ends. Enter and leave it in the same asyncio task."""
    outer = _hop.get()
    place = enter_hop(scope)
    try:
        yield scope
    finally:
        _hop.set(outer)
        context.detach(place)


class HopSpanProcessor(SpanProcessor):
    """Writes the hop's identity on every span that is started inside it."""

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Called by the SDK in the code that starts the span, and so in its context."""
        scope = _hop.get()
        if scope is not None:
            span.set_attributes(scope.attributes())

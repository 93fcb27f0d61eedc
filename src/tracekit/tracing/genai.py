"""Names of the GenAI conventions (https://github.com/open-telemetry/semantic-conventions-genai), and spans by them.

A model span is `chat {model}`, CLIENT. `gen_ai.usage.*` is on such spans alone, so that adding them up over a trace
counts no token twice. `cost.*` is proposed there and not agreed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from typing import Any, Final

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, Span, TracerProvider
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import SpanKind
from opentelemetry.util.types import AttributeValue

from tracekit.tracing.hop import HopSpanProcessor
from tracekit.tracing.redaction import redact_span
from tracekit.tracing.rows import sdk_row

OPERATION: Final = "gen_ai.operation.name"
PROVIDER: Final = "gen_ai.provider.name"
REQUEST_MODEL: Final = "gen_ai.request.model"
RESPONSE_MODEL: Final = "gen_ai.response.model"
FINISH_REASONS: Final = "gen_ai.response.finish_reasons"
INPUT_TOKENS: Final = "gen_ai.usage.input_tokens"
"""All of the input, what was cached too."""
CACHE_READ: Final = "gen_ai.usage.cache_read.input_tokens"
CACHE_CREATION: Final = "gen_ai.usage.cache_creation.input_tokens"
OUTPUT_TOKENS: Final = "gen_ai.usage.output_tokens"
"""All of the output, reasoning too."""
REASONING: Final = "gen_ai.usage.reasoning.output_tokens"
COST_AMOUNT: Final = "gen_ai.usage.cost.amount"
COST_CURRENCY: Final = "gen_ai.usage.cost.currency"
COST_SOURCE: Final = "gen_ai.usage.cost.source"
REQUESTS: Final = "tracekit.usage.requests"
BASIS: Final = "tracekit.usage.basis"
IN_PLACE_OF: Final = "tracekit.model.in_place_of"


_span_id: ContextVar[int | None] = ContextVar("tracekit_span_id", default=None)


class _Ids(RandomIdGenerator):
    def generate_span_id(self) -> int:
        return _span_id.get() or super().generate_span_id()


@contextmanager
def with_span_id(span_id: str) -> Iterator[None]:
    """The model span that is started inside has this id."""
    token = _span_id.set(int(span_id, 16))
    try:
        yield
    finally:
        _span_id.reset(token)


@lru_cache(maxsize=8)
def _provider(resource: Resource) -> TracerProvider:
    provider = TracerProvider(sampler=ALWAYS_ON, resource=resource, id_generator=_Ids())
    provider.add_span_processor(HopSpanProcessor())
    return provider


def start_model_span(model: str, attributes: dict[str, AttributeValue], context: Context, start: int | None) -> Span:
    """A span `chat {model}` that nothing exports: whoever books the call's usage keeps it with that (`kept_row`).

    `start`: nanoseconds since 1970; None: now.
    """
    ours = trace.get_tracer_provider()
    provider = _provider(ours.resource if isinstance(ours, TracerProvider) else Resource.get_empty())
    span: Any = provider.get_tracer("tracekit").start_span(
        f"chat {model}", context=context, kind=SpanKind.CLIENT, attributes=attributes, start_time=start
    )
    assert isinstance(span, Span), "everything is sampled"
    return span


def kept_row(span: ReadableSpan) -> dict[str, Any]:
    """The columns of `tracekit.kept_spans` of a span that has ended, without what may not leave the process."""
    return sdk_row(redact_span(span))

"""The span of a model call, which is written with the call's usage."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from opentelemetry.context import Context
from opentelemetry.trace import Status, StatusCode, format_span_id, set_span_in_context
from opentelemetry.util.types import AttributeValue

from tracekit.cost.prices import UNPRICED, Priced
from tracekit.cost.usage import Usage
from tracekit.tracing import genai, semconv
from tracekit.tracing.hop import HopScope


class CallSpan:
    """The span `chat {model}` of one call. It begins when it is made, or `began` (nanoseconds since 1970)."""

    def __init__(self, provider: str, model: str, context: Context, *, began: int | None = None) -> None:
        attributes: dict[str, AttributeValue] = {
            genai.OPERATION: "chat",
            genai.PROVIDER: provider,
            genai.REQUEST_MODEL: model,
        }
        self._span = genai.start_model_span(model, attributes, context, began)
        self._context = context

    @classmethod
    def of_the_past(cls, usage: Usage, context: Context) -> CallSpan:
        """The span of a call that is over, and took as long as its usage says."""
        took = int((usage.seconds or 0.0) * 1e9)
        began = time.time_ns() - took if usage.at is None else _nanoseconds(usage.at)
        return cls(usage.provider, usage.model, context, began=began)

    @classmethod
    def lost(cls, usage: Usage, scope: HopScope, span_id: str) -> CallSpan:
        """The span, under the id that its children name already, of a call whose worker died over it. It ends now."""
        with genai.with_span_id(span_id):
            began = _nanoseconds(usage.at) if usage.at else None
            span = cls(usage.provider, usage.model, scope.context(), began=began)
        span.say(scope.attributes())
        span.end(usage, UNPRICED, error_type=semconv.LEASE_EXPIRED, now=True)
        return span

    @property
    def id(self) -> str:
        """In hex."""
        return format_span_id(self._span.get_span_context().span_id)

    @property
    def context(self) -> Context:
        """For what the call does: its spans are this one's children."""
        return set_span_in_context(self._span, self._context)

    def say(self, attributes: Mapping[str, AttributeValue]) -> None:
        """More about the call."""
        self._span.set_attributes(attributes)

    def fail(self, error_type: str) -> None:
        """There was no call: nothing was spent."""
        self._span.set_attribute(semconv.ERROR_TYPE, error_type)
        self._span.set_status(Status(StatusCode.ERROR))
        self._span.end()

    def end(self, usage: Usage, priced: Priced, *, error_type: str | None = None, now: bool = False) -> None:
        """The call is over, with what it spent. It ends now, or when its usage says."""
        values: dict[str, AttributeValue] = {
            genai.PROVIDER: usage.provider,
            genai.RESPONSE_MODEL: usage.model,
            genai.INPUT_TOKENS: usage.all_input,
            genai.CACHE_READ: usage.cache_read,
            genai.CACHE_CREATION: usage.cache_write,
            genai.OUTPUT_TOKENS: usage.output,
            genai.REASONING: usage.reasoning,
            genai.COST_SOURCE: priced.source,
            genai.REQUESTS: usage.requests,
            genai.BASIS: usage.basis,
        }
        if priced.cost is not None:
            values |= {genai.COST_AMOUNT: float(priced.cost), genai.COST_CURRENCY: "USD"}
        if error_type:
            values[semconv.ERROR_TYPE] = error_type
            self._span.set_status(Status(StatusCode.ERROR))
        self._span.set_attributes(values)
        past = not now and usage.at is not None
        began = self._span.start_time or 0
        self._span.end(began + int((usage.seconds or 0.0) * 1e9) if past else None)

    def row(self, key: str) -> dict[str, Any]:
        """The columns of `kept_spans`, ready for JSON, with the call's key."""
        return {**genai.kept_row(self._span), "key": key}


def _nanoseconds(moment: datetime) -> int:
    return int(moment.timestamp() * 1_000_000) * 1000

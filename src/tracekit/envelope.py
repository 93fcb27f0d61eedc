"""The envelope: what every task carries, checked once, at ingress.

`TaskRequest` is what a surface may say. `Envelope` is what the queue accepts: the request plus what only ingress can
know (the id, the trace, who asked and through which surface). Both are strict: an unknown, missing or ill-typed field
is a fault, and all faults are listed at once.
"""

from __future__ import annotations

import json
from datetime import timedelta
from enum import StrEnum
from typing import Annotated, Any, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import ErrorDetails

from tracekit import ids
from tracekit.errors import TracekitError

MAX_INTENT = 16_384
"""Characters of an intent."""


class Origin(StrEnum):
    """Where a task came from. Zulip and plain HTTP are `manual`, Alertmanager is `observer`."""

    OPEN_WEBUI = "open-webui"
    HA_VOICE = "ha-voice"
    ANDROID = "android"
    OBSERVER = "observer"
    SCHEDULED = "scheduled"
    MANUAL = "manual"


class Priority(StrEnum):
    """How soon a task is wanted, in the order of their ranks. The queue claims `urgent` first."""

    LOW = "low"
    NORMAL = "normal"
    HIGH = "high"
    URGENT = "urgent"

    @property
    def rank(self) -> int:
        """The number kept in the database: 0 for low to 3 for urgent."""
        return _RANKS[self]


_RANKS = {priority: rank for rank, priority in enumerate(Priority)}


class DataTier(StrEnum):
    """How far a task's data may travel. `restricted` stays out of spans, logs, notifications and remote models."""

    PUBLIC = "public"
    INTERNAL = "internal"
    RESTRICTED = "restricted"


def _storable(value: str) -> str:
    if "\x00" in value:
        raise ValueError("must not contain NUL characters")
    if any(0xD800 <= ord(character) <= 0xDFFF for character in value):
        raise ValueError("must not contain unpaired surrogates")
    return value


def _ulid(value: str) -> str:
    if not ids.is_task_id(value):
        raise ValueError("must be a ULID: 26 characters of Crockford's base 32")
    return value


def _nonzero(value: str) -> str:
    if set(value) == {"0"}:
        raise ValueError("must not be all zeros")
    return value


Text = Annotated[str, AfterValidator(_storable)]
"""A string that PostgreSQL can keep."""

Name = Annotated[Text, Field(min_length=1, max_length=64, pattern=r"^[a-z0-9][a-z0-9._-]*$")]
"""A short lower-case name: of a principal, a surface, a mode."""

TraceId = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$"), AfterValidator(_nonzero)]
SpanId = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$"), AfterValidator(_nonzero)]


def _number_or_iso(value: object) -> object:
    # The parser also takes `true` for a second, and clock times.
    if isinstance(value, bool) or (isinstance(value, str) and not value.startswith(("P", "-P", "+P"))):
        raise ValueError("must be a number of seconds, or an ISO 8601 duration such as PT15M")
    return value


Seconds = Annotated[
    timedelta,
    Field(strict=False),
    BeforeValidator(_number_or_iso),
    PlainSerializer(lambda value: value.total_seconds(), return_type=float),
    WithJsonSchema({"type": ["number", "string"], "description": "seconds, or an ISO 8601 duration such as PT15M"}),
]
"""A duration: a number of seconds or an ISO 8601 string."""

LONGEST = timedelta(days=365)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class RetryPolicy(_Strict):
    """How often a hop is tried, and how long it rests in between.

    The rest before attempt *n + 1* is drawn evenly from 0 to `min(max_delay, initial_delay * multiplier ** (n - 1))`:
    exponential backoff with full jitter (M. Brooker, "Exponential Backoff And Jitter", 2015), which spreads the
    retries of a crowd that failed together.
    """

    max_attempts: Annotated[int, Field(ge=1, le=100)] = 5
    """Claims of one hop before it goes to the DLQ. More tolerate longer outages; fewer show a poison task sooner."""
    initial_delay: Annotated[Seconds, Field(gt=timedelta(0), le=LONGEST)] = timedelta(seconds=2)
    """The ceiling of the first rest."""
    multiplier: Annotated[float, Field(ge=1, le=10)] = 2.0
    """How much the ceiling grows with each attempt."""
    max_delay: Annotated[Seconds, Field(gt=timedelta(0), le=LONGEST)] = timedelta(minutes=5)
    """No rest is longer than this."""

    def ceiling(self, attempt: int) -> timedelta:
        """The longest rest after `attempt` (counted from 1) has failed."""
        seconds = self.initial_delay.total_seconds() * self.multiplier ** min(attempt - 1, 64)
        return timedelta(seconds=min(seconds, self.max_delay.total_seconds()))


class TaskRequest(_Strict):
    """What a surface may ask for. Who asks, from where, and the trace are not its to say: they follow from the
    credential and the request's headers.
    """

    intent: Annotated[Text, Field(min_length=1, max_length=MAX_INTENT)]
    """What is wanted, in natural language."""
    idempotency_key: Annotated[Text, Field(min_length=1, max_length=255)]
    """The same key from the same origin is the same task."""
    priority: Annotated[Priority, Field(strict=False)] = Priority.NORMAL
    destructive: bool = False
    """Whether the asker already knows it to be destructive. The planner sets or confirms it; nothing lowers it."""
    ttl: Annotated[Seconds, Field(gt=timedelta(0), le=LONGEST)] | None = None
    """How long the task is worth doing, counted from its acceptance. None: no limit."""
    retry_policy: RetryPolicy = RetryPolicy()
    data_tier: Annotated[DataTier, Field(strict=False)] = DataTier.INTERNAL


class Envelope(TaskRequest):
    """What every task carries through the queue."""

    id: Annotated[str, AfterValidator(_ulid)]
    trace_id: TraceId
    traceparent: Annotated[str, Field(pattern=r"^00-[0-9a-f]{32}-[0-9a-f]{16}-01$")]
    """The context that everything of the task belongs to: its root span's, known before that span ends."""
    parent_span_id: SpanId | None = None
    """The root's own parent: the caller's span, where its trace was continued (W3C Trace Context, `parent-id`)."""
    trace_state: Annotated[Text, Field(max_length=512)] = ""
    """W3C `tracestate`, passed on as it came."""
    origin: Annotated[Origin, Field(strict=False)]
    surface: Name
    """The surface's own name, such as `zulip` or `alertmanager`."""
    requester: Name

    @model_validator(mode="after")
    def _ids_agree(self) -> Self:
        if self.traceparent != ids.traceparent(self.trace_id, ids.root_span_id(self.id)):
            raise ValueError("traceparent does not name the trace_id and the root span of this id")
        if self.parent_span_id is None and self.trace_state:
            raise ValueError("trace_state needs the parent_span_id it came with")
        return self

    @classmethod
    def seal(
        cls,
        request: TaskRequest,
        *,
        origin: Origin,
        surface: str,
        requester: str,
        trace_id: str,
        parent_span_id: str | None = None,
        trace_state: str = "",
    ) -> Self:
        """The envelope of `request`. Its id is that of the trace it begins, or a new one where it continues a caller's.

        Raises `EnvelopeError`.
        """
        task_id = ids.new_task_id() if parent_span_id else ids.task_id_of(trace_id)
        return cls.parse(
            {
                **{name: getattr(request, name) for name in TaskRequest.model_fields},
                "id": task_id,
                "trace_id": trace_id,
                "traceparent": ids.traceparent(trace_id, ids.root_span_id(task_id)),
                "parent_span_id": parent_span_id,
                "trace_state": trace_state if parent_span_id else "",
                "origin": origin,
                "surface": surface,
                "requester": requester,
            }
        )

    @classmethod
    def parse(cls, value: object) -> Self:
        """An envelope from a mapping or from JSON text. Raises `EnvelopeError` with every fault."""
        return parse(cls, value)


class Fault(BaseModel):
    """One thing that is wrong with an input, in plain words."""

    field: str
    """Where, as a dotted path; empty for the input as a whole."""
    message: str


class EnvelopeError(TracekitError):
    """An input that is not what it must be; `faults` lists everything that is wrong with it."""

    exit_code = 2

    def __init__(self, what: str, faults: list[Fault]) -> None:
        listed = "; ".join(f"{fault.field}: {fault.message}" if fault.field else fault.message for fault in faults)
        super().__init__(f"{what} was refused: {listed}", hint="`tracekit envelope schema` prints what is accepted")
        self.faults = faults


Model = TypeVar("Model", bound=BaseModel)


def parse(model: type[Model], value: object) -> Model:
    """`value` (a mapping, or JSON as text or bytes) as `model`. Raises `EnvelopeError` with every fault."""
    what = "the envelope" if issubclass(model, Envelope) else "the request"
    if isinstance(value, str | bytes):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise EnvelopeError(what, [Fault(field="", message=f"is not JSON: {error}")]) from None
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise EnvelopeError(what, [_in_plain_words(detail) for detail in error.errors()]) from None


def _in_plain_words(detail: ErrorDetails) -> Fault:
    field = ".".join(str(part) for part in detail["loc"])
    match detail["type"]:
        case "missing":
            message = "is missing"
        case "extra_forbidden":
            message = "is not a field that can be given here"
        case "value_error":
            message = str(detail["ctx"]["error"])
        case "enum":
            message = f"must be {detail['ctx']['expected']}"
        case "model_type" | "model_attributes_type" | "dict_type":
            message = "must be an object"
        case _:
            message = detail["msg"][:1].lower() + detail["msg"][1:]
    return Fault(field=field, message=message)


def json_schema() -> dict[str, Any]:
    """The envelope as JSON Schema (draft 2020-12)."""
    schema = Envelope.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}

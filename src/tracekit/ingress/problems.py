"""Refusals as problem details (RFC 9457): one shape for whatever is wrong, with every fault and the way out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from enum import Enum
from http import HTTPStatus
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import Response

from tracekit.envelope import EnvelopeError, Fault
from tracekit.errors import TracekitError
from tracekit.ingress.database import RETRY_AFTER
from tracekit.postgres import is_away
from tracekit.queue import PayloadRefused

MOST_FAULTS = 50
_LONGEST = 300


class Reason(Enum):
    """Why a request is refused: the metric's label, the span's `error.type`, and the end of the problem's type."""

    MALFORMED = ("malformed", HTTPStatus.BAD_REQUEST, "The request cannot be read")
    UNAUTHENTICATED = ("unauthenticated", HTTPStatus.UNAUTHORIZED, "A valid token is needed")
    FORBIDDEN = ("forbidden", HTTPStatus.FORBIDDEN, "This credential may not do that")
    NOT_FOUND = ("not-found", HTTPStatus.NOT_FOUND, "There is nothing here")
    METHOD_NOT_ALLOWED = ("method-not-allowed", HTTPStatus.METHOD_NOT_ALLOWED, "This method has no meaning here")
    TOO_SLOW = ("too-slow", HTTPStatus.REQUEST_TIMEOUT, "The body did not arrive in time")
    CONFLICT = ("conflict", HTTPStatus.CONFLICT, "It was decided otherwise")
    EXPIRED = ("expired", HTTPStatus.GONE, "It is too late for that")
    TOO_LARGE = ("too-large", HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "The body is too large")
    UNSUPPORTED = ("unsupported-media-type", HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "The body's type is not accepted")
    INVALID = ("invalid", HTTPStatus.UNPROCESSABLE_ENTITY, "The request is not what it must be")
    QUEUE_FULL = ("queue-full", HTTPStatus.TOO_MANY_REQUESTS, "The queue is full")
    INTERNAL = ("internal", HTTPStatus.INTERNAL_SERVER_ERROR, "Something is broken here")
    DATABASE_AWAY = ("database-away", HTTPStatus.SERVICE_UNAVAILABLE, "The database is away")

    def __init__(self, label: str, status: HTTPStatus, title: str) -> None:
        self.label = label
        self.status = int(status)
        self.title = title

    @property
    def type(self) -> str:
        """The problem's type: a name that stays the same."""
        return f"urn:tracekit:problem:{self.label}"


class Refused(Exception):
    """A request that is answered with a problem instead."""

    def __init__(
        self,
        reason: Reason,
        detail: str,
        *,
        faults: Sequence[Fault] = (),
        hint: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail
        self.faults = tuple(faults)
        self.hint = hint
        self.headers = dict(headers or {})

    def document(self, instance: str) -> dict[str, Any]:
        """The problem details. `instance` names this occurrence."""
        listed = [{"field": _cut(fault.field), "message": _cut(fault.message)} for fault in self.faults[:MOST_FAULTS]]
        document: dict[str, Any] = {
            "type": self.reason.type,
            "title": self.reason.title,
            "status": self.reason.status,
            "detail": _cut(self.detail),
            "instance": instance,
        }
        if listed:
            document["faults"] = listed
        if len(self.faults) > MOST_FAULTS:
            document["faults_left_out"] = len(self.faults) - MOST_FAULTS
        if self.hint:
            document["hint"] = self.hint
        return document

    def response(self, instance: str) -> Response:
        """The answer itself."""
        body = as_json(self.document(instance)) + b"\n"
        return Response(body, self.reason.status, self.headers, media_type="application/problem+json")


def as_json(value: Any) -> bytes:
    """JSON in ASCII: whatever characters came in, they go out. Times are in ISO 8601."""
    return json.dumps(value, separators=(",", ":"), default=datetime.isoformat).encode("ascii")


def answer(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON response, which ends its line: people read it in a shell."""
    return Response(as_json(value) + b"\n", status, dict(headers or {}), media_type="application/json")


def database_away() -> Refused:
    """The refusal while PostgreSQL does not answer."""
    return Refused(
        Reason.DATABASE_AWAY,
        "PostgreSQL did not answer in time",
        hint="send the same request again; with the same idempotency key it is the same task",
        headers={"Retry-After": str(RETRY_AFTER)},
    )


def refusal_of(error: Exception) -> Refused | None:
    """What an exception means to the caller, or None where it is a fault of ours."""
    match error:
        case Refused():
            return error
        case EnvelopeError():
            return Refused(Reason.INVALID, _count(error.faults), faults=error.faults, hint=error.hint)
        case PayloadRefused():
            return Refused(Reason.INVALID, str(error), hint=error.hint)
        case HTTPException(status_code=404):
            return Refused(Reason.NOT_FOUND, "no such path", hint="POST /v1/tasks takes a task")
        case HTTPException(status_code=405):
            return Refused(Reason.METHOD_NOT_ALLOWED, "see the header Allow", headers=error.headers)
        case HTTPException():
            return Refused(Reason.MALFORMED, str(error.detail), headers=error.headers)
    if is_away(error):
        return database_away()
    return None


def hinted(reason: Reason, error: TracekitError) -> Refused:
    """An error that is meant for people, as it stands."""
    return Refused(reason, str(error), hint=error.hint)


def _count(faults: Sequence[Fault]) -> str:
    return "1 fault" if len(faults) == 1 else f"{len(faults)} faults"


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"

"""Reading a body: bounded in size, time and nesting, whatever its sender claims."""

from __future__ import annotations

import asyncio
import json
import re
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qsl

from starlette.requests import Request

from tracekit.envelope import Fault
from tracekit.ingress.problems import Reason, Refused

DEEPEST = 32
"""Nesting of JSON beyond which a body is refused. What is accepted needs 3."""

_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"?', re.DOTALL)
_BRACKET = re.compile(rb"[\[\]{}]")
_SURROGATE = re.compile("[\ud800-\udfff]")


async def read_body(request: Request, *, limit: int, within: timedelta) -> bytes:
    """The whole body. Raises `Refused` as soon as it is known to be larger than `limit`, or comes too slowly."""
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise Refused(Reason.UNSUPPORTED, "the body is compressed", hint="send it as it is, without Content-Encoding")
    too_large = Refused(
        Reason.TOO_LARGE, f"the body is larger than {limit} bytes", hint="pass a reference, not the data"
    )
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length[:20]) > limit:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(within.total_seconds()):
            async for chunk in request.stream():
                body += chunk
                if len(body) > limit:
                    raise too_large
    except TimeoutError:
        raise Refused(
            Reason.TOO_SLOW, f"the body did not arrive within {within.total_seconds():g} s", hint="send it at once"
        ) from None
    return bytes(body)


def media_type(request: Request) -> str:
    """The body's type without its parameters, in lower case."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def is_json(media: str) -> bool:
    """Whether a media type is JSON or built on it."""
    return media == "application/json" or (media.startswith("application/") and media.endswith("+json"))


def require_json(request: Request) -> None:
    """Raises `Refused` unless the request says that its body is JSON."""
    media = media_type(request)
    if not is_json(media):
        raise Refused(
            Reason.UNSUPPORTED,
            f"the body is {media!r}" if media else "the body's type is not given",
            hint="send JSON with `Content-Type: application/json`",
        )


def parse_json(body: bytes) -> Any:
    """The value of a JSON text in UTF-8. Raises `Refused` for what JSON (RFC 8259) does not know (NaN), for what its
    parsers disagree about (a key given twice), and for what PostgreSQL cannot keep (unpaired surrogates).
    """
    if not body.strip():
        raise _malformed("is empty")
    _bound_nesting(body)
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _malformed(f"is not UTF-8: {error.reason} at byte {error.start}") from None
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise _malformed(f"is not JSON: {error}") from None
    # A surrogate can only come from an escape: UTF-8 has none.
    if b"\\u" in body and _SURROGATE.search(json.dumps(value, ensure_ascii=False)):
        raise _malformed("holds an unpaired surrogate")
    return value


def parse_form(body: bytes) -> dict[str, str]:
    """The fields of an HTML form, the last of each name. Raises `Refused`."""
    try:
        return dict(parse_qsl(body.decode("utf-8"), keep_blank_values=True, errors="strict", max_num_fields=20))
    except ValueError as error:
        raise _malformed(f"is not a form: {error}") from None


def _bound_nesting(body: bytes) -> None:
    depth = 0
    for bracket in _BRACKET.finditer(_STRING.sub(b"", body)):
        depth += 1 if bracket[0] in b"[{" else -1
        if depth > DEEPEST:
            raise _malformed(f"is nested deeper than {DEEPEST} levels")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"the key {name[:64]!r} is given twice")
        found[name] = value
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number in JSON")


def _malformed(message: str) -> Refused:
    return Refused(Reason.MALFORMED, f"the body {message}", faults=[Fault(field="", message=message)])

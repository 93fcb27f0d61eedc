"""Answers of other services over HTTP, read no further than the reader can bear."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import httpx

from tracekit.queue.model import Json


class AnswerTooLarge(Exception):
    """The answer goes on beyond what is read."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back. `json` is None where the body is no JSON."""

    status: int
    headers: httpx.Headers
    json: Json


async def ask(http: httpx.AsyncClient, method: str, url: str, *, most: int, **request: Any) -> Answer:
    """Send a request, as `httpx` takes it, and read at most `most` bytes of the answer.

    Raises `AnswerTooLarge`, `httpx.HTTPError`, `httpx.InvalidURL`.
    """
    async with http.stream(method, url, **request) as response:
        body = bytearray()
        async for chunk in response.aiter_bytes():
            body += chunk
            if len(body) > most:
                raise AnswerTooLarge(f"answered more than {most} bytes")
    try:
        value = json.loads(bytes(body))
    except (ValueError, RecursionError):
        value = None
    return Answer(response.status_code, response.headers, value)

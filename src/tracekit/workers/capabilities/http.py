"""One HTTP request of a capability: bounded, and every failure sorted by what it means for the deed."""

from __future__ import annotations

from typing import Any

import httpx

from tracekit.queue.model import Json
from tracekit.workers.answers import AnswerTooLarge, ask
from tracekit.workers.capabilities import Misconfigured, Unavailable, Uncertain
from tracekit.workers.mode import Hop

MAX_ANSWER = 1_048_576
"""Bytes of an answer."""

TIMEOUT = httpx.Timeout(30, connect=5)


async def request(
    hop: Hop[Any],
    service: str,
    method: str,
    url: str,
    *,
    setting: str,
    acts: bool,
    headers: dict[str, str] | None = None,
    json_body: Json = None,
    form: dict[str, str] | None = None,
) -> tuple[int, Json]:
    """The answer's status and its JSON (None where it is none).

    `acts`: the request changes something, so that an answer that does not come leaves it uncertain. Raises
    `Unavailable`, `Uncertain` and `Misconfigured`, whose words name `service` and `setting` and quote nothing else:
    neither URL nor headers nor answer.
    """
    lost = Uncertain if acts else Unavailable
    try:
        answer = await ask(
            hop.services.http,
            method,
            url,
            most=MAX_ANSWER,
            headers=headers,
            json=json_body,
            data=form,
            timeout=TIMEOUT,
            follow_redirects=False,
        )
    except AnswerTooLarge as error:
        raise lost(f"{service} {error}") from None
    except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout):
        raise Unavailable(f"{service} cannot be reached", hint=f"check {setting} and that it runs") from None
    except (httpx.InvalidURL, httpx.UnsupportedProtocol):
        raise Misconfigured(f"{setting} is not a usable address", hint="it looks like http://host:port") from None
    except httpx.HTTPError as error:
        raise lost(f"{service} did not finish its answer ({type(error).__name__})") from None
    status = answer.status
    if status in (401, 403):
        raise Misconfigured(f"{service} refused tracekit's credential ({status})", hint=f"check {setting}")
    if 300 <= status < 400:
        raise Misconfigured(f"{service} answered with a redirect ({status})", hint=f"set {setting} to its real address")
    if status >= 500:
        raise lost(f"{service} answered with an error of its own ({status})")
    return status, answer.json

"""GitHub's REST, as far as the upstream-watcher asks it: issues, pull requests and releases, in short."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from tracekit.errors import TracekitError
from tracekit.queue.model import Json
from tracekit.queue.payload import plain_text
from tracekit.workers.answers import Answer, AnswerTooLarge, ask
from tracekit.workers.mode import Services

MAX_ANSWER = 16_777_216
"""Bytes of an answer: thirty releases with all their files listed have some."""
LEAST_REST = timedelta(minutes=1)
LONGEST_REST = timedelta(hours=24)
"""After a refusal for too many requests: GitHub asks for a minute where it names no time."""
FORGOTTEN_AFTER = timedelta(days=90)
"""How long an answer is kept that nothing asks for any more."""

_TIMEOUT = httpx.Timeout(20, connect=5)


class GitHubError(TracekitError):
    """GitHub cannot be asked, or answers what is not understood."""


class RateLimited(GitHubError):
    """GitHub wants no more requests for now."""

    def __init__(self, rest: timedelta) -> None:
        super().__init__(f"GitHub's rate limit is used up for {rest.total_seconds():.0f} s", hint="set github.token")
        self.rest = rest


class GitHub:
    """Asks GitHub's REST, each address once a round and on condition that something changed.

    What was heard last is kept in `tracekit.upstreams`, for all processes: the answer in short, its ETag, and, when
    GitHub wanted no more requests, until when.
    """

    def __init__(self, services: Services, *, fresh: timedelta) -> None:
        self._services = services
        self._fresh = fresh
        self._base = services.settings.github.url.rstrip("/")
        self._limit = f"{self._base}/rate_limit"
        self._heard: dict[str, dict[str, Json]] = {}

    async def issue(self, repository: str, number: str) -> dict[str, Json]:
        """`state`, `reason`, `ended_at`, `merged_at` of an issue, which may be a pull request; {} for none."""
        return await self._ask(f"repos/{repository}/issues/{number}", _short_issue)

    async def pull(self, repository: str, number: str) -> dict[str, Json]:
        """`state`, `ended_at`, `merged_at` of a pull request; {} for none."""
        return await self._ask(f"repos/{repository}/pulls/{number}", _short_issue)

    async def releases(self, repository: str) -> list[dict[str, Json]] | None:
        """`tag`, `at`, `prerelease` of the newest releases; None where there is no such repository."""
        # Thirty: some projects attach so many files to each that a hundred are tens of megabytes.
        heard = await self._ask(f"repos/{repository}/releases?per_page=30", _short_releases)
        return list(heard["releases"]) if heard else None

    async def release(self, repository: str, tag: str) -> dict[str, Json]:
        """`tag`, `at` of one release; {} for none."""
        return await self._ask(f"repos/{repository}/releases/tags/{tag}", _short_release)

    async def _ask(self, path: str, shorten: Any) -> dict[str, Json]:
        url = f"{self._base}/{path}"
        if url not in self._heard:
            self._heard[url] = await self._hear(url, shorten)
        return self._heard[url]

    async def _hear(self, url: str, shorten: Any) -> dict[str, Json]:
        etag, state, recent = await self._kept(url)
        if recent:
            return state
        answer = await self._get(url, etag)
        if answer.status == 304:
            await self._keep(url, etag, state)
        elif answer.status == 200:
            state, etag = shorten(answer.json), answer.headers.get("etag")
            await self._keep(url, etag, state)
        elif answer.status in (404, 410):
            # Not there, or not for this token. It may come: a release that is waited for does.
            state = {}
            await self._keep(url, None, state)
        else:
            raise GitHubError(f"GitHub answered {answer.status}", hint="check github.url and github.token")
        if answer.headers.get("x-ratelimit-remaining") == "0":
            await self._rest(answer.headers)
        return state

    async def _get(self, url: str, etag: str | None) -> Answer:
        token = self._services.settings.github.token.get_secret_value()
        headers = {
            "Accept": "application/vnd.github+json",
            "User-Agent": "tracekit",
            "X-GitHub-Api-Version": "2022-11-28",
            **({"Authorization": f"Bearer {token}"} if token else {}),
            **({"If-None-Match": etag} if etag else {}),
        }
        try:
            # A repository that was renamed is answered with a redirect. httpx takes the token to no other host.
            answer = await ask(
                self._services.http,
                "GET",
                url,
                most=MAX_ANSWER,
                headers=headers,
                timeout=_TIMEOUT,
                follow_redirects=True,
            )
        except AnswerTooLarge as error:
            raise GitHubError(f"GitHub {error}") from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise GitHubError(
                f"GitHub cannot be reached ({type(error).__name__})", hint="check github.url and the network"
            ) from None
        if answer.status == 429 or (answer.status == 403 and _is_limit(answer.headers)):
            raise RateLimited(await self._rest(answer.headers))
        if answer.status == 200 and answer.json is None:
            raise GitHubError("what github.url leads to did not answer JSON", hint="check github.url")
        return answer

    async def forget(self) -> None:
        """Drop what was not asked for a long time: its workaround is gone."""
        async with self._services.queue.connection() as connection:
            await connection.execute(
                "DELETE FROM tracekit.upstreams WHERE checked_at < clock_timestamp() - %s", [FORGOTTEN_AFTER]
            )

    async def check_limit(self) -> None:
        """Raises `RateLimited` while GitHub wants no requests."""
        async with self._services.queue.connection() as connection:
            cursor = await connection.execute(
                "SELECT (state ->> 'until')::timestamptz - clock_timestamp() FROM tracekit.upstreams WHERE url = %s",
                [self._limit],
            )
            row = await cursor.fetchone()
        if row and row[0] and row[0] > timedelta(0):
            raise RateLimited(row[0])

    async def _rest(self, headers: httpx.Headers) -> timedelta:
        rest = min(max(_rest(headers), LEAST_REST), LONGEST_REST)
        async with self._services.queue.connection() as connection:
            await connection.execute(
                "INSERT INTO tracekit.upstreams AS u (url, state, checked_at)"
                " VALUES (%(url)s, jsonb_build_object('until', clock_timestamp() + %(rest)s), clock_timestamp())"
                " ON CONFLICT (url) DO UPDATE SET state = excluded.state, checked_at = excluded.checked_at",
                {"url": self._limit, "rest": rest},
            )
        return rest

    async def _kept(self, url: str) -> tuple[str | None, dict[str, Json], bool]:
        async with self._services.queue.connection() as connection:
            cursor = await connection.execute(
                "SELECT etag, state, checked_at > clock_timestamp() - %s FROM tracekit.upstreams WHERE url = %s",
                [self._fresh, url],
            )
            row = await cursor.fetchone()
        etag, state, recent = row or (None, {}, False)
        if not recent:
            await self.check_limit()
        return etag, state, recent

    async def _keep(self, url: str, etag: str | None, state: dict[str, Json]) -> None:
        async with self._services.queue.connection() as connection:
            await connection.execute(
                "INSERT INTO tracekit.upstreams AS u (url, etag, state, checked_at)"
                " VALUES (%s, %s, %s::jsonb, clock_timestamp()) ON CONFLICT (url) DO UPDATE"
                " SET etag = excluded.etag, state = excluded.state, checked_at = excluded.checked_at",
                [url, etag and etag[:500], json.dumps(state)],
            )


def _is_limit(headers: httpx.Headers) -> bool:
    return headers.get("x-ratelimit-remaining") == "0" or "retry-after" in headers


def _rest(headers: httpx.Headers) -> timedelta:
    """How long GitHub wants to be left alone. A point in time is taken against GitHub's own clock."""
    try:
        if "retry-after" in headers:
            return timedelta(seconds=min(int(headers["retry-after"]), 10**6))
        reset = datetime.fromtimestamp(int(headers["x-ratelimit-reset"]), UTC)
        now = parsedate_to_datetime(headers["date"]) if "date" in headers else datetime.now(UTC)
        return reset - now
    except (KeyError, TypeError, ValueError, OverflowError, OSError):
        return LEAST_REST


def _short_issue(answer: Json) -> dict[str, Json]:
    if not isinstance(answer, dict) or answer.get("state") not in ("open", "closed"):
        raise GitHubError("GitHub described an issue in a way that is not understood")
    pull = answer.get("pull_request")
    merged_at = answer.get("merged_at") or (pull.get("merged_at") if isinstance(pull, dict) else None)
    return {
        "state": answer["state"],
        "reason": _text(answer.get("state_reason")),
        "ended_at": _text(answer.get("closed_at")),
        "merged_at": _text(merged_at),
    }


def _short_release(answer: Json) -> dict[str, Json]:
    if not isinstance(answer, dict) or not isinstance(answer.get("tag_name"), str):
        raise GitHubError("GitHub described a release in a way that is not understood")
    if answer.get("draft"):
        return {}
    return {
        "tag": plain_text(answer["tag_name"], 200),
        "at": _text(answer.get("published_at")),
        "prerelease": bool(answer.get("prerelease")),
    }


def _short_releases(answer: Json) -> dict[str, Json]:
    if not isinstance(answer, list):
        raise GitHubError("GitHub did not answer a list of releases")
    return {"releases": [short for release in answer if (short := _short_release(release))]}


def _text(value: object) -> str | None:
    return plain_text(value, 100) if isinstance(value, str) else None

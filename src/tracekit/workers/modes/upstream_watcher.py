"""The upstream-watcher: finds workarounds in checkouts, asks upstream whether they can go, and files a task when so.

A workaround is a comment of this form, in any text file that git tracks::

    # workaround: https://github.com/owner/project/issues/12 — remove when closed

`#`, `//`, `--`, `;`, `/*`, `*` and `<!--` begin it, and the dash may be `—`, `–`, `-` or `--`. The condition is free
text around one word:

- `closed`: the issue or pull request is.
- `merged`: the pull request is.
- `released`, after an issue or a pull request: a release came out after it was closed or merged.
- `released` with a version, as in `2.1 is released`: a release of that version or a later one is there. A prerelease
  counts only by its exact name.
- `released`, after `.../releases/tag/<tag>`: that release is there.

What only looks like one (another host, no such word) is logged at each round and files nothing.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import re
import stat
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import httpx
import structlog
from opentelemetry.instrumentation.utils import suppress_http_instrumentation

from tracekit import ids
from tracekit.envelope import Envelope, Origin, Priority, TaskRequest
from tracekit.errors import TracekitError
from tracekit.queue import Done, GiveUp, Outcome, RetryLater, Submission
from tracekit.queue.model import Json
from tracekit.queue.payload import plain_text
from tracekit.tracing.secrets import redact_text
from tracekit.workers.mode import Hop, Mode, NoInput, Services, Source
from tracekit.workers.modes.observer import system_principal

log = structlog.get_logger()

SURFACE = "upstream-watcher"

MAX_FILE = 1_048_576
"""Bytes of a file that is read; a larger one is no source that anybody comments."""
MOST_FILES = 100_000
"""Files of one checkout that are looked at."""
MOST_WORKAROUNDS = 1_000
"""Workarounds of all checkouts together."""
MAX_ANSWER = 16_777_216
"""Bytes of an answer of GitHub's: thirty releases with all their files listed have some."""
LEAST_REST = timedelta(minutes=1)
LONGEST_REST = timedelta(hours=24)
"""After a refusal for too many requests: GitHub asks for a minute where it names no time."""
FORGOTTEN_AFTER = timedelta(days=90)
"""How long an answer is kept that nothing asks for any more."""
GIT_TIMEOUT = 60
"""Seconds for one call of git."""

_TIMEOUT = httpx.Timeout(20, connect=5)


class WatcherError(TracekitError):
    """A checkout cannot be read, or upstream cannot be asked."""


# --- finding workarounds --------------------------------------------------------------------------------------------

_WORKAROUND = re.compile(
    r"(?:\#|//|--|;|/\*|\*|<!--)\s*workaround:\s*(?P<url>https?://\S+?)\s*(?:\s--?|—|–)\s*remove\s+when\s+"
    r"(?P<condition>.+?)\s*(?:\*/|-->)?\s*$",
    re.IGNORECASE,
)
_WORD = re.compile(r"\b(closed|merged|released)\b", re.IGNORECASE)
_VERSION = re.compile(r"(?<![\w.#/+-])v?\d[\w.+-]*", re.IGNORECASE)
_SUBJECT = re.compile(
    r"https?://(?:www\.)?github\.com/(?P<repository>[\w-]+/[\w-][\w.-]*?)"
    r"(?:/(?P<kind>issues|pull|pulls)/(?P<number>\d{1,10})|/releases(?:/tag/(?P<tag>[^/?#\s]+)|/latest)?|\.git)?"
    r"/?(?:[?#]\S*)?",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Workaround:
    """A workaround in one file: every line of it that has the same address and condition."""

    repository: str
    """What the checkout is a clone of, or its directory's name. For people."""
    file: str
    lines: tuple[int, ...]
    url: str
    condition: str

    @property
    def key(self) -> str:
        """Names it wherever the checkout lies, and whatever line it moves to."""
        identity = json.dumps([self.url, self.condition.lower(), self.file], ensure_ascii=False)
        return f"workaround:{hashlib.sha256(identity.encode()).hexdigest()[:40]}"

    @property
    def places(self) -> str:
        """`file:line`, as editors take it; further lines after commas."""
        listed = ",".join(map(str, self.lines[:20])) + (",…" if len(self.lines) > 20 else "")
        return f"{plain_text(self.file, 500)}:{listed}"


def in_text(text: str) -> Iterator[tuple[int, str, str]]:
    """Line number, address and condition of each workaround in a file's text."""
    for number, line in enumerate(text.split("\n"), 1):
        if len(line) <= 2_000 and (found := _WORKAROUND.search(line)):
            yield number, found["url"].rstrip(".,;"), " ".join(found["condition"].split())[:200].rstrip(".")


async def find_workarounds(checkout: Path) -> list[Workaround]:
    """The workarounds in a checkout's tracked files. Raises `WatcherError`."""
    root = _root(checkout)
    listed = await _git(root, "ls-files", "-z", "--cached")
    names = [os.fsdecode(name) for name in listed.split(b"\0") if name]
    if len(names) > MOST_FILES:
        log.warning("watcher.too_many_files", files=len(names), looked_at=MOST_FILES)
    repository = await _repository(root)
    return await asyncio.to_thread(_scan, root, names[:MOST_FILES], repository)


def _root(checkout: Path) -> Path:
    root = checkout.expanduser().absolute()
    if not root.is_dir():
        raise WatcherError(f"there is no checkout at {root}", hint="check `checkouts`")
    return root


def _scan(root: Path, names: Iterable[str], repository: str) -> list[Workaround]:
    found: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    for name in names:
        raw = _read(root / name)
        if b"workaround:" not in raw.lower() or b"\0" in raw:
            continue
        shown = name.encode(errors="replace").decode()
        for line, url, condition in in_text(raw.decode(errors="replace")):
            found[shown, plain_text(url, 500), plain_text(condition, 200)].append(line)
    return [
        Workaround(repository, file, tuple(lines), url, condition) for (file, url, condition), lines in found.items()
    ]


def _read(path: Path) -> bytes:
    """A regular file's bytes; nothing of links, devices, directories, large files and files that have gone."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return b""
    with os.fdopen(descriptor, "rb") as file:
        state = os.fstat(file.fileno())
        return file.read(MAX_FILE) if stat.S_ISREG(state.st_mode) and state.st_size <= MAX_FILE else b""


async def _repository(root: Path) -> str:
    try:
        remote = (await _git(root, "config", "--get", "remote.origin.url")).decode(errors="replace").strip()
    except WatcherError:
        return root.name
    return plain_text(redact_text(remote).removesuffix(".git"), 300) or root.name


async def _git(root: Path, *arguments: str) -> bytes:
    # A checkout's own configuration may name programs to run: none of them is wanted for reading.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        process = await asyncio.create_subprocess_exec(
            *("git", "-C", str(root), "-c", "core.fsmonitor=false", *arguments),
            env={**environment, "GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
    except OSError as error:
        raise WatcherError(f"git cannot be started: {error.strerror}", hint="install git") from None
    try:
        async with asyncio.timeout(GIT_TIMEOUT):
            out, told = await process.communicate()
    except TimeoutError:
        raise WatcherError(f"git took longer than {GIT_TIMEOUT} s in {root}") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        said = " ".join(told.decode(errors="replace").split())[:300]
        raise WatcherError(f"git cannot read {root}: {said}", hint="is it a git checkout that belongs to this user?")
    return out


# --- asking upstream ------------------------------------------------------------------------------------------------


class RateLimited(WatcherError):
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

    async def releases(self, repository: str) -> list[dict[str, Json]]:
        """`tag`, `at`, `prerelease` of the newest releases. Raises `Unreadable` where there is no such repository."""
        # Thirty: some projects attach so many files to each that a hundred are tens of megabytes.
        heard = await self._ask(f"repos/{repository}/releases?per_page=30", _short_releases)
        if not heard:
            raise Unreadable("GitHub shows no such repository: it is gone, private, or mistyped")
        return list(heard["releases"])

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
        status, headers, answer = await self._get(url, etag)
        if status == 304:
            await self._keep(url, etag, state)
        elif status == 200:
            state, etag = shorten(answer), headers.get("etag")
            await self._keep(url, etag, state)
        elif status in (404, 410):
            # Not there, or not for this token. It may come: a release that is waited for does.
            state = {}
            await self._keep(url, None, state)
        else:
            raise WatcherError(f"GitHub answered {status}", hint="check github.url and github.token")
        if headers.get("x-ratelimit-remaining") == "0":
            await self._rest(headers)
        return state

    async def _get(self, url: str, etag: str | None) -> tuple[int, httpx.Headers, Json]:
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
            async with self._services.http.stream(
                "GET", url, headers=headers, timeout=_TIMEOUT, follow_redirects=True
            ) as response:
                body = bytearray()
                async for chunk in response.aiter_bytes():
                    body += chunk
                    if len(body) > MAX_ANSWER:
                        raise WatcherError(f"GitHub answered more than {MAX_ANSWER} bytes")
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise WatcherError(
                f"GitHub cannot be reached ({type(error).__name__})", hint="check github.url and the network"
            ) from None
        if response.status_code == 429 or (response.status_code == 403 and _is_limit(response.headers)):
            raise RateLimited(await self._rest(response.headers))
        answer: Json = None
        if response.status_code == 200:
            try:
                answer = json.loads(bytes(body))
            except (ValueError, RecursionError):
                raise WatcherError("what github.url leads to did not answer JSON", hint="check github.url") from None
        return response.status_code, response.headers, answer

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
        raise WatcherError("GitHub described an issue in a way that is not understood")
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
        raise WatcherError("GitHub described a release in a way that is not understood")
    if answer.get("draft"):
        return {}
    return {
        "tag": plain_text(answer["tag_name"], 200),
        "at": _text(answer.get("published_at")),
        "prerelease": bool(answer.get("prerelease")),
    }


def _short_releases(answer: Json) -> dict[str, Json]:
    if not isinstance(answer, list):
        raise WatcherError("GitHub did not answer a list of releases")
    return {"releases": [short for release in answer if (short := _short_release(release))]}


def _text(value: object) -> str | None:
    return plain_text(value, 100) if isinstance(value, str) else None


# --- judging --------------------------------------------------------------------------------------------------------


class Unreadable(WatcherError):
    """A workaround that cannot be judged: its author has to say it otherwise."""


async def found_upstream(workaround: Workaround, github: GitHub) -> str | None:
    """Why the workaround can go, in words; None: not yet. Raises `Unreadable`, `WatcherError`."""
    subject = _SUBJECT.fullmatch(workaround.url)
    condition = _WORD.search(workaround.condition)
    if subject is None:
        raise Unreadable("the address is no issue, pull request or release on github.com")
    if condition is None:
        raise Unreadable("the condition says neither closed, merged nor released")
    word = condition[1].lower()
    if word == "released":
        version = _VERSION.search(workaround.condition)
        return await _released(subject, version[0].rstrip(".") if version else None, github)
    if not subject["number"]:
        raise Unreadable(f"a repository or a release is never {word}")
    upstream = await _issue(subject, github)
    if word == "merged":
        if subject["kind"].lower() == "issues" and upstream.get("state") == "closed" and not upstream["merged_at"]:
            raise Unreadable("an issue is closed, not merged")
        return f"it was merged at {upstream['merged_at']}" if upstream.get("merged_at") else None
    if upstream.get("state") != "closed":
        return None
    # "Not planned" is an answer too, but another one than the author hoped for: whoever cleans up must know.
    reason = f" as {upstream['reason'].replace('_', ' ')}" if upstream.get("reason") else ""
    return f"it was closed{reason} at {upstream['ended_at']}"


async def _issue(subject: re.Match[str], github: GitHub) -> dict[str, Json]:
    ask = github.issue if subject["kind"].lower() == "issues" else github.pull
    found = await ask(subject["repository"], subject["number"])
    if not found:
        raise Unreadable("GitHub shows no such issue or pull request: it is gone, private, or mistyped")
    return found


async def _released(subject: re.Match[str], version: str | None, github: GitHub) -> str | None:
    repository = subject["repository"]
    if version:
        for release in await github.releases(repository):
            if _reaches(release, version):
                return f"{release['tag']} was released at {release['at']}"
        return None
    if subject["tag"]:
        release = await github.release(repository, subject["tag"])
        return f"{release['tag']} was released at {release['at']}" if release else None
    if not subject["number"]:
        raise Unreadable("released needs a version, or the address of an issue, a pull request or one release")
    upstream = await _issue(subject, github)
    ended_at = upstream.get("merged_at") or (upstream.get("ended_at") if upstream.get("state") == "closed" else None)
    if not ended_at:
        return None
    later = [
        release
        for release in await github.releases(repository)
        if not release["prerelease"] and release["at"] and release["at"] > ended_at
    ]
    # GitHub's times are all of one form, in UTC, so that they compare as text.
    first = min(later, key=lambda release: str(release["at"]), default=None)
    return f"it ended at {ended_at} and {first['tag']} was released after it, at {first['at']}" if first else None


def _reaches(release: dict[str, Json], version: str) -> bool:
    tag = str(release["tag"])
    if tag.lower().removeprefix("v") == version.lower().removeprefix("v"):
        return True
    has, wants = _numbers(tag), _numbers(version)
    return bool(has and wants and not release["prerelease"] and has >= wants)


def _numbers(version: str) -> tuple[int, ...]:
    """`chart-v2.10.0` is (2, 10, 0); of a version with more than numbers only its exact name counts: ()."""
    found = re.fullmatch(r"(?:.*[^\d.])?(\d{1,9}(?:\.\d{1,9}){0,9})", version)
    if found is None:
        return ()
    numbers = [int(number) for number in found[1].split(".")]
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers) or (0,)


# --- the mode -------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Round:
    """What one round found."""

    workarounds: int = 0
    can_go: int = 0
    filed: list[str] = field(default_factory=list)
    unreadable: int = 0
    failures: list[str] = field(default_factory=list)
    """What could not be read or asked; the next round tries again."""
    limited: timedelta | None = None
    """How long GitHub wants no more requests; the rest of the round was left out."""


class CheckoutSource(Source):
    """Looks through the checkouts each `watch_interval` and files what can go.

    Upstream's trouble is logged and waits for the next round: asking again at once would use up GitHub's limit.
    """

    def __init__(self, services: Services) -> None:
        self.interval: timedelta = services.settings.watch_interval
        self._services = services

    async def poll(self) -> int:
        """One round. It belongs to no task, and so it makes no span (T9)."""
        with suppress_http_instrumentation():
            # Another process has just asked, or this one before it was restarted: its answers serve.
            done = await watch(self._services, fresh=self.interval / 2)
        for failure in done.failures:
            log.warning("watcher.failed", error=failure)
        if done.limited:
            log.warning("watcher.rate_limited", seconds=round(done.limited.total_seconds()))
        log.info("watcher.looked", workarounds=done.workarounds, can_go=done.can_go, filed=len(done.filed))
        return len(done.filed)


class UpstreamWatcher(Mode[NoInput]):
    """As a mode it does one round, because somebody asked, and says what it filed."""

    name = "upstream-watcher"
    input_type = NoInput

    def sources(self) -> list[Source]:
        """The checkouts, where any are configured."""
        return [CheckoutSource(self.services)] if self.services.settings.checkouts else []

    async def run(self, hop: Hop[NoInput]) -> Outcome:
        """One round; rests until GitHub takes requests again where its limit is used up."""
        if not self.services.settings.checkouts:
            return GiveUp("no checkout is configured: set `checkouts`")
        done = await watch(self.services, fresh=timedelta(0))
        if done.limited:
            return RetryLater(done.limited, "GitHub's rate limit is used up")
        if done.failures:
            raise WatcherError("; ".join(done.failures[:10]))
        unreadable = f"; {done.unreadable} cannot be judged" if done.unreadable else ""
        found = f"Of {done.workarounds} workarounds {done.can_go} can go{unreadable}."
        return Done(summary=f"{found} Tasks filed: {len(done.filed)}.")


async def watch(services: Services, *, fresh: timedelta) -> Round:
    """One round through all checkouts. What was asked less than `fresh` ago is not asked again. Safe to repeat."""
    done = Round()
    workarounds: dict[str, Workaround] = {}
    for checkout in services.settings.checkouts:
        try:
            for workaround in await find_workarounds(checkout):
                workarounds.setdefault(workaround.key, workaround)
        except WatcherError as error:
            done.failures.append(str(error))
    if len(workarounds) > MOST_WORKAROUNDS:
        done.failures.append(f"there are {len(workarounds)} workarounds; {MOST_WORKAROUNDS} are looked at")
    done.workarounds = len(workarounds)
    github = GitHub(services, fresh=fresh)
    chosen = list(workarounds.values())[:MOST_WORKAROUNDS]
    # Where the limit ends each round, every workaround has its turn some day.
    random.shuffle(chosen)
    for workaround in chosen:
        try:
            why = await found_upstream(workaround, github)
        except Unreadable as error:
            done.unreadable += 1
            log.info("watcher.unreadable", place=workaround.places, reason=str(error))
        except RateLimited as error:
            # What was asked before may still be answered from what is kept; the rest of the round is not.
            done.limited = max(error.rest, done.limited or timedelta(0))
        except WatcherError as error:
            if str(error) not in done.failures:
                done.failures.append(str(error))
        else:
            if why:
                done.can_go += 1
                done.filed += await _file(services, workaround, why)
    await github.forget()
    return done


async def _file(services: Services, workaround: Workaround, why: str) -> list[str]:
    envelope = Envelope.seal(
        TaskRequest(
            intent=f"Remove the workaround at {workaround.places} in {workaround.repository}: it waits for"
            f" {workaround.url} ({workaround.condition}), and {why}",
            idempotency_key=workaround.key,
            priority=Priority.LOW,
        ),
        origin=Origin.SCHEDULED,
        surface=SURFACE,
        requester=system_principal(services.settings),
        trace_id=ids.new_trace_id(),
    )
    found = {
        "repository": workaround.repository,
        "file": workaround.file,
        "lines": list(workaround.lines[:1_000]),
        "url": workaround.url,
        "condition": workaround.condition,
        "found": why,
    }
    [receipt] = await services.queue.enqueue([Submission(envelope, input={"workaround": found})])
    return [] if receipt.duplicate else [receipt.task_id]

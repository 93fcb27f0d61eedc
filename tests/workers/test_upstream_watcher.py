"""The upstream-watcher: real git checkouts, and a server that answers as GitHub's REST API documents it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from email.utils import formatdate
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import pytest
import structlog
from pydantic import SecretStr

from tests.queue.driving import accept, settle, take
from tracekit.config import GitHubSettings, Settings
from tracekit.queue import Done, GiveUp, Outcome, Queue, RetryLater
from tracekit.queue.tasks import Task
from tracekit.workers.github import GitHub
from tracekit.workers.mode import Hop, NoInput, Services
from tracekit.workers.modes.upstream_watcher import CheckoutSource, UpstreamWatcher, WatcherError, watch
from tracekit.workers.upstream import Unreadable, found_upstream
from tracekit.workers.workarounds import CheckoutError, Workaround, find_workarounds, in_text

ISSUE = "https://github.com/owner/project/issues/12"


# --- GitHub, as far as it is asked ----------------------------------------------------------------------------------


@dataclass
class Upstream:
    """Answers as https://docs.github.com/en/rest says: ETags, 304, 301, 404 and the two rate limits."""

    url: str = ""
    things: dict[str, Any] = field(default_factory=dict)
    """By path and query, below the root."""
    moved: dict[str, str] = field(default_factory=dict)
    remaining: int = 60
    resets_in: int = 1_800
    secondary: int | None = None
    """Seconds of Retry-After, while the secondary limit holds."""
    broken: tuple[int, bytes] | None = None
    skew: int = 0
    """How far its clock is ahead."""
    asked: Counter[tuple[str, int]] = field(default_factory=Counter)
    """Path and the status that it was answered."""
    tokens: set[str | None] = field(default_factory=set)

    def answer(self, path: str, headers: Any) -> tuple[int, dict[str, str], bytes]:
        self.tokens.add(headers["Authorization"])
        assert headers["Accept"] == "application/vnd.github+json"
        assert headers["User-Agent"] == "tracekit"
        if self.broken:
            return self.broken[0], {}, self.broken[1]
        if self.secondary is not None:
            told = b'{"message":"You have exceeded a secondary rate limit."}'
            return 403, {"Retry-After": str(self.secondary)}, told
        if self.remaining == 0:
            return 403, self._limits(), b'{"message":"API rate limit exceeded for 203.0.113.7."}'
        if path in self.moved:
            location = f"{self.url}{self.moved[path]}"
            return 301, {**self._limits(), "Location": location}, b'{"message":"Moved Permanently"}'
        thing = self.things.get(path)
        if thing is None:
            self.remaining -= 1
            return 404, self._limits(), b'{"message":"Not Found","status":"404"}'
        body = json.dumps(thing).encode()
        etag = f'W/"{sha256(body).hexdigest()}"'
        if headers["If-None-Match"] == etag:
            return 304, {**self._limits(), "ETag": etag}, b""
        self.remaining -= 1
        return 200, {**self._limits(), "ETag": etag}, body

    def _limits(self) -> dict[str, str]:
        return {
            "X-RateLimit-Limit": "60",
            "X-RateLimit-Remaining": str(self.remaining),
            "X-RateLimit-Reset": str(int(time.time()) + self.skew + self.resets_in),
        }


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    upstream = Upstream()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, headers, body = upstream.answer(self.path, self.headers)
            upstream.asked[self.path, status] += 1
            self.send_response_only(status)
            self.send_header("Date", formatdate(time.time() + upstream.skew, usegmt=True))
            for name, value in headers.items():
                self.send_header(name, value)
            if status != 304:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        upstream.url = f"http://127.0.0.1:{server.server_port}"
        try:
            yield upstream
        finally:
            server.shutdown()
            thread.join()


def issue(state: str = "closed", **fields: Any) -> dict[str, Any]:
    closed = state == "closed"
    return {
        "number": 12,
        "title": "It breaks",
        "state": state,
        "state_reason": "completed" if closed else None,
        "closed_at": "2026-11-01T10:00:00Z" if closed else None,
        "body": "long",
        **fields,
    }


def pull(*, merged: bool, state: str = "closed") -> dict[str, Any]:
    at = "2026-11-01T10:00:00Z"
    return {
        "number": 13,
        "state": state,
        "merged": merged,
        "closed_at": at if state == "closed" else None,
        "merged_at": at if merged else None,
    }


def release(tag: str, at: str = "2026-11-02T10:00:00Z", **fields: Any) -> dict[str, Any]:
    return {"tag_name": tag, "published_at": at, "draft": False, "prerelease": False, "assets": [], **fields}


RELEASES = "/repos/owner/project/releases?per_page=30"


# --- checkouts ------------------------------------------------------------------------------------------------------


def git(checkout: Path, *arguments: str) -> None:
    program = shutil.which("git")
    if program is None:
        pytest.skip("git is not installed; on Debian or Ubuntu: apt-get install git")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    subprocess.run(
        [program, "-C", checkout, *arguments],
        check=True,
        capture_output=True,
        env={**environment, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull},
    )


def commit(checkout: Path, **files: str | bytes) -> Path:
    """A checkout with these files tracked; `__` in a name stands for a slash, `_` for a dot."""
    if not (checkout / ".git").exists():
        checkout.mkdir(parents=True, exist_ok=True)
        git(checkout, "init", "-q")
    for name, content in files.items():
        path = checkout / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    git(checkout, "add", "-A")
    return checkout


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient() as client:
        yield client


@pytest.fixture
def services(queue: Queue, http: httpx.AsyncClient, upstream: Upstream, tmp_path: Path) -> Services:
    settings = Settings(
        checkouts=(tmp_path / "checkout",),
        github=GitHubSettings(url=upstream.url, token=SecretStr("ghp_hunter2")),
        watch_interval=timedelta(hours=6),
    )
    return Services(settings, queue, http)


async def tasks(queue: Queue) -> list[Task]:
    return [task for task in await queue.tasks() if task.surface == "upstream-watcher"]


async def later(queue: Queue) -> None:
    """A round later: nothing that was heard is fresh any more, and no limit holds."""
    async with queue.connection() as connection:
        await connection.execute("UPDATE tracekit.upstreams SET checked_at = checked_at - interval '6 hours'")
        await connection.execute(
            "UPDATE tracekit.upstreams SET state = jsonb_build_object('until', clock_timestamp() - interval '1 second')"
            " WHERE state ? 'until'"
        )


async def run(queue: Queue, services: Services) -> Outcome:
    await accept(queue, "upstream-watcher")
    position = await take(queue, "upstream-watcher")
    outcome = await UpstreamWatcher(services).run(Hop(position, NoInput(), services, structlog.get_logger()))
    assert await settle(queue, position, outcome)
    return outcome


# --- finding --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        f"# workaround: {ISSUE} — remove when closed",
        f"x = 1  # Workaround: {ISSUE} – remove when closed.",
        f"    // workaround: {ISSUE} - remove when closed",
        f"-- workaround: {ISSUE} -- remove when closed\r",
        f"; workaround: {ISSUE}—remove when   closed  ",
        f"/* workaround: {ISSUE} — remove when closed */",
        f" * workaround: {ISSUE} — REMOVE WHEN closed",
        f"<!-- workaround: {ISSUE} — remove when closed -->",
    ],
)
def test_every_way_to_write_one(line: str) -> None:
    [(number, url, condition)] = in_text(f"a\x0bb\u2028c\n{line}\n")
    assert (number, url, condition) == (2, ISSUE, "closed")


@pytest.mark.parametrize(
    "line",
    [
        f"workaround: {ISSUE} — remove when closed",
        f"# workaround: {ISSUE}",
        f"# workaround: {ISSUE} remove when closed",
        "# workaround: see the wiki — remove when closed",
        f"# a workaround for {ISSUE} — remove when closed",
        f"# workaround: {ISSUE} — remove when closed" + " " * 2_000,
        "# workaround: http" + "s://-" * 400,
    ],
)
def test_what_is_none(line: str) -> None:
    assert list(in_text(line)) == []


async def test_tracked_text_files_are_read_and_nothing_else(tmp_path: Path) -> None:
    line = f"# workaround: {ISSUE} — remove when closed\n"
    checkout = commit(
        tmp_path / "checkout",
        app__values_yaml="a: 1\n" + line + "b: 2\n" + line,
        other_py=line,
        binary_bin=line.encode() + b"\0",
        large_txt=line * 30_000,
        latin_txt=b"\xe9 " + line.encode(),
    )
    (checkout / "untracked.py").write_text(line)
    (tmp_path / "outside").write_text(line)
    (checkout / "link.py").symlink_to(tmp_path / "outside")
    os.mkfifo(checkout / "pipe.py")
    (checkout / "gone.py").write_text(line)
    (checkout / "ü\n.py").write_text(line)
    git(checkout, "add", "link.py", "gone.py", "ü\n.py")
    (checkout / "gone.py").unlink()
    git(checkout, "remote", "add", "origin", "https://rob:hunter2@git.example/owner/home.git")
    found = {workaround.file: workaround for workaround in await find_workarounds(checkout)}
    assert {file: workaround.lines for file, workaround in found.items()} == {
        "app/values.yaml": (2, 4),
        "other.py": (1,),
        "latin.txt": (1,),
        "ü\n.py": (1,),
    }
    assert found["app/values.yaml"].places == "app/values.yaml:2,4"
    assert {workaround.repository for workaround in found.values()} == {"https://[redacted]@git.example/owner/home"}


async def test_a_checkout_cannot_make_git_run_its_programs(tmp_path: Path) -> None:
    checkout = commit(tmp_path / "checkout", a_py="")
    program = tmp_path / "monitor"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path / 'ran'}\n")
    program.chmod(0o755)
    git(checkout, "config", "core.fsmonitor", str(program))
    assert await find_workarounds(checkout) == []
    assert not (tmp_path / "ran").exists()


async def test_a_directory_that_is_no_checkout_is_said(tmp_path: Path) -> None:
    with pytest.raises(CheckoutError, match="there is no checkout at"):
        await find_workarounds(tmp_path / "absent")
    (tmp_path / "plain").mkdir()
    with pytest.raises(CheckoutError, match="git cannot read"):
        await find_workarounds(tmp_path / "plain")


def test_a_workaround_keeps_its_key_when_its_checkout_or_its_line_moves() -> None:
    here = Workaround("home", "a.py", (3,), ISSUE, "closed")
    assert here.key == Workaround("/elsewhere", "a.py", (7, 9), ISSUE, "Closed").key
    others = [
        Workaround("home", "b.py", (3,), ISSUE, "closed"),
        Workaround("home", "a.py", (3,), f"{ISSUE}3", "closed"),
        Workaround("home", "a.py", (3,), ISSUE, "released"),
    ]
    assert len({here.key, *(other.key for other in others)}) == 4


# --- judging --------------------------------------------------------------------------------------------------------


async def judge(services: Services, url: str, condition: str) -> str | None:
    github = GitHub(services, fresh=timedelta(0))
    return await found_upstream(Workaround("home", "a.py", (1,), url, condition), github)


SAID: list[tuple[str, str, dict[str, Any], str | None]] = [
    ("issues/12", "closed", {"issues/12": issue()}, "it was closed as completed at 2026-11-01T10:00:00Z"),
    (
        "issues/12#issuecomment-1",
        "the issue is closed",
        {"issues/12": issue(state_reason="not_planned")},
        "it was closed as not planned at 2026-11-01T10:00:00Z",
    ),
    ("issues/12", "closed", {"issues/12": issue("open")}, None),
    ("pull/13", "merged", {"pulls/13": pull(merged=True)}, "it was merged at 2026-11-01T10:00:00Z"),
    ("pull/13", "merged", {"pulls/13": pull(merged=False)}, None),
    ("pull/13", "closed", {"pulls/13": pull(merged=False)}, "it was closed at 2026-11-01T10:00:00Z"),
    (
        "issues/13",
        "merged",
        {"issues/13": issue(pull_request={"merged_at": "2026-11-01T10:00:00Z"})},
        "it was merged at 2026-11-01T10:00:00Z",
    ),
    ("releases/tag/v2.1", "released", {"releases/tags/v2.1": release("v2.1")}, "v2.1 was released"),
    ("releases/tag/v2.1", "released", {}, None),
    ("releases/tag/v2.1", "released", {"releases/tags/v2.1": release("v2.1", draft=True)}, None),
    ("", "released 2.1", {"releases?per_page=30": [release("v2.1.0")]}, "v2.1.0 was released"),
    ("releases", "2.1 is released", {"releases?per_page=30": [release("chart-2.10")]}, "chart-2.10 was released"),
    ("issues/12", "released in v2.1", {"releases?per_page=30": [release("v2.0.9")]}, None),
    (
        "releases",
        "released 2.1",
        {"releases?per_page=30": [release("v2.2-rc.1", prerelease=True), release("nightly"), release("v1.9")]},
        None,
    ),
    (
        "releases",
        "released 2.2-rc.1",
        {"releases?per_page=30": [release("v2.2-rc.1", prerelease=True)]},
        "v2.2-rc.1 was released",
    ),
    (
        "issues/12",
        "released",
        {
            "issues/12": issue(),
            "releases?per_page=30": [
                release("v3", "2026-11-09T00:00:00Z"),
                release("v2", "2026-11-02T00:00:00Z"),
                release("v2-rc", "2026-11-01T12:00:00Z", prerelease=True),
                release("v1", "2026-10-01T00:00:00Z"),
            ],
        },
        "it ended at 2026-11-01T10:00:00Z and v2 was released after it",
    ),
    (
        "issues/12",
        "released",
        {"issues/12": issue(), "releases?per_page=30": [release("v1", "2026-10-01T00:00:00Z")]},
        None,
    ),
    ("issues/12", "released", {"issues/12": issue("open"), "releases?per_page=30": [release("v9")]}, None),
]
"""Address, condition, what is there, and what is found; one database serves them all."""


async def test_what_upstream_says(services: Services, upstream: Upstream) -> None:
    for url, condition, things, found in SAID:
        upstream.things = {f"/repos/owner/project/{path}": thing for path, thing in things.items()}
        upstream.remaining = 60
        seen = await judge(services, f"https://github.com/owner/project/{url}".rstrip("/"), condition)
        assert (seen or "").startswith(found) if found else seen is None, f"{url} {condition}: {seen}"


UNREADABLE = [
    ("https://gitlab.com/owner/project/issues/1", "closed", "no issue, pull request or release on github.com"),
    ("https://github.com/owner/../issues/1", "closed", "no issue, pull request or release on github.com"),
    ("https://github.com/owner/project/wiki", "closed", "no issue, pull request or release on github.com"),
    (ISSUE, "fixed", "neither closed, merged nor released"),
    (ISSUE, "merged", "an issue is closed, not merged"),
    ("https://github.com/owner/project", "closed", "is never closed"),
    ("https://github.com/owner/project/releases", "released", "needs a version"),
    ("https://github.com/owner/project/issues/404", "closed", "no such issue or pull request"),
    ("https://github.com/owner/absent", "released 2", "no such repository"),
]


async def test_what_cannot_be_judged_says_why(services: Services, upstream: Upstream) -> None:
    upstream.things = {"/repos/owner/project/issues/12": issue()}
    for url, condition, says in UNREADABLE:
        with pytest.raises(Unreadable, match=says):
            await judge(services, url, condition)


# --- rounds ---------------------------------------------------------------------------------------------------------


async def test_one_task_when_a_workaround_can_go_and_conditional_requests_until_then(
    services: Services, upstream: Upstream, queue: Queue, tmp_path: Path
) -> None:
    path = "/repos/owner/project/issues/12"
    line = f"# workaround: {ISSUE} — remove when closed\n"
    checkout = commit(tmp_path / "checkout", app__values_yaml="a: 1\n" + line, b_py=line)
    upstream.things = {path: issue("open")}
    source = CheckoutSource(services)

    assert await source.poll() == 0
    assert upstream.asked == {(path, 200): 1}, "one address is asked once a round"
    assert await source.poll() == 0
    assert upstream.asked == {(path, 200): 1}, "what was just asked is not asked again"
    await later(queue)
    assert await source.poll() == 0
    assert upstream.asked == {(path, 200): 1, (path, 304): 1}
    assert await tasks(queue) == []

    upstream.things = {path: issue()}
    await later(queue)
    assert await source.poll() == 2
    await later(queue)
    assert await source.poll() == 0
    assert upstream.asked == {(path, 200): 2, (path, 304): 2}
    assert upstream.tokens == {"Bearer ghp_hunter2"}
    filed = {task.intent: task for task in await tasks(queue)}
    why = f"it waits for {ISSUE} (closed), and it was closed as completed at 2026-11-01T10:00:00Z"
    assert set(filed) == {
        f"Remove the workaround at app/values.yaml:2 in checkout: {why}",
        f"Remove the workaround at b.py:1 in checkout: {why}",
    }
    assert {(task.origin, task.requester, task.rank) for task in filed.values()} == {("scheduled", "system", 0)}
    given = (await take(queue, "router")).input["workaround"]
    assert (given["url"], given["condition"], given["lines"]) == (
        ISSUE,
        "closed",
        [2] if "app" in given["file"] else [1],
    )

    # The line moves, the checkout moves: the task stays the one that was filed.
    moved = checkout.rename(tmp_path / "elsewhere")
    commit(moved, b_py="\n\n" + line)
    elsewhere = Services(services.settings.model_copy(update={"checkouts": (moved,)}), queue, services.http)
    assert await CheckoutSource(elsewhere).poll() == 0


async def test_a_renamed_repository_is_followed(
    services: Services, upstream: Upstream, queue: Queue, tmp_path: Path
) -> None:
    commit(tmp_path / "checkout", a_py=f"# workaround: {ISSUE} — remove when closed\n")
    upstream.moved = {"/repos/owner/project/issues/12": "/repositories/7/issues/12"}
    upstream.things = {"/repositories/7/issues/12": issue()}
    assert await CheckoutSource(services).poll() == 1


@pytest.mark.parametrize("skew", [0, 86_400])
async def test_the_primary_limit_is_kept_until_github_s_own_clock_says_so(
    services: Services, upstream: Upstream, queue: Queue, tmp_path: Path, skew: int
) -> None:
    commit(tmp_path / "checkout", a_py=f"# workaround: {ISSUE} — remove when closed\n")
    upstream.things = {"/repos/owner/project/issues/12": issue()}
    upstream.remaining, upstream.skew = 0, skew
    outcome = await run(queue, services)
    assert isinstance(outcome, RetryLater)
    assert timedelta(minutes=29) < outcome.delay <= timedelta(minutes=31)
    assert upstream.asked.total() == 1

    # Every process knows, and nobody asks before the time.
    assert await CheckoutSource(services).poll() == 0
    assert upstream.asked.total() == 1
    await later(queue)
    upstream.remaining = 60
    assert await CheckoutSource(services).poll() == 1


async def test_the_last_request_of_an_hour_is_the_last_that_is_made(
    services: Services, upstream: Upstream, queue: Queue, tmp_path: Path
) -> None:
    lines = [f"# workaround: {ISSUE}{number} — remove when closed" for number in range(4)]
    commit(tmp_path / "checkout", a_py="\n".join(lines))
    upstream.things = {f"/repos/owner/project/issues/12{number}": issue() for number in range(4)}
    upstream.remaining = 2
    done = await watch(services, fresh=timedelta(hours=3))
    assert (len(done.filed), upstream.asked.total(), done.failures) == (2, 2, [])
    assert done.limited is not None
    async with queue.connection() as connection:
        await connection.execute("DELETE FROM tracekit.upstreams WHERE state ? 'until'")
    upstream.remaining = 60
    done = await watch(services, fresh=timedelta(hours=3))
    assert (len(done.filed), done.can_go, upstream.asked.total()) == (2, 4, 4)


@pytest.mark.parametrize(("told", "rest"), [(5, timedelta(minutes=1)), (600, timedelta(minutes=10))])
async def test_the_secondary_limit_is_respected_too(
    services: Services, upstream: Upstream, queue: Queue, tmp_path: Path, told: int, rest: timedelta
) -> None:
    commit(tmp_path / "checkout", a_py=f"# workaround: {ISSUE} — remove when closed\n")
    upstream.secondary = told
    outcome = await run(queue, services)
    assert isinstance(outcome, RetryLater)
    assert outcome.delay == rest


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        ((500, b""), "GitHub answered 500"),
        ((401, b'{"message":"Bad credentials"}'), "GitHub answered 401"),
        ((403, b'{"message":"Resource not accessible"}'), "GitHub answered 403"),
        ((200, b"<html>"), "did not answer JSON"),
        ((200, b'{"state": "odd"}'), "not understood"),
        ((200, b"[" * 10_000), "did not answer JSON"),
    ],
)
async def test_trouble_upstream_fails_a_task_and_lets_a_round_go_on(
    services: Services, upstream: Upstream, queue: Queue, tmp_path: Path, broken: tuple[int, bytes], says: str
) -> None:
    commit(tmp_path / "checkout", a_py=f"# workaround: {ISSUE} — remove when closed\n")
    upstream.broken = broken
    assert await CheckoutSource(services).poll() == 0
    with pytest.raises(WatcherError, match=says) as failed:
        await run(queue, services)
    assert "hunter2" not in str(failed.value)
    upstream.broken = None
    upstream.things = {"/repos/owner/project/issues/12": issue()}
    assert await CheckoutSource(services).poll() == 1


async def test_one_bad_checkout_does_not_stop_the_others(
    services: Services, upstream: Upstream, queue: Queue, tmp_path: Path
) -> None:
    good = commit(tmp_path / "good", a_py=f"# workaround: {ISSUE} — remove when closed\n")
    upstream.things = {"/repos/owner/project/issues/12": issue()}
    settings = services.settings.model_copy(update={"checkouts": (tmp_path / "absent", good)})
    done = await watch(Services(settings, queue, services.http), fresh=timedelta(0))
    assert len(done.filed) == 1
    assert [failure.split(" at ")[0] for failure in done.failures] == ["there is no checkout"]


async def test_as_a_mode_it_says_what_it_found(
    services: Services, upstream: Upstream, queue: Queue, tmp_path: Path
) -> None:
    commit(
        tmp_path / "checkout",
        a_py=f"# workaround: {ISSUE} — remove when closed\n# workaround: {ISSUE} — remove when pigs fly\n",
    )
    upstream.things = {"/repos/owner/project/issues/12": issue()}
    assert await run(queue, services) == Done(summary="Of 2 workarounds 1 can go; 1 cannot be judged. Tasks filed: 1.")


async def test_without_checkouts_nothing_is_watched(queue: Queue, http: httpx.AsyncClient) -> None:
    services = Services(Settings(), queue, http)
    assert UpstreamWatcher(services).sources() == []
    assert await run(queue, services) == GiveUp("no checkout is configured: set `checkouts`")


async def test_what_nothing_asks_for_any_more_is_forgotten(
    services: Services, upstream: Upstream, queue: Queue, tmp_path: Path
) -> None:
    commit(tmp_path / "checkout", a_py="")
    async with queue.connection() as connection:
        await connection.execute(
            "INSERT INTO tracekit.upstreams (url, checked_at)"
            " VALUES ('old', now() - interval '91 days'), ('new', now())"
        )
        await watch(services, fresh=timedelta(0))
        cursor = await connection.execute("SELECT url FROM tracekit.upstreams")
        assert await cursor.fetchall() == [("new",)]

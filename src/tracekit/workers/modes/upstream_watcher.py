"""The upstream-watcher: finds workarounds in checkouts, asks upstream whether they can go, and files a task when so.

What a workaround looks like is told in `tracekit.workers.workarounds`, what it may wait for in
`tracekit.workers.upstream`. What only looks like one (another host, no such word) is logged at each round and files
nothing.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from datetime import timedelta

import structlog
from opentelemetry.instrumentation.utils import suppress_http_instrumentation

from tracekit import ids
from tracekit.envelope import Envelope, Origin, Priority, TaskRequest
from tracekit.errors import TracekitError
from tracekit.queue import Done, GiveUp, Outcome, RetryLater, Submission
from tracekit.workers.github import GitHub, GitHubError, RateLimited
from tracekit.workers.mode import Hop, Mode, NoInput, Services, Source
from tracekit.workers.upstream import Unreadable, found_upstream
from tracekit.workers.workarounds import CheckoutError, Workaround, find_workarounds

log = structlog.get_logger()

SURFACE = "upstream-watcher"

MOST_WORKAROUNDS = 1_000
"""Workarounds of all checkouts together."""


class WatcherError(TracekitError):
    """A round in which something could not be read or asked."""


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
        except CheckoutError as error:
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
        except GitHubError as error:
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
        requester=services.settings.system_principal,
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

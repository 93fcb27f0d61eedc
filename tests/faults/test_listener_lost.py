"""The listener's connection lost and all others well: it is reset, or dies without a word (Q9, Q10)."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta

import pytest

from tests.faults.aftermath import Aftermath, aftermath
from tests.faults.database import rows, state
from tests.faults.load import MODES, SETTINGS
from tests.faults.network import Network, network
from tests.faults.running import Running, running
from tests.queue.driving import accept
from tests.support.processes import eventually
from tracekit.config import WorkerSettings
from tracekit.postgres import Pool
from tracekit.queue.listener import ListenerState

INTERVAL, TIMEOUT = timedelta(milliseconds=400), timedelta(milliseconds=800)
"""Of the listener's self-test."""
PATIENT = SETTINGS.model_copy(update={"poll_interval": timedelta(minutes=5)})
"""What is not announced stays where it is for the length of any test."""
POLLING = SETTINGS.model_copy(update={"poll_interval": timedelta(seconds=1)})


@asynccontextmanager
async def listening(
    dsn: str, pool: Pool, request: pytest.FixtureRequest, settings: WorkerSettings = PATIENT
) -> AsyncIterator[tuple[Running, Aftermath, Network]]:
    """A worker that LISTENs over a network, and reaches the database by a way that holds for all else."""
    async with AsyncExitStack() as stack:
        after = await stack.enter_async_context(aftermath(request, pool, dsn))
        over, between = await stack.enter_async_context(network(dsn))
        here = await stack.enter_async_context(
            running(dsn, MODES, settings, listen_dsn=over, test_interval=INTERVAL, test_timeout=TIMEOUT)
        )
        await eventually(becomes(here, ListenerState.LISTENING), "it listens")
        yield here, after, between
        await after.until_ended()
        await after.check(shippers_cut=10)


def becomes(here: Running, wanted: ListenerState) -> Callable[[], Awaitable[bool]]:
    async def look() -> bool:
        return here.listener.state is wanted and here.worker.listener_state == wanted.value

    return look


async def takes(here: Running, after: Aftermath) -> float:
    """Seconds from an enqueue to the task's end."""
    began = time.monotonic()
    task_id = await accept(here.queue, "fast")
    after.ends[task_id] = "done"
    await is_done(after.pool, task_id)
    return time.monotonic() - began


async def is_done(pool: Pool, task_id: str) -> None:
    async def look() -> bool:
        return await state(pool, task_id) == "done"

    await eventually(look, "the task ends")


async def test_a_listener_that_is_reset_listens_again_and_looks_at_once_Q9_Q10(
    dsn: str, pool: Pool, request: pytest.FixtureRequest
) -> None:
    """With a poll of minutes: what came meanwhile is found by the look after LISTEN, what comes then by NOTIFY."""
    async with listening(dsn, pool, request) as (here, after, between):
        between.closed = True
        between.reset()
        reset = time.monotonic()
        await eventually(becomes(here, ListenerState.POLLING), "it knows")
        noticed = time.monotonic() - reset
        missed = await accept(here.queue, "fast")
        after.ends[missed] = "done"
        between.closed = False
        back = time.monotonic()
        await is_done(pool, missed)
        found = time.monotonic() - back
        await eventually(becomes(here, ListenerState.LISTENING), "it listens again")
        listened = time.monotonic() - back
        told = [await takes(here, after) for _ in range(3)]
        after.report(
            f"listener reset: noticed after {noticed:.2f} s; listened {listened:.1f} s after it could, what was missed"
            f" was done {found:.1f} s after; then woken and done in {max(told):.2f} s at most"
        )


async def test_a_listener_that_dies_silently_is_found_out_and_replaced_Q9(
    dsn: str, pool: Pool, request: pytest.FixtureRequest
) -> None:
    """Nothing closes and nothing fails: only its own test tells it, and it says so until it listens again."""
    async with listening(dsn, pool, request, POLLING) as (here, after, between):
        between.closed = True
        between.silence()
        silenced = time.monotonic()
        deaf = await takes(here, after)
        await eventually(becomes(here, ListenerState.POLLING), "its test finds it out")
        noticed = time.monotonic() - silenced
        polled = [await takes(here, after) for _ in range(2)]

        async def said() -> bool:
            return await rows(pool, "SELECT listener FROM tracekit.workers") == [("polling",)]

        await eventually(said, "the record says that it polls")
        between.closed = False
        healed = time.monotonic()
        await eventually(becomes(here, ListenerState.LISTENING), "it listens again")
        back = time.monotonic() - healed
        told = [await takes(here, after) for _ in range(4)]
        after.report(
            f"listener silent: done after {deaf:.1f} s before anybody knew, found out after {noticed:.1f} s,"
            f" {max(polled):.1f} s a task by the poll; listened {back:.1f} s after it could,"
            f" then {max(told):.2f} s a task"
        )

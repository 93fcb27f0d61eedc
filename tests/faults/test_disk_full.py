"""The disk is full for a while (Q1, Q10)."""

from __future__ import annotations

import secrets
import time
from contextlib import AsyncExitStack

import psycopg
import pytest

from tests.faults.aftermath import aftermath
from tests.faults.disk import SmallDisk
from tests.faults.load import MODES, SETTINGS, Load, worked_after
from tests.faults.running import running
from tests.support.processes import background
from tracekit.postgres import migrate, open_pool
from tracekit.queue import Queue
from tracekit.workers.loops import keep

TEXT = secrets.token_hex(3_000)
"""What each task carries: pages do not last long, and it does not compress."""


async def test_a_full_disk_refuses_and_forgets_nothing_Q1_Q10(request: pytest.FixtureRequest) -> None:
    """First tables cannot grow; where the write-ahead log cannot either, the server dies until there is space. Then all
    goes on by itself.
    """
    async with AsyncExitStack() as stack:
        disk = await stack.enter_async_context(SmallDisk())
        await migrate(disk.server.dsn)
        pool = await open_pool(disk.server.dsn, min_size=1, max_size=4, name="load", autocommit=True)
        await stack.enter_async_context(pool)
        after = await stack.enter_async_context(aftermath(request, pool, disk.server.dsn))
        await stack.enter_async_context(background(keep("embedded server", disk.ensure, pause=2)))
        await stack.enter_async_context(running(disk.server.dsn, MODES, SETTINGS))
        load = Load(Queue(pool, timeout=SETTINGS.database_timeout), text=TEXT)
        async with load.flowing():
            await load.until_accepted(40)
            await disk.fill()
            full = time.time()
            await load.until_refused()
            refused, said = time.time() - full, load.last_refusal
            # Whatever is left of pages and log files is used up meanwhile.
            for _ in range(2):
                await load.until_refused()
            if disk.is_mounted:
                await disk.use_up_log()
                for _ in range(2):
                    await load.until_refused()
            accepted = len(load.receipts)
            await disk.free()
            freed = time.time()
            await load.until_accepted(40)
        assert isinstance(said, psycopg.Error)
        assert "Check free disk space" in (said.diag.message_hint or "") or "No space left" in str(said)
        await load.ends_well(after, broken=5)
        after.report(
            f"disk full ({'a file system' if disk.is_mounted else 'a limit on files'}): refused after {refused:.1f} s"
            f" with {type(said).__name__}, {accepted} accepted until there was space,"
            f" first receipt {load.accepted_after(freed):.1f} s, first attempt ended"
            f" {await worked_after(pool, freed):.1f} s after it"
        )

"""Servers that may be stopped under their users, and worker processes."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.faults.aftermath import Aftermath, aftermath
from tests.faults.breaking import BreakableServer
from tests.support.postgres import ThrowawayServer
from tests.support.processes import Process
from tracekit.postgres import Pool, migrate

StartWorker = Callable[..., Awaitable[Process]]


@pytest.fixture(scope="session")
async def breakable() -> AsyncIterator[BreakableServer]:
    """A server whose users know that it goes down now and then."""
    with ThrowawayServer() as server:
        await migrate(server.create_database("migrated"))
        yield BreakableServer(server)


@pytest.fixture
def breakable_dsn(breakable: BreakableServer) -> str:
    """A fresh, migrated database on it."""
    return breakable.server.create_database(template="migrated")


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    """The file that stands for the outside world (see `tests.faults.modes`)."""
    return tmp_path / "ledger"


@pytest.fixture
async def start_worker(tmp_path: Path, ledger: Path) -> AsyncIterator[StartWorker]:
    """Starts worker processes, which are killed after the test: `await start_worker(dsn, *arguments)`."""
    numbers = itertools.count(1)
    async with AsyncExitStack() as stack:

        async def start(dsn: str, *arguments: str, ready: bool = True) -> Process:
            process = await Process.start(
                "tests.faults.worker",
                f"--dsn={dsn}",
                *arguments,
                log=tmp_path / f"worker-{next(numbers)}.log",
                env={"TRACEKIT_TEST_LEDGER": str(ledger)},
            )
            await stack.enter_async_context(process)
            if ready:
                await process.prints()
            return process

        yield start


@pytest.fixture
async def after(request: pytest.FixtureRequest, pool: Pool, dsn: str) -> AsyncIterator[Aftermath]:
    """What must hold in the test's database when all is well again."""
    async with aftermath(request, pool, dsn) as found:
        yield found

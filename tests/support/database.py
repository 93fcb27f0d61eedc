"""Fixtures: one real server for the run, one migrated template, a fresh database for each test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from datetime import timedelta

import psycopg
import pytest

from tests.support.postgres import ThrowawayServer
from tracekit.postgres import Pool, connect, migrate, open_pool
from tracekit.queue import Queue
from tracekit.queue.retention import keep_history


@pytest.fixture(scope="session")
def postgres() -> Iterator[ThrowawayServer]:
    """A server that all tests share which do not stop it."""
    with ThrowawayServer() as server:
        # A database a test: each is made and dropped with a checkpoint, and waiting for the disk is most of that. What
        # a commit promises is tested on servers of the tests' own, with fsync on.
        with psycopg.connect(server.dsn, autocommit=True) as connection:
            connection.execute("ALTER SYSTEM SET fsync = off")
            connection.execute("SELECT pg_reload_conf()")
        yield server


@pytest.fixture(scope="session")
async def template(postgres: ThrowawayServer) -> str:
    """The name of a migrated database, to be copied."""
    dsn = postgres.create_database("migrated")
    await migrate(dsn)
    # As the first process to run on it would: a test's database is to look the same before and after one has run.
    async with await connect(dsn, autocommit=True) as connection:
        await keep_history(connection, timedelta(days=90))
    return "migrated"


_used: list[str] = []
"""Databases that tests are done with, emptied."""

EMPTY = """
DO $$ BEGIN
    EXECUTE (SELECT 'TRUNCATE ' || string_agg(format('%I.%I', schemaname, tablename), ', ') || ' RESTART IDENTITY'
             FROM pg_tables WHERE schemaname = 'tracekit' AND tablename <> 'schema_migrations');
END $$;
"""
"""Takes all rows of a migrated database away."""

_LET_GO = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid();
"""


_SHAPE = """
SELECT string_agg(relkind::text || relname, ' ' ORDER BY relname), (SELECT count(*) FROM tracekit.schema_migrations)
FROM pg_class WHERE relnamespace IN ('tracekit'::regnamespace, 'grafana'::regnamespace)
"""
"""What a test that broke the schema on purpose leaves different."""


def _shape(dsn: str) -> object:
    with psycopg.connect(dsn) as connection:
        return connection.execute(_SHAPE).fetchone()


@pytest.fixture
def dsn(postgres: ThrowawayServer, template: str) -> Iterator[str]:
    """A migrated database of the test's own, empty."""
    mine = _used.pop() if _used else postgres.create_database(template=template)
    shape = _shape(mine)
    yield mine
    if _shape(mine) != shape:
        postgres.drop_database(mine)
        return
    with psycopg.connect(mine, autocommit=True) as connection:
        connection.execute(_LET_GO)
        connection.execute(EMPTY)
    _used.append(mine)


@pytest.fixture
async def pool(dsn: str) -> AsyncIterator[Pool]:
    """Connections to the test's database, as a worker has them."""
    opened = await open_pool(dsn, min_size=1, max_size=8, name="test", autocommit=True)
    yield opened
    await opened.close()


@pytest.fixture
async def queue(pool: Pool) -> Queue:
    """The queue of the test's database."""
    return Queue(pool)

"""Bringing the schema up to date, and refusing to work on one that does not fit the program.

A program fits one version of the schema, and no other. What keeps an old one from writing into a
newer schema is a lock on each of its connections (`hold_schema`): shared among all programs at work,
exclusive to a migration. So a migration begins when nobody is at work, or with `force` when it has
cut them off; and whoever connects during or after it sees the new version before anything else.
That costs a statement or two for each connection, none for each transaction.

The lock belongs to the session that does the writing: lost with it, it protects nothing that could
still write. A lock on some other connection, such as the listener's, could be lost while the pool
works on. Through a pooler in transaction mode there are no sessions: a lock would stay behind with
one of the server's connections after its program has gone. Programs there take none and look at the
version now and then; what they write in between fails where a migration changed the tables.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import LiteralString

import psycopg
from psycopg import pq

from .connection import Connection, connect
from .errors import DatabaseError, SchemaChangedError, SchemaInUseError, SchemaOutdatedError, SchemaTooNewError

MIGRATIONS = Path(__file__).parent / "migrations"

# "tracekit" as a number, for one migration at a time, and the next one for those who use the schema.
# The same in every version of the program.
_LOCK_KEY = int.from_bytes(b"tracekit")
_USERS_KEY = _LOCK_KEY + 1

_LEAVE = timedelta(seconds=2)
"""How long a migration waits for programs that are just going."""

_ADMISSION_S = 25.0
"""How long a new connection waits for a migration to be done. Less than the pool waits for it."""

_CUTS = 30
_CUT = timedelta(seconds=1)
"""Rounds of cutting off who is connected, and their length. One will do, but for a server that is slow to end them."""

_NAME = re.compile(r"(\d{4})_([a-z0-9_]+)\.sql")


@dataclass(frozen=True)
class Migration:
    """One numbered file. `checksum` is the SHA-256 of `sql`, its line ends as newlines."""

    version: int
    name: str
    sql: bytes

    @property
    def checksum(self) -> str:
        """What is recorded, to find out later that the file was changed."""
        return hashlib.sha256(self.sql).hexdigest()


@dataclass(frozen=True)
class _Applied:
    version: int
    name: str
    checksum: str


def read_migrations(directory: Path = MIGRATIONS) -> list[Migration]:
    """The migrations in a directory, in order. Raises DatabaseError unless they are 0001, 0002, …"""
    found: list[Migration] = []
    for path in sorted(directory.glob("*.sql")):
        match = _NAME.fullmatch(path.name)
        if match is None:
            raise DatabaseError(f"{path.name} is not the name of a migration: 0001_name.sql")
        sql = path.read_bytes().replace(b"\r\n", b"\n")
        found.append(Migration(int(match[1]), match[2], sql))
        if found[-1].version != len(found):
            raise DatabaseError(f"{path.name} should be migration {len(found):04}")
    return found


async def migrate(
    conn_or_dsn: Connection | str,
    *,
    directory: Path = MIGRATIONS,
    force: bool = False,
    patience: timedelta = timedelta(seconds=30),
) -> list[Migration]:
    """Applies what is missing, all of it or nothing, and returns what that was.

    Safe to run from several processes at once: one does it, the others wait and find it done. The
    role needs the right to create in the database (or to own the schema `tracekit`), no more. A
    given connection has to be outside of a transaction. `patience`: how long to wait for each table
    that is in use.

    Where programs are at work (`hold_schema`), nothing is changed and SchemaInUseError names them;
    with `force` their connections are cut, and they end by themselves.

    Raises SchemaTooNewError or SchemaChangedError where the database has something else than this
    program's past, DatabaseError where a migration fails.
    """
    migrations = read_migrations(directory)
    async with _connection(conn_or_dsn) as conn, _transaction(conn):
        # Afterwards every statement has to see what the process before us committed. A role may
        # have another isolation level or a time limit of its own set.
        await conn.execute("SET TRANSACTION ISOLATION LEVEL READ COMMITTED, READ WRITE")
        await conn.execute("SET LOCAL statement_timeout = 0")
        await _end_with_client(conn)
        await _lock(conn, _LOCK_KEY, timedelta(minutes=5), "another migration has been running for 5 minutes")
        await _create_record(conn)
        applied = await _applied(conn)
        missing = _missing(migrations, applied)
        if missing:
            step = f"from version {applied[-1].version if applied else 0} to {migrations[-1].version}"
            await _have_it_alone(conn, step, force)
            # A table's lock that is not to be had soon is held by somebody at work; and while we
            # queue for it, everybody else queues behind us.
            await _set_lock_timeout(conn, patience)
        for migration in missing:
            await _apply(conn, migration, patience)
        return missing


async def hold_schema(conn: Connection, *, directory: Path = MIGRATIONS) -> None:
    """Keeps the schema as it is for as long as `conn` is open; returns if it fits this program.

    Waits for a migration that is running. `conn` must not lead through a pooler in transaction mode.
    Raises as `check_schema`, and DatabaseError where the migration takes long; then close `conn`.
    """
    try:
        async with asyncio.timeout(_ADMISSION_S):
            # Behind whoever migrates, from its beginning: those that it cuts off must not be back before it has begun.
            # The subquery is read first, and its lock goes with the statement's transaction.
            await conn.execute(
                "SELECT pg_advisory_lock_shared(%s) FROM (SELECT pg_advisory_xact_lock_shared(%s) OFFSET 0) AS gate",
                [_USERS_KEY, _LOCK_KEY],
            )
    except TimeoutError as exc:
        raise DatabaseError(
            "the database's schema is being migrated at this moment",
            hint="Try again when `tracekit db migrate` has ended.",
        ) from exc
    # The version is looked at in a transaction that begins after the lock was had.
    await conn.commit()
    await check_schema(conn, directory=directory)


async def check_schema(conn_or_dsn: Connection | str, *, directory: Path = MIGRATIONS) -> None:
    """Returns if the schema is exactly the one that this program was written for.

    Raises SchemaOutdatedError, SchemaTooNewError or SchemaChangedError, each with what to do.
    """
    migrations = read_migrations(directory)
    async with _connection(conn_or_dsn) as conn, conn.transaction():
        missing = _missing(migrations, await _applied(conn))
    if missing:
        have, need = missing[0].version - 1, migrations[-1].version
        state = f"is at version {have}" if have else "has not been set up"
        raise SchemaOutdatedError(
            f"the database's schema {state}; this tracekit needs version {need}",
            hint="Run: tracekit db migrate",
        )


def _missing(migrations: Sequence[Migration], applied: Sequence[_Applied]) -> list[Migration]:
    """What is yet to be applied; raises if what was applied is not the beginning of ours."""
    newest = migrations[-1].version if migrations else 0
    if applied and applied[-1].version > newest:
        raise SchemaTooNewError(
            f"the database's schema is at version {applied[-1].version}, and this tracekit knows {newest}",
            hint="Upgrade tracekit to the version that migrated the database, or a newer one.",
        )
    by_version = {migration.version: migration for migration in migrations}
    for past in applied:
        known = by_version.get(past.version)
        if known is None or known.checksum != past.checksum:
            raise SchemaChangedError(
                f"migration {past.version:04}_{past.name} is not the one that was applied to the database",
                hint="Use a released tracekit; a migration is never changed once it was released. "
                "A development database is best dropped and migrated anew.",
            )
    done = {past.version for past in applied}
    return [migration for migration in migrations if migration.version not in done]


async def _create_record(conn: Connection) -> None:
    # CREATE SCHEMA IF NOT EXISTS asks for the right to create even if there is nothing to do.
    cursor = await conn.execute("SELECT to_regnamespace('tracekit') IS NULL")
    if (row := await cursor.fetchone()) and row[0]:
        await conn.execute("CREATE SCHEMA tracekit")
    cursor = await conn.execute("SELECT to_regclass('tracekit.schema_migrations') IS NULL")
    if (row := await cursor.fetchone()) and row[0]:
        await conn.execute(
            """
            CREATE TABLE tracekit.schema_migrations (
                version     int PRIMARY KEY,
                name        text NOT NULL,
                checksum    text NOT NULL,
                applied_at  timestamptz NOT NULL DEFAULT now()
            )
            """
        )


async def _applied(conn: Connection) -> list[_Applied]:
    cursor = await conn.execute("SELECT to_regclass('tracekit.schema_migrations') IS NULL")
    if (row := await cursor.fetchone()) and row[0]:
        return []
    cursor = await conn.execute("SELECT version, name, checksum FROM tracekit.schema_migrations ORDER BY version")
    return [_Applied(*row) for row in await cursor.fetchall()]


async def _have_it_alone(conn: Connection, step: str, force: bool) -> None:
    """Returns with the lock on the schema's users, until the transaction ends."""
    for _ in range(_CUTS if force else 1):
        if force:
            await conn.execute(f"SELECT pg_terminate_backend(pid) FROM ({_USERS}) AS users", [_USERS_KEY])
        try:
            # A failure ends no more than this inner transaction.
            async with conn.transaction():
                await _lock(conn, _USERS_KEY, _CUT if force else _LEAVE, "")
            return
        except _Waited:
            continue
    cursor = await conn.execute(
        f"SELECT name || ' (' || count(*) || ')' FROM ({_USERS}) AS users GROUP BY name ORDER BY name", [_USERS_KEY]
    )
    users = ", ".join(row[0] for row in await cursor.fetchall())
    raise SchemaInUseError(
        f"the schema has to go {step}, and programs are at work on it (connections): {users or 'gone by now'}",
        hint="Stop them (SIGTERM: they give back what they hold), then run: tracekit db migrate. "
        "`tracekit db migrate --force` cuts them off.",
    )


_USERS: LiteralString = """
    SELECT l.pid, coalesce(nullif(a.application_name, ''), 'unnamed') AS name
    FROM pg_locks AS l LEFT JOIN pg_stat_activity AS a USING (pid)
    WHERE l.locktype = 'advisory' AND l.granted AND l.pid <> pg_backend_pid() AND l.objsubid = 1
      AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
      AND (l.classid::bigint << 32 | l.objid::bigint) = %s
"""


class _Waited(DatabaseError):
    """A lock was not to be had in time."""


async def _lock(conn: Connection, key: int, patience: timedelta, waited: str) -> None:
    await _set_lock_timeout(conn, patience)
    try:
        await conn.execute("SELECT pg_advisory_xact_lock(%s)", [key])
    except psycopg.errors.LockNotAvailable as exc:
        raise _Waited(waited, hint="`tracekit db shell -c 'table pg_stat_activity'` shows it.") from exc


async def _set_lock_timeout(conn: Connection, patience: timedelta) -> None:
    await conn.execute("SELECT set_config('lock_timeout', %s, true)", [f"{round(patience.total_seconds() * 1000)}ms"])


async def _end_with_client(conn: Connection) -> None:
    # Killed, the process leaves a server's process that keeps its locks until the statement under way is done.
    with suppress(psycopg.errors.InvalidParameterValue):  # not on every system
        async with conn.transaction():
            await conn.execute("SET LOCAL client_connection_check_interval = '1s'")


async def _apply(conn: Connection, migration: Migration, patience: timedelta) -> None:
    label = f"{migration.version:04}_{migration.name}"
    try:
        await conn.execute(migration.sql)
    except psycopg.errors.LockNotAvailable as exc:
        raise DatabaseError(
            f"migration {label} waited {patience.total_seconds():g} s for a table that is in use: {exc}",
            hint="Stop the workers, then run: tracekit db migrate",
        ) from exc
    if conn.info.transaction_status != pq.TransactionStatus.INTRANS:
        raise DatabaseError(f"migration {label} ended the transaction that it runs in")
    await conn.execute(
        "INSERT INTO tracekit.schema_migrations (version, name, checksum) VALUES (%s, %s, %s)",
        [migration.version, migration.name, migration.checksum],
    )


@asynccontextmanager
async def _connection(conn_or_dsn: Connection | str) -> AsyncIterator[Connection]:
    conn = await connect(conn_or_dsn) if isinstance(conn_or_dsn, str) else conn_or_dsn
    try:
        yield conn
    except psycopg.Error as exc:
        # Without a code it is the connection that failed. A full disk has one, and is an operational error too.
        if isinstance(exc, psycopg.OperationalError) and exc.sqlstate is None:
            raise DatabaseError(f"the database did not answer: {exc}") from exc
        raise DatabaseError(f"the database refused: {exc}") from exc
    finally:
        if conn is not conn_or_dsn:
            await conn.close()


@asynccontextmanager
async def _transaction(conn: Connection) -> AsyncIterator[None]:
    if conn.info.transaction_status != pq.TransactionStatus.IDLE:
        raise DatabaseError("migrations need a connection that is not in a transaction")
    async with conn.transaction():
        yield

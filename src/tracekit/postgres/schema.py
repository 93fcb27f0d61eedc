"""Bringing the schema up to date, and refusing to work on one that does not fit the program."""

from __future__ import annotations

import hashlib
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
from psycopg import pq

from .connection import Connection, connect
from .errors import DatabaseError, SchemaChangedError, SchemaOutdatedError, SchemaTooNewError

MIGRATIONS = Path(__file__).parent / "migrations"

# "tracekit" as a number; the same in every version of the program.
_LOCK_KEY = int.from_bytes(b"tracekit")

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


async def migrate(conn_or_dsn: Connection | str, *, directory: Path = MIGRATIONS) -> list[Migration]:
    """Applies what is missing, all of it or nothing, and returns what that was.

    Safe to run from several processes at once: one does it, the others wait and find it done. The
    role needs the right to create in the database (or to own the schema `tracekit`), no more. A
    given connection has to be outside of a transaction.

    Raises SchemaTooNewError or SchemaChangedError where the database has something else than this
    program's past, DatabaseError where a migration fails.
    """
    migrations = read_migrations(directory)
    async with _connection(conn_or_dsn) as conn, _transaction(conn):
        # Afterwards every statement has to see what the process before us committed. A role may
        # have another isolation level or a time limit of its own set.
        await conn.execute("SET TRANSACTION ISOLATION LEVEL READ COMMITTED, READ WRITE")
        await conn.execute("SET LOCAL statement_timeout = 0")
        await conn.execute("SET LOCAL lock_timeout = '300s'")
        await conn.execute("SELECT pg_advisory_xact_lock(%s)", [_LOCK_KEY])
        # A table's lock that is not to be had soon is held by a program at work; and while we
        # queue for it, everybody else queues behind us.
        await conn.execute("SET LOCAL lock_timeout = '30s'")
        await _create_record(conn)
        missing = _missing(migrations, await _applied(conn))
        for migration in missing:
            await _apply(conn, migration)
        return missing


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


async def _apply(conn: Connection, migration: Migration) -> None:
    label = f"{migration.version:04}_{migration.name}"
    try:
        await conn.execute(migration.sql)
    except psycopg.errors.LockNotAvailable as exc:
        raise DatabaseError(
            f"migration {label} waited 30 s for a table that is in use: {exc}",
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
    except psycopg.OperationalError as exc:
        raise DatabaseError(f"the database did not answer: {exc}") from exc
    except psycopg.Error as exc:
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

"""Connections to the database: with time limits, to a writable server, of a version we know."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import psycopg
from psycopg import AsyncConnection
from psycopg.rows import TupleRow
from psycopg.types.json import set_json_loads
from psycopg_pool import AsyncConnectionPool, PoolTimeout
from pydantic_core import from_json

from .binaries import MINIMUM_MAJOR
from .dsn import redact_dsn, with_defaults
from .errors import UnreachableError, UnsupportedServerError

# Prepared is what asks for it (`prepare=True`), and nothing else however often it is executed: a plan that is kept was
# made for tables of the size that they had, so only statements are prepared that leave the planner no choice.
_PREPARE_AFTER = 2**31

# The pool doubles its waits, from 1 s and with jitter, up to this many seconds and then begins
# anew. Its default of 5 minutes would leave a server that is back unnoticed for over 2 minutes.
_RECONNECT_TIMEOUT_S = 20.0

# Our statements take less than a millisecond each. Where the planner expects too much of one, it would compile it for
# longer than it runs (`jit`), or plan a prepared one anew each time (`plan_cache_mode`); and a table that is small when
# a plan is made grows under it (`enable_seqscan`). Who is frozen in the middle of a transaction must not hold its locks
# for ever; a limit that is set already stays.
_SETTLE = """
SELECT set_config('jit', 'off', false), set_config('plan_cache_mode', 'force_generic_plan', false),
       set_config('enable_seqscan', 'off', false),
       set_config('idle_in_transaction_session_timeout',
                  coalesce(nullif(current_setting('idle_in_transaction_session_timeout'), '0'), '30s'), false)
"""

Connection = AsyncConnection[TupleRow]
Pool = AsyncConnectionPool[Connection]


async def connect(
    dsn: str, *, name: str = "", autocommit: bool = False, transaction_pooler: bool = False
) -> Connection:
    """One connection; see `open_pool` for what is set. `name` is its application_name.

    Raises UnreachableError or UnsupportedServerError; neither shows the password.
    """
    conninfo = with_defaults(dsn, application_name=name)
    try:
        conn = await AsyncConnection.connect(
            conninfo,
            autocommit=autocommit,
            prepare_threshold=_prepare_threshold(transaction_pooler),
        )
    except psycopg.OperationalError as exc:
        raise _unreachable(dsn, str(exc)) from exc
    try:
        check_version(conn)
        await _settle(conn)
    except BaseException:
        await conn.close()
        raise
    return conn


async def open_pool(
    dsn: str,
    *,
    min_size: int,
    max_size: int,
    name: str,
    autocommit: bool = False,
    transaction_pooler: bool = False,
    acquire_timeout: float = 30.0,
    admit: Callable[[Connection], Awaitable[None]] | None = None,
) -> Pool:
    """An open pool with `min_size` connections ready.

    A connection that broke is dropped when it is given back, not tested when it is taken: after
    the server was restarted, each idle connection fails once with OperationalError
    (`await pool.check()` weeds them out at one go). Broken ones are replaced with backoff and
    jitter, for as long as it takes. `acquire_timeout`: seconds to wait for a free connection before
    psycopg_pool.PoolTimeout, and for the first ones here.

    `transaction_pooler` turns off prepared statements, which a pooler in transaction mode breaks.
    `admit` gets each new connection before anybody else does, and leaves it idle; one that it
    raises for is closed and tried anew, as one that could not be made.

    Raises UnreachableError or UnsupportedServerError, neither of which shows the password, and
    what `admit` raises for a first connection.
    """

    async def admitted(conn: Connection) -> None:
        # The pool forgets a connection that it could not configure, and leaves it open.
        try:
            await _settle(conn)
            if admit:
                await admit(conn)
        except BaseException:
            await conn.close()
            raise

    # The pool would hide the reason behind a time-out.
    probe = await connect(dsn, name=name, autocommit=autocommit, transaction_pooler=transaction_pooler)
    try:
        if admit:
            await admit(probe)
    finally:
        await probe.close()
    pool: Pool = AsyncConnectionPool(
        with_defaults(dsn, application_name=name),
        kwargs={
            "autocommit": autocommit,
            "prepare_threshold": _prepare_threshold(transaction_pooler),
        },
        min_size=min_size,
        max_size=max_size,
        name=name,
        timeout=acquire_timeout,
        reconnect_timeout=_RECONNECT_TIMEOUT_S,
        configure=admitted,
        open=False,
    )
    try:
        await pool.open(wait=True, timeout=acquire_timeout)
    except PoolTimeout as exc:
        raise _unreachable(dsn, f"it did not give {min_size} connections within {acquire_timeout:g} s") from exc
    return pool


@asynccontextmanager
async def writable(pool: Pool) -> AsyncIterator[Connection]:
    """A connection of the pool for whoever writes. One that may not write any more is closed: after a switchover the
    old primary keeps its connections open, and only a new one leads to the new primary.
    """
    async with pool.connection() as conn:
        try:
            yield conn
        except psycopg.errors.ReadOnlySqlTransaction:
            await conn.close()
            raise


def is_away(error: BaseException) -> bool:
    """Whether the same call may succeed later, as it stands: the database is stopped, restarted, switched over, cut off
    or too slow, or somebody stood in the way. All else is the fault of what it was given.

    PostgreSQL counts its limits (class 54: too many columns, too deep, too long) among the operational errors, and the
    end of a transaction that idled among the internal ones.
    """
    if isinstance(error, psycopg.OperationalError):
        return not (error.sqlstate or "").startswith("54")
    return isinstance(error, _AWAY)


_AWAY = (
    UnreachableError,
    psycopg.InterfaceError,
    psycopg.errors.ReadOnlySqlTransaction,
    psycopg.errors.IdleInTransactionSessionTimeout,
    TimeoutError,
    ConnectionError,
)


def _loads(data: str | bytes) -> Any:
    """JSON as `json.loads` reads it, in a third of its time; what is nested deeper than 200, `from_json` refuses."""
    try:
        return from_json(data)
    except ValueError:
        return json.loads(data)


async def _settle(conn: Connection) -> None:
    set_json_loads(_loads, conn)
    # A pooler in transaction mode may hand these settings on to somebody else, whom they do not hurt.
    await conn.execute(_SETTLE)
    await conn.commit()


def check_version(conn: Connection) -> None:
    """Raises UnsupportedServerError if the server is too old."""
    refuse_version(conn.info.server_version)


def refuse_version(version: int) -> None:
    """The same for a version number as libpq gives it, such as 150018."""
    if version < MINIMUM_MAJOR * 10_000:
        shown = f"{version // 10_000}.{version % 10_000}"
        raise UnsupportedServerError(
            f"the server is PostgreSQL {shown}; tracekit needs {MINIMUM_MAJOR} or newer",
            hint="Upgrade the server, or give tracekit the DSN of a newer one.",
        )


def _prepare_threshold(transaction_pooler: bool) -> int | None:
    return None if transaction_pooler else _PREPARE_AFTER


def _unreachable(dsn: str, why: str) -> UnreachableError:
    return UnreachableError(
        f"cannot connect to the database at {redact_dsn(dsn)}: {why.strip()}",
        hint="Check that the server runs and is writable, and that host, user and password fit.",
    )

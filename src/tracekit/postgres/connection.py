"""Connections to the database: with time limits, to a writable server, of a version we know."""

from __future__ import annotations

import psycopg
from psycopg import AsyncConnection
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from .binaries import MINIMUM_MAJOR
from .dsn import redact_dsn, with_defaults
from .errors import UnreachableError, UnsupportedServerError

# psycopg's own default: a statement is prepared when it is executed for the fifth time.
_PREPARE_AFTER = 5

# The pool doubles its waits, from 1 s and with jitter, up to this many seconds and then begins
# anew. Its default of 5 minutes would leave a server that is back unnoticed for over 2 minutes.
_RECONNECT_TIMEOUT_S = 20.0

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
) -> Pool:
    """An open pool with `min_size` connections ready.

    A connection that broke is dropped when it is given back, not tested when it is taken: after
    the server was restarted, each idle connection fails once with OperationalError
    (`await pool.check()` weeds them out at one go). Broken ones are replaced with backoff and
    jitter, for as long as it takes. `acquire_timeout`: seconds to wait for a free connection before
    psycopg_pool.PoolTimeout, and for the first ones here.

    `transaction_pooler` turns off prepared statements, which a pooler in transaction mode breaks.

    Raises UnreachableError or UnsupportedServerError; neither shows the password.
    """
    # The pool would hide the reason behind a time-out.
    probe = await connect(dsn, name=name, transaction_pooler=transaction_pooler)
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
        open=False,
    )
    try:
        await pool.open(wait=True, timeout=acquire_timeout)
    except PoolTimeout as exc:
        raise _unreachable(dsn, f"it did not give {min_size} connections within {acquire_timeout:g} s") from exc
    return pool


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

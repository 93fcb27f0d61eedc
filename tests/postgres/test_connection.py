"""Connections and pools."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg_pool import PoolTimeout

from tests.support.postgres import ThrowawayServer
from tracekit.postgres import UnreachableError, UnsupportedServerError, connect, is_away, open_pool
from tracekit.postgres.connection import refuse_version

PREPARED_IF_ASKED = 2**31
"""How often a statement must be executed until it is prepared without being asked for: never."""


async def test_pool_has_its_connections_named_and_ready(dsn: str) -> None:
    async with await open_pool(dsn, min_size=2, max_size=3, name="workers") as pool:
        assert pool.get_stats()["pool_size"] == 2
        async with pool.connection() as conn:
            cursor = await conn.execute("SHOW application_name")
            assert await cursor.fetchone() == ("workers",)
            assert conn.prepare_threshold == PREPARED_IF_ASKED
            assert not conn.autocommit


async def test_broken_connection_leaves_the_pool_and_is_replaced(dsn: str) -> None:
    async with await open_pool(dsn, min_size=1, max_size=1, name="pool", autocommit=True) as pool:
        async with pool.connection() as conn:
            with psycopg.connect(dsn) as other:
                other.execute("SELECT pg_terminate_backend(%s)", [conn.info.backend_pid])
            with pytest.raises(psycopg.OperationalError):
                await conn.execute("SELECT 1")
            broken = conn
        async with pool.connection() as conn:
            assert conn is not broken
            await conn.execute("SELECT 1")
        assert pool.get_stats()["returns_bad"] == 1


@pytest.mark.parametrize(("pooler", "threshold"), [(True, None), (False, PREPARED_IF_ASKED)])
async def test_transaction_pooler_turns_prepared_statements_off(dsn: str, pooler: bool, threshold: int | None) -> None:
    async with (
        await open_pool(dsn, min_size=1, max_size=1, name="pool", transaction_pooler=pooler) as pool,
        pool.connection() as conn,
        await connect(dsn, transaction_pooler=pooler) as single,
    ):
        assert conn.prepare_threshold == single.prepare_threshold == threshold


@pytest.mark.parametrize("where", ["host=127.0.0.1 port=1", "host=/nonexistent"])
async def test_unreachable_server_is_an_error_without_the_password(where: str) -> None:
    with pytest.raises(UnreachableError, match="cannot connect to the database at user=u password=") as caught:
        await open_pool(f"{where} user=u password=s3cret", min_size=1, max_size=1, name="pool")
    assert "s3cret" not in str(caught.value)
    assert where in str(caught.value)


async def test_read_only_server_is_refused_as_a_demoted_primary_is(shared_server: ThrowawayServer, dsn: str) -> None:
    name = conninfo_to_dict(dsn)["dbname"]
    with psycopg.connect(shared_server.dsn) as conn:
        conn.execute(
            sql.SQL("ALTER DATABASE {} SET default_transaction_read_only = on").format(sql.Identifier(str(name)))
        )
    with pytest.raises(UnreachableError, match="session is read-only"):
        await connect(dsn)
    async with await connect(make_conninfo(dsn, target_session_attrs="any")) as single:
        assert single.info.dbname == name


async def test_pool_that_cannot_fill_says_so(shared_server: ThrowawayServer, dsn: str) -> None:
    name = conninfo_to_dict(dsn)["dbname"]
    shared_server.create_database("limited", owner="limited_owner")
    limited = make_conninfo(shared_server.dsn, dbname="limited", user="limited_owner")
    with psycopg.connect(shared_server.dsn) as conn:
        conn.execute("ALTER DATABASE limited CONNECTION LIMIT 1")
    with pytest.raises(UnreachableError, match=r"did not give 2 connections within 0\.5 s"):
        await open_pool(limited, min_size=2, max_size=2, name=str(name), acquire_timeout=0.5)


async def _nobody_listens(dsn: str) -> None:
    await psycopg.AsyncConnection.connect(make_conninfo(dsn, host="127.0.0.1", port=1))


async def _nobody_lets_us_in(dsn: str) -> None:
    await connect(make_conninfo(dsn, host="/nonexistent"))


async def _backend_is_ended(dsn: str) -> None:
    async with await connect(dsn, autocommit=True) as conn:
        await conn.execute("SELECT pg_terminate_backend(pg_backend_pid())")


async def _connection_is_closed(dsn: str) -> None:
    conn = await connect(dsn)
    await conn.close()
    await conn.execute("SELECT 1")


async def _cursor_is_closed(dsn: str) -> None:
    async with await connect(dsn) as conn:
        cursor = conn.cursor()
        await cursor.close()
        await cursor.execute("SELECT 1")


async def _pool_has_none_left(dsn: str) -> None:
    async with (
        await open_pool(dsn, min_size=1, max_size=1, name="pool", acquire_timeout=0.05) as pool,
        pool.connection(),
        pool.connection(),
    ):
        pass


async def _idled_in_a_transaction(dsn: str) -> None:
    async with await connect(dsn) as conn:
        await conn.execute("SET idle_in_transaction_session_timeout = '10ms'")
        with psycopg.connect(dsn, autocommit=True) as other:
            while other.execute("SELECT 1 FROM pg_stat_activity WHERE pid = %s", [conn.info.backend_pid]).fetchone():
                pass
        await conn.execute("SELECT 1")


async def _waits_for_an_answer(dsn: str) -> None:
    async with await connect(dsn) as conn, asyncio.timeout(0.05):
        await conn.execute("SELECT pg_sleep(60)")


def _running(*statements: str) -> Callable[[str], Awaitable[None]]:
    async def run(dsn: str) -> None:
        async with await connect(dsn, autocommit=True) as conn:
            for statement in statements:
                await conn.execute(statement.encode())

    return run


async def _somebody_has_the_lock(dsn: str) -> None:
    async with await connect(dsn) as holder:
        await holder.execute("CREATE TABLE held ()")
        await holder.commit()
        await holder.execute("LOCK TABLE held")
        await _running("SET lock_timeout = '10ms'", "SELECT FROM held")(dsn)


async def _text_cannot_be_sent(dsn: str) -> None:
    async with await connect(dsn) as conn:
        await conn.execute("SELECT %s", ["\ud800"])


async def _file_is_missing(_: str) -> None:
    await asyncio.to_thread(Path("/nonexistent").read_text)


@pytest.mark.parametrize(
    ("provoke", "kind", "away"),
    [
        (_nobody_listens, psycopg.OperationalError, True),
        (_nobody_lets_us_in, UnreachableError, True),
        (_backend_is_ended, psycopg.errors.AdminShutdown, True),
        (_connection_is_closed, psycopg.OperationalError, True),
        (_cursor_is_closed, psycopg.InterfaceError, True),
        (_pool_has_none_left, PoolTimeout, True),
        (_idled_in_a_transaction, psycopg.errors.IdleInTransactionSessionTimeout, True),
        (_waits_for_an_answer, TimeoutError, True),
        (_somebody_has_the_lock, psycopg.errors.LockNotAvailable, True),
        (
            _running("SET default_transaction_read_only = on", "CREATE TABLE t ()"),
            psycopg.errors.ReadOnlySqlTransaction,
            True,
        ),
        (_running("SET statement_timeout = 10", "SELECT pg_sleep(60)"), psycopg.errors.QueryCanceled, True),
        (_running(f"SELECT {','.join('1' * 2_000)}"), psycopg.errors.TooManyColumns, False),
        (_running("SELECT 1 / 0"), psycopg.DataError, False),
        (_running("CREATE TABLE t (n int UNIQUE)", "INSERT INTO t VALUES (1), (1)"), psycopg.IntegrityError, False),
        (_running("SELECT FROM nowhere"), psycopg.ProgrammingError, False),
        (_text_cannot_be_sent, UnicodeError, False),
        (_file_is_missing, OSError, False),
    ],
)
async def test_an_error_says_whether_the_database_is_away_Q10(
    provoke: Callable[[str], Awaitable[None]], kind: type[Exception], away: bool, dsn: str
) -> None:
    with pytest.raises(kind) as caught:
        await provoke(dsn)
    assert is_away(caught.value) is away


@pytest.mark.parametrize("version", [130_022, 90_624])
def test_server_that_is_too_old_is_refused(version: int) -> None:
    with pytest.raises(UnsupportedServerError, match="tracekit needs 14 or newer"):
        refuse_version(version)


def test_oldest_supported_server_is_taken() -> None:
    refuse_version(140_000)

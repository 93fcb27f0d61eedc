"""Connections and pools."""

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from tests.support.postgres import ThrowawayServer
from tracekit.postgres import UnreachableError, UnsupportedServerError, connect, open_pool
from tracekit.postgres.connection import refuse_version


async def test_pool_has_its_connections_named_and_ready(dsn: str) -> None:
    async with await open_pool(dsn, min_size=2, max_size=3, name="workers") as pool:
        assert pool.get_stats()["pool_size"] == 2
        async with pool.connection() as conn:
            cursor = await conn.execute("SHOW application_name")
            assert await cursor.fetchone() == ("workers",)
            assert conn.prepare_threshold == 5
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


@pytest.mark.parametrize(("pooler", "threshold"), [(True, None), (False, 5)])
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


@pytest.mark.parametrize("version", [130_022, 90_624])
def test_server_that_is_too_old_is_refused(version: int) -> None:
    with pytest.raises(UnsupportedServerError, match="tracekit needs 14 or newer"):
        refuse_version(version)


def test_oldest_supported_server_is_taken() -> None:
    refuse_version(140_000)

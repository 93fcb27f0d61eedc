"""The role that dashboards read as, and its logins: on a server of their own, since roles are a server's."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from tests.cli.running import Cli, environment
from tests.support.postgres import ThrowawayServer
from tests.support.processes import eventually
from tracekit.postgres import DatabaseError, connect, migrate
from tracekit.postgres.readers import READERS, grant_reading

PASSWORD = "not-a-real-p4ssw0rd"


@pytest.fixture(scope="module")
def server() -> Iterator[ThrowawayServer]:
    with ThrowawayServer() as server:
        with psycopg.connect(server.dsn, autocommit=True) as connection:
            connection.execute("ALTER SYSTEM SET log_statement = 'all'")
            connection.execute("SELECT pg_reload_conf()")
        yield server


@pytest.fixture
def without_role(server: ThrowawayServer) -> Iterator[ThrowawayServer]:
    """The server, on which no database has been migrated. All that a test makes on it goes."""
    yield server
    with psycopg.connect(server.dsn, autocommit=True) as connection:
        for (name,) in connection.execute("SELECT datname FROM pg_database WHERE datname LIKE 'test%'").fetchall():
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
        # Nothing of a database that is gone holds the role.
        for (role,) in connection.execute("SELECT rolname FROM pg_roles WHERE oid >= 16384").fetchall():
            connection.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(role)))


def may_read(dsn: str, user: str = READERS) -> bool:
    """Whether all views can be read, and nothing else in this database."""
    with psycopg.connect(dsn) as connection:
        connection.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(user)))
        views = connection.execute(
            "SELECT relname FROM pg_class WHERE relnamespace = 'grafana'::regnamespace AND relkind = 'v'"
        ).fetchall()
        try:
            for (view,) in views:
                connection.execute(sql.SQL("SELECT * FROM grafana.{}").format(sql.Identifier(view)))
        except psycopg.errors.InsufficientPrivilege:
            return False
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("SELECT FROM tracekit.workers")
    return len(views) > 10


async def test_d4_databases_of_a_server_share_the_role_and_one_that_goes_takes_nothing_along(
    without_role: ThrowawayServer,
) -> None:
    first, second = (without_role.create_database() for _ in range(2))
    await migrate(first)
    await migrate(second)
    assert may_read(first)
    without_role.drop_database(first)
    assert may_read(second)


async def test_d4_two_databases_that_migrate_at_once_make_one_role(without_role: ThrowawayServer) -> None:
    """The other one's is not committed when this one looks for it."""
    other, mine = (without_role.create_database() for _ in range(2))
    async with await psycopg.AsyncConnection.connect(other) as making:
        await making.execute(f"CREATE ROLE {READERS} NOLOGIN")
        migrating = asyncio.create_task(migrate(mine))

        async def waits() -> bool:
            cursor = await making.execute("SELECT count(*) FROM pg_locks WHERE NOT granted")
            return await cursor.fetchone() != (0,)

        await eventually(waits, "the migration waits for the other's role")
        await making.commit()
        await migrating
    assert may_read(mine)


async def test_d4_who_may_not_make_roles_can_migrate_and_somebody_else_makes_up_for_it(
    without_role: ThrowawayServer,
) -> None:
    """CloudNativePG's app user owns its database and may make no roles."""
    dsn = without_role.create_database(owner="app")
    admin = f"{dsn} user=tracekit"
    await migrate(dsn)
    async with await connect(dsn, autocommit=True) as app:
        with pytest.raises(DatabaseError, match="app may not do that: permission denied to create role") as caught:
            await grant_reading(app)
    assert "as a superuser" in caught.value.hint
    async with await connect(admin, autocommit=True) as superuser:
        assert (await grant_reading(superuser)).role_made
        assert not (await grant_reading(superuser)).role_made
        assert may_read(admin)
        # Once there is a role, the owner of the schema grants to it.
        await superuser.execute(f"REVOKE SELECT ON grafana.tasks FROM {READERS}")
    assert not may_read(admin)
    async with await connect(dsn, autocommit=True) as app:
        await grant_reading(app)
    assert may_read(admin)


async def test_d4_who_may_make_roles_and_does_not_own_the_views_is_told(without_role: ThrowawayServer) -> None:
    dsn = without_role.create_database()
    await migrate(dsn)
    async with await connect(dsn, autocommit=True) as superuser:
        await superuser.execute("CREATE ROLE maker LOGIN CREATEROLE")
        await superuser.execute("GRANT USAGE ON SCHEMA grafana TO maker")
        await superuser.execute(f"REVOKE ALL ON ALL TABLES IN SCHEMA grafana FROM {READERS}")
    async with await connect(f"{dsn} user=maker", autocommit=True) as maker:
        with pytest.raises(DatabaseError, match="maker may not do that"):
            await grant_reading(maker)


async def test_d4_a_login_reads_and_nothing_else_within_its_limits(without_role: ThrowawayServer) -> None:
    dsn = without_role.create_database()
    await migrate(dsn)
    async with await connect(dsn, autocommit=True) as connection:
        assert (await grant_reading(connection, login="viewer", password=PASSWORD, most_connections=1)).login_made
        cursor = await connection.execute("SELECT rolpassword FROM pg_authid WHERE rolname = 'viewer'")
        [verifier] = await cursor.fetchone() or [""]
        assert verifier.startswith("SCRAM-SHA-256$")
        assert not (await grant_reading(connection, login="viewer", most_connections=1)).login_made
        cursor = await connection.execute("SELECT rolpassword FROM pg_authid WHERE rolname = 'viewer'")
        assert await cursor.fetchone() == (verifier,), "without a new one it keeps its password"
    with psycopg.connect(f"{dsn} user=viewer", autocommit=True) as viewer:
        assert viewer.execute("SELECT count(*) FROM grafana.tasks").fetchone() == (0,)
        assert viewer.execute("SHOW statement_timeout").fetchone() == ("30s",)
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            viewer.execute("CREATE TABLE grafana.mine (n int)")
        viewer.execute("SET default_transaction_read_only = off")
        for statement in (
            b"CREATE TABLE grafana.mine (n int)",
            b"DELETE FROM grafana.tables",
            b"SELECT FROM tracekit.envelopes",
            b"INSERT INTO grafana.workers (worker) VALUES ('me')",
        ):
            with pytest.raises((psycopg.errors.InsufficientPrivilege, psycopg.errors.ObjectNotInPrerequisiteState)):
                viewer.execute(statement)
        with pytest.raises(psycopg.OperationalError, match="too many connections"):
            psycopg.connect(f"{dsn} user=viewer")
    assert PASSWORD not in without_role.log


@pytest.mark.parametrize(
    "made",
    [
        "CREATE ROLE taken LOGIN PASSWORD 'theirs'",
        "CREATE ROLE taken LOGIN CREATEDB IN ROLE tracekit_grafana PASSWORD 'theirs'",
        "CREATE ROLE taken LOGIN IN ROLE tracekit_grafana, pg_read_all_data PASSWORD 'theirs'",
        "CREATE ROLE taken NOLOGIN IN ROLE tracekit_grafana",
    ],
)
async def test_d4_a_role_that_is_more_than_a_login_of_dashboards_is_left_alone(
    without_role: ThrowawayServer, made: str
) -> None:
    dsn = without_role.create_database()
    await migrate(dsn)
    look = "SELECT rolpassword, rolconnlimit FROM pg_authid WHERE rolname = 'taken'"
    async with await connect(dsn, autocommit=True) as connection:
        await connection.execute(made.encode())
        before = await (await connection.execute(look)).fetchone()
        with pytest.raises(DatabaseError, match="there is a role taken already"):
            await grant_reading(connection, login="taken", password=PASSWORD)
        assert await (await connection.execute(look)).fetchone() == before
        with pytest.raises(DatabaseError, match="is the role that logins are members of"):
            await grant_reading(connection, login=READERS)


async def test_the_command_makes_a_login_and_says_what_grafana_needs_without_its_password(
    without_role: ThrowawayServer, tmp_path: Path
) -> None:
    dsn = without_role.create_database()
    cli = Cli(environment(tmp_path, dsn))
    early = await cli("db", "grafana")
    assert (early.code, "tracekit db migrate" in early.err) == (5, True)
    await migrate(dsn)
    assert "tracekit_grafana may read" in (await cli.ok("db", "grafana")).out
    asked = ("db", "grafana", "--login", "grafana", "--password-env", "GRAFANA_DB_PASSWORD")
    for wrong in (asked, (*asked[:2], *asked[4:])):
        ran = await cli(*wrong, GRAFANA_DB_PASSWORD="")
        assert (ran.code, ran.out) == (2, "")
    told = await cli.ok(*asked, GRAFANA_DB_PASSWORD=PASSWORD)
    report = (await cli.ok(*asked, "--json", GRAFANA_DB_PASSWORD=PASSWORD)).json
    assert "grafana is made: it begins read-only, with 30 s a statement, 10 connections." in told.out
    assert PASSWORD not in told.out
    assert PASSWORD not in without_role.log
    assert (report["role"], report["role_made"], report["login"], report["login_made"]) == (
        READERS,
        False,
        "grafana",
        False,
    )
    source = report["datasource"]
    assert source["secureJsonData"] == {"password": "$GRAFANA_DB_PASSWORD"}
    assert (source["uid"], source["type"]) == ("tracekit-postgres", "grafana-postgresql-datasource")
    assert 1400 <= source["jsonData"]["postgresVersion"] <= 2000
    # What it names leads there.
    with psycopg.connect(
        host=source["url"], dbname=source["jsonData"]["database"], user=source["user"], password=PASSWORD
    ) as connection:
        assert connection.execute("SELECT count(*) FROM grafana.tasks").fetchone() == (0,)

"""Migrations, with files of the test's own; and the program's own files once."""

import asyncio
from pathlib import Path

import psycopg
import pytest

from tests.support.postgres import ThrowawayServer
from tracekit.postgres import (
    DatabaseError,
    SchemaChangedError,
    SchemaOutdatedError,
    SchemaTooNewError,
    UnreachableError,
    check_schema,
    connect,
    migrate,
    read_migrations,
)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "0001_first.sql").write_text("CREATE TABLE tracekit.a (n int); INSERT INTO tracekit.a VALUES (1);\n")
    (tmp_path / "0002_second.sql").write_text("-- 100% %s\nALTER TABLE tracekit.a ADD COLUMN m int;\n")
    return tmp_path


def rows(dsn: str, statement: str) -> list[tuple[object, ...]]:
    with psycopg.connect(dsn) as conn:
        return conn.execute(statement.encode()).fetchall()


def exists(dsn: str, name: str) -> bool:
    return rows(dsn, f"SELECT to_regclass('{name}') IS NOT NULL") == [(True,)]


async def test_missing_migrations_are_applied_in_order_and_recorded(dsn: str, files: Path) -> None:
    assert [m.version for m in await migrate(dsn, directory=files)] == [1, 2]
    assert await migrate(dsn, directory=files) == []
    await check_schema(dsn, directory=files)
    recorded = rows(
        dsn,
        "SELECT version, name, checksum, applied_at > now() - interval '1 minute' "
        "FROM tracekit.schema_migrations ORDER BY 1",
    )
    assert recorded == [(m.version, m.name, m.checksum, True) for m in read_migrations(files)]
    (files / "0003_third.sql").write_text("DROP TABLE tracekit.a;")
    assert [m.name for m in await migrate(dsn, directory=files)] == ["third"]


async def test_all_or_nothing(dsn: str, files: Path) -> None:
    (files / "0003_broken.sql").write_text("SELECT 1/0;")
    with pytest.raises(DatabaseError, match="division by zero"):
        await migrate(dsn, directory=files)
    assert not exists(dsn, "tracekit.a")
    assert not exists(dsn, "tracekit.schema_migrations")


async def test_two_at_once_one_does_it_and_the_other_finds_it_done(dsn: str, files: Path) -> None:
    """Also where the role's isolation level would not let the second one see what the first committed."""
    (files / "0003_slow.sql").write_text("SELECT pg_sleep(0.2);")
    with psycopg.connect(dsn) as conn:
        conn.execute("ALTER ROLE tracekit SET default_transaction_isolation = 'serializable'")
    try:
        applied = await asyncio.gather(*(migrate(dsn, directory=files) for _ in range(4)))
    finally:
        with psycopg.connect(dsn) as conn:
            conn.execute("ALTER ROLE tracekit RESET default_transaction_isolation")
    assert sorted(len(done) for done in applied) == [0, 0, 0, 3]
    assert rows(dsn, "SELECT n FROM tracekit.a") == [(1,)]


async def test_time_limits_of_the_role_do_not_end_a_migration(dsn: str, files: Path) -> None:
    (files / "0003_slow.sql").write_text("SELECT pg_sleep(0.2);")
    async with await connect(dsn, autocommit=True) as conn:
        await conn.execute("SET statement_timeout = '50ms'")
        assert len(await migrate(conn, directory=files)) == 3
        await check_schema(conn, directory=files)
        cursor = await conn.execute("SHOW statement_timeout")
        assert await cursor.fetchone() == ("50ms",), "the caller's session was changed"


async def test_connection_in_a_transaction_is_refused(dsn: str, files: Path) -> None:
    async with await connect(dsn) as conn:
        await conn.execute("SELECT 1")
        with pytest.raises(DatabaseError, match="not in a transaction"):
            await migrate(conn, directory=files)


async def test_migration_that_commits_is_refused(dsn: str, files: Path) -> None:
    (files / "0003_commits.sql").write_text("COMMIT;")
    with pytest.raises(DatabaseError, match="0003_commits ended the transaction"):
        await migrate(dsn, directory=files)


async def test_database_without_schema_is_told_from_an_old_one(dsn: str, files: Path) -> None:
    with pytest.raises(SchemaOutdatedError, match="has not been set up; this tracekit needs version 2") as caught:
        await check_schema(dsn, directory=files)
    assert caught.value.hint == "Run: tracekit db migrate"
    await migrate(dsn, directory=files)
    (files / "0003_third.sql").write_text("SELECT 1;")
    with pytest.raises(SchemaOutdatedError, match="is at version 2; this tracekit needs version 3"):
        await check_schema(dsn, directory=files)


async def test_schema_newer_than_the_program_is_refused(dsn: str, files: Path) -> None:
    await migrate(dsn, directory=files)
    (files / "0002_second.sql").unlink()
    for step in (check_schema, migrate):
        with pytest.raises(SchemaTooNewError, match="is at version 2, and this tracekit knows 1") as caught:
            await step(dsn, directory=files)
        assert "Upgrade tracekit" in caught.value.hint


async def test_changed_migration_is_refused(dsn: str, files: Path) -> None:
    await migrate(dsn, directory=files)
    (files / "0001_first.sql").write_bytes((files / "0001_first.sql").read_bytes().replace(b"\n", b"\r\n"))
    await check_schema(dsn, directory=files)  # a checkout with other line ends is no change
    (files / "0001_first.sql").write_text("CREATE TABLE tracekit.a (n bigint);")
    for step in (check_schema, migrate):
        with pytest.raises(SchemaChangedError, match="0001_first is not the one that was applied"):
            await step(dsn, directory=files)


async def test_migration_that_the_program_never_had_is_refused(dsn: str, files: Path) -> None:
    await migrate(dsn, directory=files)
    with psycopg.connect(dsn) as conn:
        conn.execute("INSERT INTO tracekit.schema_migrations (version, name, checksum) VALUES (0, 'other', 'x')")
    for check in (check_schema, migrate):
        with pytest.raises(SchemaChangedError, match="0000_other"):
            await check(dsn, directory=files)


async def test_unreachable_database_is_a_clear_error(files: Path) -> None:
    for step in (check_schema, migrate):
        with pytest.raises(UnreachableError, match="cannot connect"):
            await step("host=/nonexistent user=u", directory=files)


async def test_app_user_of_a_hosted_database_can_migrate(shared_server: ThrowawayServer, files: Path) -> None:
    """CloudNativePG's app user owns its database and is no superuser."""
    dsn = shared_server.create_database(owner="app")
    await migrate(dsn, directory=files)
    await check_schema(dsn, directory=files)
    assert rows(dsn, "SELECT rolsuper FROM pg_roles WHERE rolname = current_user") == [(False,)]


async def test_role_that_only_owns_the_schema_can_migrate(
    shared_server: ThrowawayServer, dsn: str, files: Path
) -> None:
    with psycopg.connect(dsn) as conn:
        conn.execute("CREATE ROLE only_schema LOGIN")
        conn.execute("CREATE SCHEMA tracekit AUTHORIZATION only_schema")
    await migrate(f"{dsn} user=only_schema", directory=files)
    await check_schema(f"{dsn} user=only_schema", directory=files)
    # Nobody can have this twice: the role goes with what it owns.
    with psycopg.connect(dsn) as conn:
        conn.execute("DROP OWNED BY only_schema CASCADE")
        conn.execute("DROP ROLE only_schema")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("0004_gap.sql", "0004_gap.sql should be migration 0003"),
        ("0002_twice.sql", "0002_twice.sql should be migration 0003"),
        ("3_short.sql", "not the name of a migration"),
    ],
)
def test_files_that_are_not_numbered_one_by_one_are_refused(files: Path, name: str, says: str) -> None:
    (files / name).write_text("SELECT 1;")
    with pytest.raises(DatabaseError, match=says):
        read_migrations(files)


async def test_the_programs_own_migrations_apply(dsn: str) -> None:
    assert await migrate(dsn) == read_migrations()
    await check_schema(dsn)

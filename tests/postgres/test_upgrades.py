"""Upgrades: what breaks a migration leaves the version before it whole, and nobody writes into a schema that is not
theirs. The files are the test's own.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.support.postgres import ThrowawayServer
from tests.support.processes import background, eventually
from tracekit.postgres import (
    Connection,
    DatabaseError,
    SchemaInUseError,
    SchemaOutdatedError,
    SchemaTooNewError,
    check_schema,
    connect,
    hold_schema,
    migrate,
    open_pool,
)

_GATE = 20_260_729
"""An advisory lock: migrations of these tests stop at it, so that a test knows where they are."""


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """The files of version 1."""
    directory = tmp_path / "old"
    directory.mkdir()
    (directory / "0001_first.sql").write_text(
        "CREATE TABLE tracekit.a (n int); INSERT INTO tracekit.a SELECT generate_series(1, 1000);\n"
    )
    return directory


@pytest.fixture
def new(old: Path, tmp_path: Path) -> Path:
    """The files of version 3, two steps on, the second of which stops half way at the gate."""
    directory = tmp_path / "new"
    directory.mkdir()
    (directory / "0001_first.sql").write_bytes((old / "0001_first.sql").read_bytes())
    (directory / "0002_second.sql").write_text("ALTER TABLE tracekit.a ADD COLUMN old boolean DEFAULT true;\n")
    (directory / "0003_third.sql").write_text(
        "ALTER TABLE tracekit.a ALTER COLUMN old DROP DEFAULT; CREATE TABLE tracekit.b AS SELECT n FROM tracekit.a;\n"
        f"SELECT pg_advisory_xact_lock({_GATE});\n"
        "INSERT INTO tracekit.b SELECT n FROM tracekit.a;\n"
    )
    return directory


@pytest.fixture
async def at_version_1(dsn: str, old: Path) -> str:
    await migrate(dsn, directory=old)
    return dsn


@asynccontextmanager
async def gate(dsn: str) -> AsyncIterator[psycopg.AsyncConnection[tuple[object, ...]]]:
    """Migrations stop half way, inside this."""
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        await connection.execute("SELECT pg_advisory_lock(%s)", [_GATE])
        yield connection


async def at_the_gate(connection: psycopg.AsyncConnection[tuple[object, ...]]) -> int:
    """The server's process that runs the migration, once that is half way."""

    async def waiting() -> list[tuple[object, ...]]:
        cursor = await connection.execute(
            "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND objid = %s AND NOT granted"
            " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())",
            [_GATE],
        )
        return await cursor.fetchall()

    [[pid]] = await eventually(waiting, "the migration is half way")
    assert isinstance(pid, int)
    return pid


async def is_whole_at_version_1(dsn: str, old: Path, new: Path) -> None:
    """Everything of version 1 is there, nothing of a later one is, and nothing stands in the way of the next try."""
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        cursor = await connection.execute(
            "SELECT (SELECT count(*) FROM tracekit.a), to_regclass('tracekit.b'),"
            " (SELECT array_agg(attname::text) FROM pg_attribute"
            "  WHERE attrelid = 'tracekit.a'::regclass AND attnum > 0)"
        )
        assert await cursor.fetchone() == (1000, None, ["n"])
    await check_schema(dsn, directory=old)
    with pytest.raises(SchemaOutdatedError, match="is at version 1; this tracekit needs version 3"):
        await check_schema(dsn, directory=new)
    began = time.monotonic()
    assert [m.version for m in await migrate(dsn, directory=new)] == [2, 3]
    print(f"whole at version 1; the next try took {time.monotonic() - began:.2f} s")


MIGRATE = """
import asyncio, sys
from pathlib import Path
from tracekit.postgres import migrate
asyncio.run(migrate(sys.argv[1], directory=Path(sys.argv[2])))
"""


async def test_a_migration_killed_half_way_left_nothing_behind_Q1(at_version_1: str, old: Path, new: Path) -> None:
    """`kill -9` of the program: the server's side of it ends by itself and gives back its locks."""
    async with gate(at_version_1) as connection:
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", MIGRATE, at_version_1, str(new))
        pid = await at_the_gate(connection)
        began = time.monotonic()
        process.send_signal(signal.SIGKILL)
        await process.wait()

        async def gone() -> bool:
            cursor = await connection.execute("SELECT FROM pg_stat_activity WHERE pid = %s", [pid])
            return await cursor.fetchone() is None

        # The gate is still shut: only the server's own look for its client ends it.
        await eventually(gone, "the server notices that the program is dead")
        print(f"killed half way: its locks were free after {time.monotonic() - began:.1f} s")
    await is_whole_at_version_1(at_version_1, old, new)


async def test_a_server_stopped_in_a_migration_comes_back_at_the_old_version_Q1(old: Path, new: Path) -> None:
    """`pg_ctl stop -m immediate`, which is a crash, in the middle of a migration."""
    with ThrowawayServer() as server:
        dsn = server.create_database()
        await migrate(dsn, directory=old)
        with suppress(psycopg.OperationalError):  # the gate's own connection goes too
            async with gate(dsn) as connection:
                migrating = asyncio.create_task(migrate(dsn, directory=new))
                await at_the_gate(connection)
                await asyncio.to_thread(server.server.stop, mode="immediate")
                with pytest.raises(DatabaseError):
                    await migrating
        await asyncio.to_thread(server._lease.ensure)
        await is_whole_at_version_1(dsn, old, new)


async def test_a_migration_cut_off_by_the_server_left_nothing_behind_Q1(
    at_version_1: str, old: Path, new: Path
) -> None:
    """An administrator, or a failover, ends its connection."""
    async with gate(at_version_1) as connection:
        migrating = asyncio.create_task(migrate(at_version_1, directory=new))
        await connection.execute("SELECT pg_terminate_backend(%s)", [await at_the_gate(connection)])
        with pytest.raises(DatabaseError, match="administrator"):
            await migrating
    await is_whole_at_version_1(at_version_1, old, new)


async def test_a_table_in_use_for_too_long_ends_the_migration_whole_Q1(at_version_1: str, old: Path, new: Path) -> None:
    """Somebody with psql in the middle of a transaction: named as what it is, after the given time."""
    async with await connect(at_version_1) as reader:
        await reader.execute("SELECT count(*) FROM tracekit.a")
        with pytest.raises(DatabaseError, match=r"0002_second waited 0\.2 s for a table that is in use") as caught:
            await migrate(at_version_1, directory=new, patience=timedelta(seconds=0.2))
    assert "Stop the workers" in caught.value.hint
    await is_whole_at_version_1(at_version_1, old, new)


def limit_files(pid: int, *, owner_of: str, mebibytes: int) -> None:
    """Let a process write no longer files. Only its own user may do that: in a container not even root."""
    owner = os.stat(owner_of)
    whose: dict[str, Any] = {"user": owner.st_uid, "group": owner.st_gid, "extra_groups": []}
    subprocess.run(
        ["prlimit", f"--pid={pid}", f"--fsize={mebibytes << 20}"],
        check=True,
        cwd="/",
        **whose if os.geteuid() == 0 else {},
    )


async def test_a_disk_that_takes_no_more_ends_the_migration_whole_Q1(at_version_1: str, old: Path, new: Path) -> None:
    """The server's process cannot make files longer than 64 MiB: writing fails as on a full disk, in the middle."""
    third = new / "0003_third.sql"
    usual = third.read_text()
    third.write_text("CREATE TABLE tracekit.b AS SELECT repeat('x', 1000) AS x FROM generate_series(1, 100000);")
    async with await connect(at_version_1) as conn:
        # Longer than a file of the log, so that only tables meet it: a log that cannot be written stops the server.
        limit_files(conn.info.backend_pid, owner_of=conn.info.host, mebibytes=64)
        with pytest.raises(DatabaseError, match="the database refused: could not extend file"):
            await migrate(conn, directory=new)
    third.write_text(usual)
    await is_whole_at_version_1(at_version_1, old, new)


async def test_of_two_that_migrate_at_once_one_does_it_and_the_other_finds_it_done(
    at_version_1: str, old: Path, new: Path
) -> None:
    """Also where one comes when the other is half way; and a program that starts then waits, and fits."""
    async with gate(at_version_1) as connection:
        first = asyncio.create_task(migrate(at_version_1, directory=new))
        await at_the_gate(connection)
        second = asyncio.create_task(migrate(at_version_1, directory=new))
        async with await connect(at_version_1, autocommit=True) as starting:
            entering = asyncio.create_task(hold_schema(starting, directory=new))
            await eventually(lambda: waiting_for_locks(connection, 3), "both wait for the first")
            await connection.execute("SELECT pg_advisory_unlock(%s)", [_GATE])
            assert [len(await first), len(await second)] == [2, 0]
            await entering


async def waiting_for_locks(connection: psycopg.AsyncConnection[tuple[object, ...]], count: int) -> bool:
    cursor = await connection.execute(
        "SELECT count(*) FROM pg_locks WHERE NOT granted"
        " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    )
    return await cursor.fetchone() == (count,)


# --- who is at work -------------------------------------------------------------------------------------------------


@pytest.fixture
def open_gate(new: Path) -> Path:
    """The files of version 3, without the gate."""
    third = new / "0003_third.sql"
    third.write_text(third.read_text().replace(f"SELECT pg_advisory_xact_lock({_GATE});\n", ""))
    return new


async def test_programs_at_work_are_named_and_nothing_is_changed(at_version_1: str, old: Path, open_gate: Path) -> None:
    """Without force a migration is for those who have stopped their workers."""
    async with (
        await connect(at_version_1, name="tracekit up", autocommit=True) as up,
        await connect(at_version_1, name="tracekit up") as also,
        await connect(at_version_1, name="tracekit follow", autocommit=True) as follow,
    ):
        for connection in (up, also, follow):
            await hold_schema(connection, directory=old)
        with pytest.raises(SchemaInUseError, match="from version 1 to 3") as caught:
            await migrate(at_version_1, directory=open_gate)
        assert "tracekit follow (1), tracekit up (2)" in str(caught.value)
        assert "tracekit db migrate --force" in caught.value.hint
        assert caught.value.exit_code == 5
        assert await migrate(at_version_1, directory=old) == [], "where nothing is missing nobody is in the way"
    await is_whole_at_version_1(at_version_1, old, open_gate)


async def test_programs_that_are_just_going_are_waited_for(at_version_1: str, old: Path, open_gate: Path) -> None:
    """`systemctl stop` and `db migrate` in one line."""
    async with (
        await connect(at_version_1, autocommit=True) as going,
        await psycopg.AsyncConnection.connect(at_version_1, autocommit=True) as looking,
    ):
        await hold_schema(going, directory=old)
        migrating = asyncio.create_task(migrate(at_version_1, directory=open_gate))
        await eventually(lambda: waiting_for_locks(looking, 1), "the migration waits")
        await going.close()
        assert len(await migrating) == 2


async def test_a_program_that_holds_nothing_any_more_is_in_nobodys_way(
    at_version_1: str, old: Path, open_gate: Path
) -> None:
    """Neither one that was refused, nor one whose connection broke."""
    async with await connect(at_version_1, autocommit=True) as broken:
        await hold_schema(broken, directory=old)
        with psycopg.connect(at_version_1, autocommit=True) as other:
            other.execute("SELECT pg_terminate_backend(%s)", [broken.info.backend_pid])
    with pytest.raises(SchemaOutdatedError):
        await open_pool(at_version_1, min_size=1, max_size=1, name="new", admit=holding(open_gate))
    async with await connect(at_version_1, autocommit=True) as connection:

        async def alone() -> bool:
            others = (
                "SELECT FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
                " AND backend_type = 'client backend'"
            )
            return await (await connection.execute(others)).fetchone() is None

        await eventually(alone, "the server has let go of them")
    assert len(await migrate(at_version_1, directory=open_gate)) == 2


def holding(directory: Path) -> Callable[[Connection], Awaitable[None]]:
    async def admit(connection: Connection) -> None:
        await hold_schema(connection, directory=directory)

    return admit


async def test_no_write_of_an_old_program_reaches_the_new_schema_Q8(
    at_version_1: str, old: Path, open_gate: Path
) -> None:
    """Writers of version 1 who never pause, through a pool that replaces what it loses, and a migration by force in the
    middle: all of their rows are older than it. Then they learn why they get no connection.
    """
    refused: list[Exception] = []

    async def admit(connection: Connection) -> None:
        try:
            await hold_schema(connection, directory=old)
        except SchemaTooNewError as error:
            refused.append(error)
            raise

    written = 0
    async with await open_pool(
        at_version_1, min_size=8, max_size=8, name="tracekit worker", autocommit=True, acquire_timeout=1, admit=admit
    ) as pool:

        async def write() -> None:
            nonlocal written
            while not refused:
                with suppress(psycopg.Error):
                    async with pool.connection() as connection:
                        await connection.execute("INSERT INTO tracekit.a (n) VALUES (0)")
                        written += 1

        async def many() -> bool:
            return written > 500

        async def told() -> int:
            return len(refused)

        async with background(*(write() for _ in range(16))):
            await eventually(many, "they write")
            began = time.monotonic()
            assert len(await migrate(at_version_1, directory=open_gate, force=True)) == 2
            took = time.monotonic() - began
            await eventually(told, "they are refused")
            print(f"cut off and migrated in {took:.2f} s; told {time.monotonic() - began - took:.2f} s later")
    with psycopg.connect(at_version_1) as connection:
        # Version 2 marks what was there when it came; version 3 leaves unmarked what comes after.
        counted = connection.execute("SELECT count(*), count(*) FILTER (WHERE old) FROM tracekit.a").fetchone()
    assert counted is not None
    assert counted[0] == counted[1] >= 1500
    assert "is at version 3, and this tracekit knows 1" in str(refused[0])


async def test_who_connects_while_a_migration_runs_waits_and_then_sees_its_version(
    at_version_1: str, old: Path, new: Path
) -> None:
    """Also on a connection without autocommit and with one snapshot for each transaction."""
    async with gate(at_version_1) as connection:
        migrating = asyncio.create_task(migrate(at_version_1, directory=new))
        await at_the_gate(connection)
        async with (
            await connect(at_version_1, autocommit=True) as one,
            await connect(f"{at_version_1} options='-c default_transaction_isolation=serializable'") as two,
        ):
            entering = [asyncio.create_task(hold_schema(conn, directory=old)) for conn in (one, two)]
            await eventually(lambda: waiting_for_locks(connection, 3), "all wait")
            await connection.execute("SELECT pg_advisory_unlock(%s)", [_GATE])
            await migrating
            for task in entering:
                with pytest.raises(SchemaTooNewError):
                    await task

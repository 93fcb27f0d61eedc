"""Servers, supervisors and users that die, for real."""

import os
import signal
import subprocess
from pathlib import Path

import psycopg
import pytest

from tests.postgres.users import UserProcess
from tests.postgres.waiting import wait_until
from tracekit.postgres import EmbeddedServer, open_pool


def pids(server: EmbeddedServer) -> tuple[int, int]:
    """Of the server and of its supervisor."""
    status = server.status()
    assert status.pid is not None
    assert status.supervisor_pid is not None
    return status.pid, status.supervisor_pid


def kill(pid: int) -> None:
    """kill -9, and wait until the process is gone or a zombie."""
    os.kill(pid, signal.SIGKILL)

    def gone() -> bool:
        try:
            return ") Z " in Path(f"/proc/{pid}/stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return True

    wait_until(gone, f"{pid} dies")


def answers(dsn: str) -> bool:
    try:
        with psycopg.connect(dsn, connect_timeout=5):
            return True
    except psycopg.OperationalError:
        return False


def committed_and_not(dsn: str) -> psycopg.Connection:
    """One row committed, and a connection with one that is not."""
    with psycopg.connect(dsn) as conn:
        conn.execute("DROP TABLE IF EXISTS kept")
        conn.execute("CREATE TABLE kept (n int)")
        conn.execute("INSERT INTO kept VALUES (1)")
    conn = psycopg.connect(dsn)
    conn.execute("INSERT INTO kept VALUES (2)")
    return conn


def kept(dsn: str) -> list[int]:
    with psycopg.connect(dsn) as conn:
        return [row[0] for row in conn.execute("SELECT n FROM kept ORDER BY n")]


def test_q1_what_was_committed_survives_kill_9_of_the_server_which_comes_back(server: EmbeddedServer) -> None:
    with server.acquire() as lease:
        dsn = lease.dsn
        open_transaction = committed_and_not(dsn)
        old, supervisor = pids(server)
        kill(old)
        wait_until(lambda: answers(dsn), "the server is back for those who use it")
        assert kept(dsn) == [1]
        assert pids(server) == (server.status().pid, supervisor)
        assert server.status().pid != old
        open_transaction.close()
        kill(pids(server)[0])
        wait_until(lambda: answers(dsn), "the server is back again")
        assert kept(dsn) == [1]


def test_q1_what_was_committed_survives_an_immediate_stop(server: EmbeddedServer) -> None:
    with server.acquire() as lease:
        open_transaction = committed_and_not(lease.dsn)
        server.stop(mode="immediate")
        open_transaction.close()
        assert not answers(lease.dsn)
    with server.acquire() as lease:
        assert "was not properly shut down" in server.status().log.read_text()
        assert kept(lease.dsn) == [1]


def test_q1_what_was_committed_survives_kill_9_of_everything(server: EmbeddedServer, home: Path) -> None:
    with UserProcess(home) as user:
        user.ready()
        committed_and_not(server.dsn).close()
        postmaster, supervisor = pids(server)
        user.kill()
        kill(supervisor)
        kill(postmaster)
        with server.acquire() as lease:
            assert kept(lease.dsn) == [1]


def test_next_user_gives_an_orphaned_server_a_supervisor(server: EmbeddedServer) -> None:
    with server.acquire() as lease:
        postmaster, supervisor = pids(server)
        kill(supervisor)
        with server.acquire():
            assert pids(server)[0] == postmaster, "the server was not adopted but replaced"
            assert pids(server)[1] != supervisor
        # The adopted server is no child of the new supervisor, which has to see its death and its end all the same.
        kill(postmaster)
        wait_until(lambda: answers(lease.dsn), "an adopted server is started again")
    wait_until(lambda: not server.status().running, "the server stops")


def test_adopted_server_is_stopped_after_its_last_user(server: EmbeddedServer) -> None:
    with server.acquire():
        kill(pids(server)[1])
        server.acquire().release()
    # That line comes last, after the lock file has gone.
    wait_until(lambda: "database system is shut down" in server.status().log.read_text(), "the adopted server stops")


def test_last_user_leaves_no_orphaned_server(server: EmbeddedServer) -> None:
    with server.acquire():
        kill(pids(server)[1])
    wait_until(lambda: not server.status().running, "the server stops")


def test_orphaned_server_can_be_stopped(server: EmbeddedServer) -> None:
    with server.acquire():
        kill(pids(server)[1])
        server.stop()
        assert not server.status().running


def test_user_brings_back_what_was_killed_under_it(server: EmbeddedServer) -> None:
    with server.acquire() as lease:
        dsn = lease.dsn
        postmaster, supervisor = pids(server)
        kill(supervisor)
        kill(postmaster)
        lease.ensure()
        assert answers(dsn)
        assert lease.dsn == dsn


def test_killed_start_leaves_nothing_in_the_way(new_home: Path) -> None:
    """Whoever is killed during initdb leaves half a data directory under another name."""
    with UserProcess(new_home) as user:
        wait_until(lambda: list(new_home.glob("postgres/data.new-*/base")), "initdb writes")
        user.kill()
    with EmbeddedServer(new_home, linger=0).acquire() as lease:
        assert answers(lease.dsn)
    assert list(new_home.glob("postgres/data.new-*")) == []


def test_lock_files_whose_number_another_process_has_do_not_stop_the_start(server: EmbeddedServer) -> None:
    """In containers numbers are few, and after a crash the server's old one soon belongs to something else."""
    with server.acquire():
        postmaster, supervisor = pids(server)
        kill(supervisor)
        kill(postmaster)
        status = server.status()
        owner = status.data_dir.stat().st_uid
        options = {} if owner == os.geteuid() else {"user": owner}
        with subprocess.Popen(["sleep", "600"], cwd="/", **options) as stranger:  # type: ignore[call-overload]
            try:
                for lock in (status.data_dir / "postmaster.pid", status.socket_dir / ".s.PGSQL.5432.lock"):
                    lines = lock.read_text().splitlines()
                    lock.write_text("\n".join([str(stranger.pid), *lines[1:]]) + "\n")
                assert not server.status().running
                with server.acquire() as lease:
                    assert answers(lease.dsn)
                assert stranger.poll() is None
            finally:
                stranger.kill()


async def test_pool_finds_the_server_that_came_back(server: EmbeddedServer) -> None:
    with server.acquire() as lease:
        pool = await open_pool(lease.dsn, min_size=2, max_size=2, name="pool-test", acquire_timeout=30)
        async with pool:
            async with pool.connection() as conn:
                kill(pids(server)[0])
                with pytest.raises(psycopg.OperationalError):
                    await conn.execute("SELECT 1")
            # At most as many failures as there were connections; broken ones do not stay in the pool.
            for _ in range(2):
                try:
                    async with pool.connection() as conn:
                        await conn.execute("SELECT 1")
                except psycopg.OperationalError:
                    continue
            async with pool.connection() as conn:
                await conn.execute("SELECT 1")

"""The embedded server: shared, started when needed, stopped when not, and who gets in."""

import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tests.postgres.users import UserProcess
from tests.postgres.waiting import wait_until
from tests.support.postgres import remove_home
from tracekit.postgres import EmbeddedServer, ServerError


def query(dsn: str, statement: str) -> str:
    with psycopg.connect(dsn, autocommit=True) as conn:
        row = conn.execute(statement.encode()).fetchone()
    assert row is not None
    return str(row[0])


def test_first_user_sets_up_a_durable_server_without_tcp(new_home: Path) -> None:
    with EmbeddedServer(new_home, linger=0).acquire() as lease:
        assert query(lease.dsn, "SELECT current_database() || '/' || current_user") == "tracekit/tracekit"
        assert query(lease.dsn, "SHOW fsync") == "on"
        assert query(lease.dsn, "SHOW full_page_writes") == "on"
        assert query(lease.dsn, "SHOW synchronous_commit") == "on"
        assert query(lease.dsn, "SHOW data_checksums") == "on"
        assert query(lease.dsn, "SHOW listen_addresses") == ""
        assert query(lease.dsn, "SHOW server_encoding") == "UTF8"


def test_processes_share_one_server_which_stops_after_the_last(server: EmbeddedServer, home: Path) -> None:
    with UserProcess(home) as other:
        other.ready()
        first = server.status()
        with server.acquire():
            assert server.status().pid == first.pid
            other.process.communicate("")  # it ends in order
            with server.acquire():
                pass
            # Long enough for the supervisor to look for users several times.
            with pytest.raises(AssertionError):
                wait_until(lambda: server.status().pid != first.pid, "", timeout=0.6)
            assert server.status().in_use
        wait_until(lambda: not server.status().running, "the server stops")
    assert not server.status().in_use
    wait_until(lambda: server.status().supervisor_pid is None, "the supervisor leaves")


def test_server_stops_when_its_last_user_was_killed(server: EmbeddedServer, home: Path) -> None:
    with UserProcess(home) as user:
        user.ready().kill()
        wait_until(lambda: not server.status().running, "the server stops")


def test_children_of_a_user_do_not_keep_the_server(server: EmbeddedServer, home: Path) -> None:
    """A forked child has a copy of every descriptor; so has a program started with close_fds=False."""
    code = """
import signal, subprocess
lease = server.acquire()
sleeper = subprocess.Popen(["sleep", "600"], close_fds=False, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
child = os.fork()
if child == 0:
    signal.pause()
releasing = os.fork()
if releasing == 0:
    lease.release()
    try:
        lease.ensure()
    except Exception as exc:
        os.write(1, f"{exc}\\n".encode())
    os._exit(0)
os.waitpid(releasing, 0)
os.write(1, f"{sleeper.pid} {child}\\n".encode())
sys.stdin.read()
"""
    with UserProcess(home, code) as user:
        said = user.line()
        children = [int(pid) for pid in user.line().split()]
        try:
            assert said == "the lease was given up, or belongs to the parent process"
            assert server.status().in_use, "the child's release took the parent's lease"
            user.process.kill()
            wait_until(lambda: not server.status().running, "the server stops")
            for pid in children:
                os.kill(pid, 0)  # and the children live
        finally:
            for pid in children:
                os.kill(pid, 9)


def test_server_lingers_for_the_next_command(home: Path) -> None:
    server = EmbeddedServer(home, linger=600)
    server.acquire().release()
    pid = server.status().pid
    with pytest.raises(AssertionError):
        wait_until(lambda: not server.status().running, "", timeout=0.6)
    with server.acquire():
        assert server.status().pid == pid is not None


def test_who_comes_while_the_server_stops_gets_a_new_one(server: EmbeddedServer) -> None:
    lease = server.acquire()
    old = server.status().pid
    assert old is not None
    os.kill(old, 19)  # SIGSTOP: it cannot stop yet
    lease.release()
    wait_until(lambda: "stopping the server" in server.status().log.read_text(), "the supervisor stops the server")
    dsns: list[str] = []

    def come() -> None:
        with server.acquire() as late:
            dsns.append(query(late.dsn, "SELECT 'served'"))

    newcomer = threading.Thread(target=come)
    newcomer.start()
    newcomer.join(0.3)
    assert newcomer.is_alive()
    assert not server.status().in_use, "it counts as a user of a server that is going down"
    os.kill(old, 18)  # SIGCONT
    newcomer.join(30)
    assert dsns == ["served"]
    assert server.status().pid != old


def test_users_that_come_and_go_at_once_are_all_served(server: EmbeddedServer) -> None:
    faults: list[BaseException] = []
    served = 0
    counting = threading.Lock()

    def come_and_go() -> None:
        nonlocal served
        try:
            for _ in range(4):
                with server.acquire() as lease:
                    query(lease.dsn, "SELECT 1")
                with counting:
                    served += 1
        except BaseException as exc:
            faults.append(exc)

    threads = [threading.Thread(target=come_and_go) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    assert served == 16
    starts = server.status().log.read_text().count("ready to accept connections")
    assert starts >= 1


def test_stop_is_for_a_server_in_use_too_and_returns_when_it_is_down(server: EmbeddedServer) -> None:
    server.stop()
    with server.acquire() as lease:
        pid = server.status().pid
        assert pid is not None
        server.stop()
        status = server.status()
        assert (status.running, status.pid, status.supervisor_pid) == (False, None, None)
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
        lease.ensure()
        assert query(lease.dsn, "SELECT 1") == "1"


def test_status_makes_nothing(tmp_path: Path) -> None:
    status = EmbeddedServer(tmp_path / "nowhere").status()
    assert (status.running, status.version, status.in_use) == (False, None, False)
    assert not (tmp_path / "nowhere").exists()


def test_nobody_else_reaches_the_socket_or_the_data(server: EmbeddedServer) -> None:
    with server.acquire():
        status = server.status()
        owner = status.data_dir.stat().st_uid
        for path in (status.data_dir, status.socket_dir, status.socket_dir / ".s.PGSQL.5432"):
            info = path.lstat()
            assert stat.S_IMODE(info.st_mode) & 0o077 == 0, path
            assert info.st_uid == owner, path
        assert stat.S_IMODE(status.log.stat().st_mode) == 0o600


@pytest.fixture
def long_home(new_home: Path) -> Iterator[Path]:
    path = new_home / ("x" * 60) / ("y" * 60)
    yield path
    socket_dir = EmbeddedServer(path).status().socket_dir
    remove_home(path)
    if socket_dir.is_dir():
        for left in socket_dir.iterdir():
            left.unlink()
        socket_dir.rmdir()


def test_home_too_long_for_a_socket_gets_a_private_short_directory(long_home: Path) -> None:
    server = EmbeddedServer(long_home, linger=0)
    with server.acquire() as lease:
        socket_dir = server.status().socket_dir
        assert socket_dir.parent == Path("/tmp")
        assert stat.S_IMODE(socket_dir.stat().st_mode) == 0o700
        assert query(lease.dsn, "SELECT 1") == "1"


def test_short_directory_that_is_open_to_others_is_refused(long_home: Path) -> None:
    server = EmbeddedServer(long_home, linger=0)
    socket_dir = server.status().socket_dir
    socket_dir.mkdir(mode=0o755)
    with pytest.raises(ServerError, match="not a directory that belongs to"):
        server.acquire()


def test_server_that_cannot_start_shows_the_end_of_its_log(server: EmbeddedServer) -> None:
    server.acquire().release()
    server.stop()
    conf = server.status().data_dir / "postgresql.conf"
    good = conf.read_text()
    conf.write_text(good + "no_such_setting = 1\n")
    try:
        with pytest.raises(ServerError, match=r'did not start:\n(.*\n)*.*"no_such_setting"'):
            server.acquire()
    finally:
        conf.write_text(good)
    assert not server.status().in_use


def test_server_that_does_not_answer_in_time_is_an_error_that_names_the_setting(
    server: EmbeddedServer, home: Path
) -> None:
    with server.acquire():
        pid = server.status().pid
        assert pid is not None
        os.kill(pid, 19)
        try:
            with pytest.raises(ServerError, match=r"no server within 0\.5 s: the server does not answer") as caught:
                EmbeddedServer(home, start_timeout=0.5).acquire()
        finally:
            os.kill(pid, 18)
        assert "TRACEKIT_POSTGRES_START_TIMEOUT" in caught.value.hint


def test_libpq_variables_of_the_user_do_not_reach_the_server(home: Path) -> None:
    """PostgreSQL takes some for server-wide defaults."""
    with UserProcess(home, env=dict(os.environ, PGDATA="/nowhere", PGPORT="1", PGCLIENTENCODING="LATIN1")) as user:
        user.ready()
        assert query(EmbeddedServer(home).dsn, "SHOW client_encoding") == "UTF8"


def test_time_limit_that_is_no_number_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRACEKIT_POSTGRES_LINGER", "soon")
    with pytest.raises(ServerError, match="TRACEKIT_POSTGRES_LINGER=soon is not a number of seconds"):
        EmbeddedServer(tmp_path)

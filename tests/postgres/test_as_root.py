"""What is different when root uses the embedded server. It takes root to run them, as a container's CI does."""

import os
import pwd
import shutil
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest

from tests.postgres.users import UserProcess
from tests.postgres.waiting import wait_until
from tests.support.postgres import make_home, remove_home
from tracekit.postgres import Binaries, EmbeddedServer, ServerError, WheelBinaries

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become other users")

NOBODY_IN_PARTICULAR = 12345  # no entry in /etc/passwd

# The interpreter and the package may lie where only root can read; nothing else is allowed by this.
AS_A_BARE_UID = (
    "setpriv",
    f"--reuid={NOBODY_IN_PARTICULAR}",
    f"--regid={NOBODY_IN_PARTICULAR}",
    "--clear-groups",
    "--inh-caps=+dac_read_search",
    "--ambient-caps=+dac_read_search",
)


def modes_above(path: Path) -> dict[Path, tuple[int, int]]:
    return {p: (p.stat().st_mode, p.stat().st_uid) for p in path.parents}


def owner_of(pid: int | None) -> int:
    return Path(f"/proc/{pid}").stat().st_uid


@pytest.fixture
def hidden() -> Iterator[Path]:
    """A directory that only root can enter."""
    path = make_home()
    path.chmod(0o700)
    yield path
    shutil.rmtree(path)


def test_server_runs_as_another_user_and_no_directory_above_its_data_is_changed(new_home: Path) -> None:
    home = new_home / "a" / "b"
    before = modes_above(home.parent)
    server = EmbeddedServer(home, linger=0)
    old_mask, old_groups = os.umask(0o077), os.getgroups()
    os.setgroups([0, 4])
    try:
        with server.acquire():
            status = server.status()
            assert owner_of(status.pid) != 0
            assert owner_of(status.supervisor_pid) == 0
            for path, was in before.items():
                assert (path.stat().st_mode, path.stat().st_uid) == was, path
            # What was made lets the server's user through, and nobody look.
            assert stat.S_IMODE(home.stat().st_mode) == 0o711
            # Of root's groups, none.
            groups = Path(f"/proc/{status.pid}/status").read_text().split("Groups:")[1].splitlines()[0].split()
            assert groups == []
    finally:
        os.umask(old_mask)
        os.setgroups(old_groups)
        server.stop()


def test_home_that_the_server_cannot_reach_is_an_error_that_says_what_to_set(hidden: Path) -> None:
    with pytest.raises(ServerError, match="cannot reach") as caught:
        EmbeddedServer(hidden / "home").acquire()
    assert "TRACEKIT_HOME" in caught.value.hint
    assert stat.S_IMODE(hidden.stat().st_mode) == 0o700


class HiddenWheel:
    """The wheel's programs, in a directory that only root can enter."""

    def __init__(self, root: Path) -> None:
        found = WheelBinaries().find()
        assert found is not None
        assert found.bundle is not None
        bundle = found.bundle
        for part in bundle.parts:
            shutil.copytree(bundle.root / part, root / part)
        self._found = Binaries(root / found.bin_dir.relative_to(bundle.root), found.version, replace(bundle, root=root))

    def find(self, major: int | None = None) -> Binaries | None:
        return self._found


def test_programs_that_the_server_cannot_reach_are_copied_once(new_home: Path, hidden: Path) -> None:
    server = EmbeddedServer(new_home, provider=HiddenWheel(hidden), linger=0)
    with server.acquire() as lease, psycopg.connect(lease.dsn) as conn:
        assert conn.info.server_version // 10_000 == 18
        [copy] = (new_home / "postgres" / "binaries").iterdir()
        program = Path(f"/proc/{server.status().pid}/exe").readlink()
        assert program.is_relative_to(copy)
        made = copy.stat().st_ino
    server.stop()
    with server.acquire():
        assert [path.stat().st_ino for path in copy.parent.iterdir()] == [made]
    assert stat.S_IMODE(hidden.stat().st_mode) == 0o700


def test_installed_programs_that_the_server_cannot_reach_are_an_error(new_home: Path, hidden: Path) -> None:
    class Installed(HiddenWheel):
        def find(self, major: int | None = None) -> Binaries | None:
            return replace(self._found, bundle=None)

    with pytest.raises(ServerError, match="who runs the server, cannot run"):
        EmbeddedServer(new_home, provider=Installed(hidden)).acquire()


def test_owner_of_the_data_goes_on_running_the_server(home: Path) -> None:
    server = EmbeddedServer(home, linger=0)
    server.acquire().release()
    server.stop()
    data, socket_dir = server.status().data_dir, server.status().socket_dir
    before = data.stat()
    uid = next(p.pw_uid for p in pwd.getpwall() if p.pw_uid not in (0, before.st_uid))
    trees = (data, socket_dir)

    def give(to: int) -> None:
        for tree in trees:
            for path in (tree, *tree.rglob("*")):
                os.chown(path, to, -1, follow_symlinks=False)

    give(uid)
    try:
        with server.acquire():
            assert owner_of(server.status().pid) == uid
    finally:
        server.stop()
        give(before.st_uid)


def test_data_of_root_is_refused(new_home: Path) -> None:
    data = EmbeddedServer(new_home).status().data_dir
    data.mkdir(parents=True)
    with pytest.raises(ServerError, match="PostgreSQL does not run as root"):
        EmbeddedServer(new_home).acquire()


def test_other_local_users_cannot_connect(home: Path) -> None:
    code = f"""
import socket
with server.acquire():
    path = str(server.status().socket_dir / ".s.PGSQL.5432")
    os.setgroups([])
    os.setgid({NOBODY_IN_PARTICULAR})
    os.setuid({NOBODY_IN_PARTICULAR})
    try:
        socket.socket(socket.AF_UNIX).connect(path)
    except OSError as exc:
        print(type(exc).__name__, flush=True)
"""
    with UserProcess(home, code) as user:
        assert user.line() == "PermissionError"


@pytest.fixture
def bare_home() -> Iterator[Path]:
    home = make_home()
    os.chown(home, NOBODY_IN_PARTICULAR, NOBODY_IN_PARTICULAR)
    yield home
    remove_home(home)


def test_uid_without_a_passwd_entry_has_a_server_of_its_own(bare_home: Path) -> None:
    with UserProcess(bare_home, prefix=AS_A_BARE_UID) as user:
        user.ready()
        server = EmbeddedServer(bare_home)
        status = server.status()
        assert owner_of(status.pid) == NOBODY_IN_PARTICULAR
        assert status.data_dir.stat().st_uid == NOBODY_IN_PARTICULAR
        with psycopg.connect(status.dsn) as conn:
            conn.execute("SELECT 1")
        user.kill()
        wait_until(lambda: not server.status().running, "the server stops")


def test_uid_without_a_passwd_entry_where_none_can_be_borrowed_says_so(bare_home: Path) -> None:
    env = dict(os.environ, PATH="/nowhere", TRACEKIT_POSTGRES_BIN=str(bare_home / "bin"))
    wheel = WheelBinaries().find()
    assert wheel is not None
    (bare_home / "bin").symlink_to(wheel.bin_dir)
    code = """
try:
    server.acquire()
except Exception as exc:
    print(exc, "|", exc.hint, flush=True)
"""
    with UserProcess(
        bare_home, code, prefix=(shutil.which(AS_A_BARE_UID[0]) or "", *AS_A_BARE_UID[1:]), env=env
    ) as user:
        line = user.line()
    assert f"uid {NOBODY_IN_PARTICULAR} has no entry in /etc/passwd" in line
    assert f"useradd --uid {NOBODY_IN_PARTICULAR}" in line
    assert [p.name for p in (bare_home / "postgres").iterdir() if p.name.startswith("data")] == []


def test_other_user_without_rights_is_told_whose_data_it_is(bare_home: Path, new_home: Path) -> None:
    EmbeddedServer(new_home, linger=0).acquire().release()
    (new_home / "postgres").chmod(0o755)
    code = """
try:
    server.acquire()
except Exception as exc:
    print(exc, flush=True)
"""
    with UserProcess(new_home, code, prefix=AS_A_BARE_UID) as user:
        assert f"this is user {NOBODY_IN_PARTICULAR}" in user.line()

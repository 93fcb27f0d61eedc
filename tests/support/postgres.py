"""A PostgreSQL server for tests: real, private to the run, gone afterwards."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from tracekit.postgres import BinaryProvider, EmbeddedServer, ServerError

_ROOM = 2 * 2**30


def base() -> Path:
    """Where servers live: in memory if that has room, else in /tmp; either is short enough for a socket.

    The tests start and stop dozens of servers, each waiting for the disk many times. PostgreSQL asks for the same
    flushes wherever it is, and a killed process takes nothing along that it has written: what the tests break does not
    depend on the disk.
    """
    memory = Path("/dev/shm")
    try:
        found = os.statvfs(memory)
    except OSError:
        return Path("/tmp")
    # Containers have 64 MB there, in which no program may run.
    usable = os.access(memory, os.W_OK | os.X_OK) and not found.f_flag & os.ST_NOEXEC
    return memory if usable and found.f_bavail * found.f_frsize > _ROOM else Path("/tmp")


def make_home() -> Path:
    """A new home with a short path, open to the server's user when root runs the tests."""
    _remove_abandoned()
    home = Path(tempfile.mkdtemp(prefix=f"tk-{os.getpid()}-", dir=base()))
    home.chmod(0o711)
    return home


@cache
def _remove_abandoned() -> None:
    """Removes the homes of runs that were killed, which would stay in memory."""
    for home in base().glob("tk-*-*"):
        owner = home.name.split("-")[1]
        if owner.isdigit() and not Path("/proc", owner).exists():
            # Another process of this run may be at it, too, or it is another user's.
            with suppress(OSError, ServerError):
                remove_home(home)


def remove_home(home: Path) -> None:
    """Stops the server of a home and removes both."""
    EmbeddedServer(home).stop(mode="immediate")
    shutil.rmtree(home)


class ThrowawayServer:
    """A server in a home of its own, from `with` to its end. Share one, and give each test a database.

    @pytest.fixture(scope="session")
    def postgres() -> Iterator[ThrowawayServer]:
        with ThrowawayServer() as server:
            yield server
    """

    def __init__(self, *, provider: BinaryProvider | None = None) -> None:
        self.home = make_home()
        self.server = EmbeddedServer(self.home, provider=provider, linger=0)
        self._numbers = itertools.count(1)

    def __enter__(self) -> ThrowawayServer:
        try:
            self._lease = self.server.acquire()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._lease.release()
        self.close()

    @property
    def dsn(self) -> str:
        """The superuser's DSN of the database that tracekit makes."""
        return self.server.dsn

    @property
    def log(self) -> str:
        return self.server.status().log.read_text(errors="replace")

    def create_database(self, name: str = "", *, owner: str = "", template: str = "template1") -> str:
        """An empty database, and its DSN; with `owner`, of a new role that is no superuser, which the DSN names.

        `template` names a database to copy, to which nobody may be connected.
        """
        name = name or f"test_{os.getpid()}_{next(self._numbers)}"
        with psycopg.connect(self.dsn, autocommit=True) as conn:
            if owner:
                conn.execute(sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(owner)))
            conn.execute(
                sql.SQL("CREATE DATABASE {} OWNER {} TEMPLATE {}").format(
                    *map(sql.Identifier, (name, owner or "tracekit", template))
                )
            )
        dsn = make_conninfo(self.dsn, dbname=name)
        return make_conninfo(dsn, user=owner) if owner else dsn

    def drop_database(self, dsn: str) -> None:
        """Drops a database, whoever is connected."""
        name = psycopg.conninfo.conninfo_to_dict(dsn)["dbname"]
        with psycopg.connect(self.dsn, autocommit=True) as conn:
            conn.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(str(name))))

    def close(self) -> None:
        """Stops the server and removes its home."""
        remove_home(self.home)

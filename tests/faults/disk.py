"""A server whose disk is small, and can be filled and emptied under it."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path

import psycopg

from tests.support.postgres import make_home
from tracekit.postgres import EmbeddedServer, Lease, default_provider
from tracekit.postgres.account import Account
from tracekit.postgres.binaries import choose_binaries
from tracekit.postgres.cluster import reachable

SIZE = "160m"
"""With its data, its log files, and its programs where they have to be copied."""


class SmallDisk:
    """A server on a file system of its own, from `async with` to its end.

    Where nothing can be mounted (no root, or a container that may not), the limit is one on the size of each file
    instead: tables cannot grow, as on a full disk, while the write-ahead log can.
    """

    def __init__(self) -> None:
        self.home = make_home()
        self._mount = self.home / "disk"
        self._mount.mkdir(mode=0o711)
        self._mount.chmod(0o711)
        self.is_mounted = _mount(self._mount)
        self.server = EmbeddedServer(self._mount / "home", linger=0)
        self._lease: Lease | None = None
        self._ballast = self._mount / "ballast"

    async def __aenter__(self) -> SmallDisk:
        try:
            self._lease = await asyncio.to_thread(self.server.acquire)
            if not self.is_mounted:
                await asyncio.to_thread(self._shorten_log_files)
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        # Given up first: an `ensure` that is under way brings nothing back any more.
        if self._lease is not None:
            await asyncio.to_thread(self._lease.release)
        await asyncio.to_thread(self.server.stop, mode="immediate")
        if self.is_mounted:
            await asyncio.to_thread(_run, "umount", "--lazy", str(self._mount))
        shutil.rmtree(self.home)

    @property
    def log(self) -> str:
        return self.server.status().log.read_text(errors="replace")

    async def fill(self) -> None:
        """Nothing is left."""
        if self.is_mounted:
            await asyncio.to_thread(self._fill)
        else:
            await asyncio.to_thread(self._limit, str(_LIMIT))

    async def free(self) -> None:
        """There is space again."""
        if self.is_mounted:
            self._ballast.unlink()
        else:
            await asyncio.to_thread(self._limit, "unlimited")

    async def ensure(self) -> None:
        """What a tracekit process does every two seconds: bring the server back if it and its supervisor are gone."""
        assert self._lease is not None
        await asyncio.to_thread(self._lease.ensure)

    async def use_up_log(self) -> None:
        """Until there is no room for another record of the write-ahead log: the server cannot go on without, and ends.

        For a disk that is full, and mounted.
        """
        async with await psycopg.AsyncConnection.connect(self.server.dsn, autocommit=True) as connection:
            with suppress(psycopg.OperationalError):
                while True:
                    await connection.execute("SELECT pg_logical_emit_message(false, 'test', ''), pg_switch_wal()")
            assert connection.broken, "an error, and the server goes on"

    def _fill(self) -> None:
        descriptor = os.open(self._ballast, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            for size in (1 << 20, 4096):
                try:
                    while os.write(descriptor, bytes(size)):
                        pass
                except OSError:
                    continue
        finally:
            os.close(descriptor)

    def _limit(self, size: str) -> None:
        """Of each file that the server writes: its running processes, and those that it starts from now on."""
        status = self.server.status()
        account = Account.for_data(status.data_dir)
        children = Path(f"/proc/{status.pid}/task/{status.pid}/children").read_text().split()
        for pid in (str(status.pid), *children):
            # As the server's own user, who needs no privilege for it. A backend whose client has left is gone.
            account.run(["prlimit", f"--pid={pid}", f"--fsize={size}:"], timeout=10)

    def _shorten_log_files(self) -> None:
        """To less than the limit: only tables are to meet it."""
        status = self.server.status()
        self.server.stop()
        account = Account.for_data(status.data_dir)
        found = choose_binaries(default_provider(), status.data_dir)
        bin_dir = reachable(found, account, self.server._layout.copies).bin_dir
        done = account.run([bin_dir / "pg_resetwal", "--wal-segsize=1", status.data_dir], timeout=60)
        assert done.returncode == 0, done.stdout
        assert self._lease is not None
        self._lease.ensure()


_LIMIT = 2 * 1024 * 1024 + 4096
"""Bytes; no multiple of a page. The page that does not fit is written in part, which PostgreSQL calls a full disk."""


def _mount(place: Path) -> bool:
    """Whether a small file system could be mounted there."""
    return _run("mount", "-t", "tmpfs", "-o", f"size={SIZE},mode=0711,uid={os.geteuid()}", "tracekit-test", str(place))


def _run(*command: str) -> bool:
    """Whether it could be run as root, by root or by one who may call himself that without a password."""
    whole = command if os.geteuid() == 0 else ("sudo", "-n", *command)
    try:
        return subprocess.run(whole, capture_output=True, check=False, timeout=30).returncode == 0
    except OSError:
        return False

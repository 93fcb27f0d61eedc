"""A primary and its streaming standby: two embedded servers, and the ways in which one takes over from the other."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Awaitable, Callable
from typing import LiteralString

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from tests.support.postgres import ThrowawayServer
from tests.support.processes import eventually
from tracekit.postgres import default_provider
from tracekit.postgres.account import Account
from tracekit.postgres.binaries import choose_binaries
from tracekit.postgres.cluster import reachable


class Pair:
    """Two servers with the same data, from `async with` to its end. What `first` accepts is on `second` before it says
    so.
    """

    def __init__(self) -> None:
        self.first = ThrowawayServer()
        self.second = ThrowawayServer()

    async def __aenter__(self) -> Pair:
        try:
            await asyncio.to_thread(self.first.__enter__)
            await asyncio.to_thread(self._copy)
            await asyncio.to_thread(self.second.__enter__)
            _execute(self.first, "ALTER SYSTEM SET synchronous_standby_names = '*'", "SELECT pg_reload_conf()")
            await eventually(_streams_from(self.first), "the standby streams, and commits wait for it")
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        for server in (self.first, self.second):
            # The lease stays with this process, which never asks for the server again.
            await asyncio.to_thread(server.close)

    def dsn(self, of_one: str, *, first_host: str = "") -> str:
        """For whoever wants the writable one of both, whichever it is. `of_one` names the database on either.

        `first_host`: another way to the first server.
        """
        hosts = [first_host or _host(self.first), _host(self.second)]
        return make_conninfo(of_one, host=",".join(hosts), target_session_attrs="read-write", connect_timeout=2)

    async def promote(self) -> None:
        """The second server takes over; returns when it is writable."""
        await asyncio.to_thread(_execute, self.second, "SELECT pg_promote(true, 60)")

    async def stop_first(self, *, immediate: bool) -> None:
        """`immediate`: as by a power cut. Otherwise all it wrote reaches the standby first."""
        await asyncio.to_thread(self.first.server.stop, mode="immediate" if immediate else "fast")

    async def first_follows_second(self) -> None:
        """The first server comes back as the standby of the second; returns when it streams."""
        data = self.first.server.status().data_dir
        settings = data / "postgresql.auto.conf"
        with settings.open("a") as file:
            file.write(f"primary_conninfo = '{_replication(self.second)}'\nsynchronous_standby_names = ''\n")
        signal = data / "standby.signal"
        signal.touch()
        shutil.chown(signal, data.stat().st_uid, data.stat().st_gid)
        await asyncio.to_thread(self.first._lease.ensure)
        await eventually(_streams_from(self.second, "async"), "the old primary streams from the new one")

    def demote_first_in_place(self) -> None:
        """It refuses to write from now on, and keeps all its connections."""
        _execute(self.first, "ALTER SYSTEM SET default_transaction_read_only = on", "SELECT pg_reload_conf()")

    def _copy(self) -> None:
        layout = self.second.server._layout
        account = Account.for_data(self.first.server.status().data_dir)
        layout.prepare(account)
        layout.data.mkdir(mode=0o700)
        os.chown(layout.data, account.uid, account.gid)
        source = choose_binaries(default_provider(), self.first.server.status().data_dir)
        bin_dir = reachable(source, account, layout.copies).bin_dir
        done = account.run(
            [
                bin_dir / "pg_basebackup", "--pgdata", layout.data, "--dbname", _replication(self.first),
                "--write-recovery-conf", "--wal-method=stream", "--checkpoint=fast", "--no-sync",
            ],
            timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout


def _host(server: ThrowawayServer) -> str:
    return str(conninfo_to_dict(server.dsn)["host"])


def _replication(server: ThrowawayServer) -> str:
    """The DSN for those who stream, who are in no database."""
    return make_conninfo("", **{k: v for k, v in conninfo_to_dict(server.dsn).items() if k != "dbname"})


def _execute(server: ThrowawayServer, *statements: LiteralString) -> None:
    with psycopg.connect(server.dsn, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement)


def _streams_from(server: ThrowawayServer, state: str = "sync") -> Callable[[], Awaitable[bool]]:
    async def look() -> bool:
        async with await psycopg.AsyncConnection.connect(server.dsn, autocommit=True) as connection:
            found = await connection.execute("SELECT state, sync_state FROM pg_stat_replication")
            return await found.fetchall() == [("streaming", state)]

    return look

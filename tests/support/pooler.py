"""A PgBouncer in transaction mode that can be killed and started again under its clients."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from psycopg.conninfo import conninfo_to_dict, make_conninfo

from tests.support.processes import eventually
from tests.support.programs import require_program
from tracekit.postgres import UnreachableError, connect


class Pooler:
    """Before the server of `dsn`, from `async with` to its end. Started again, it is found where it was."""

    def __init__(self, dsn: str) -> None:
        self._program = require_program("pgbouncer")
        parts: dict[str, Any] = conninfo_to_dict(dsn)
        self._directory = Path(tempfile.mkdtemp(prefix="tk-", dir="/tmp"))
        self._log = self._directory / "log"
        self._log.touch()
        self._config = self._directory / "pgbouncer.ini"
        self._config.write_text(
            "[databases]\n"
            f"* = host={parts['host']} port={parts['port']} user={parts['user']}\n"
            "[pgbouncer]\n"
            f"unix_socket_dir = {self._directory}\n"
            "listen_port = 6432\n"
            "auth_type = any\n"
            "pool_mode = transaction\n"
            "default_pool_size = 8\n"
            "max_client_conn = 200\n"
            # 15 s by default, during which it turns everybody away from a server that is back.
            "server_login_retry = 1\n"
        )
        self._options: dict[str, Any] = {}
        if os.geteuid() == 0:
            # It does not run as root, and must get at the server's socket: it runs as whom the server runs as.
            owner = os.stat(parts["host"])
            for path in (self._directory, self._config, self._log):
                shutil.chown(path, owner.st_uid, owner.st_gid)
            self._options = {"user": owner.st_uid, "group": owner.st_gid, "extra_groups": []}
        self._process: asyncio.subprocess.Process | None = None
        self.dsn = make_conninfo(dsn, host=str(self._directory), port=6432)

    async def __aenter__(self) -> Pooler:
        try:
            await self.start()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.kill()
        shutil.rmtree(self._directory)

    async def start(self) -> None:
        """Returns when it answers."""
        with self._log.open("ab") as sink:
            self._process = await asyncio.create_subprocess_exec(
                self._program, self._config, stdout=sink, stderr=sink, cwd="/", **self._options
            )
        await eventually(self._answers, "PgBouncer answers")

    async def kill(self) -> None:
        """Every client is cut off, in the middle of what it says."""
        process, self._process = self._process, None
        if process is not None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    async def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.returncode is None, self._log.read_text()
        with suppress(UnreachableError):
            await (await connect(self.dsn, transaction_pooler=True)).close()
            return True
        return False

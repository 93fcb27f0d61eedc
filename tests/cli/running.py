"""Running `tracekit` as people do: as a process of its own, on a pipe or on a terminal."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import pty
import struct
import subprocess
import sys
import termios
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

COMMAND = [sys.executable, "-m", "tracekit"]


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]


@dataclass(frozen=True)
class Cli:
    """The command line with a configuration of its own."""

    environment: Mapping[str, str]

    async def __call__(self, *arguments: str, stdin: str = "", **environment: str) -> Ran:
        process = await asyncio.create_subprocess_exec(
            *COMMAND, *arguments, env={**self.environment, **environment},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        out, err = await process.communicate(stdin.encode())
        assert process.returncode is not None
        return Ran(process.returncode, out.decode(), err.decode())

    async def ok(self, *arguments: str, **environment: str) -> Ran:
        ran = await self(*arguments, **environment)
        assert (ran.code, ran.err) == (0, "")
        return ran

    @asynccontextmanager
    async def started(self, *arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
        """A command on a pipe, to be read while it runs."""
        process = await asyncio.create_subprocess_exec(
            *COMMAND, *arguments, env=self.environment,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        try:
            yield process
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()

    @asynccontextmanager
    async def on_terminal(
        self, *arguments: str, columns: int = 100, rows: int = 40, through: Sequence[str] = ()
    ) -> AsyncIterator[Terminal]:
        """A command on a terminal of this size, run by the command `through`, if any."""
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        process = await asyncio.create_subprocess_exec(
            *through, *COMMAND, *arguments, env={**self.environment, "TERM": "xterm-256color"},
            stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
            # Its own, so that what is typed and a new size become signals.
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )  # fmt: skip
        os.close(theirs)
        terminal = Terminal(process, ours)
        try:
            yield terminal
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
            terminal.close()


class Terminal:
    """What a command on a terminal has shown so far."""

    def __init__(self, process: asyncio.subprocess.Process, fd: int) -> None:
        self.process = process
        self.shown = ""
        self._fd = fd
        self._more = asyncio.Event()
        self._closed = False
        os.set_blocking(fd, False)
        asyncio.get_running_loop().add_reader(fd, self._read)

    def _read(self) -> None:
        try:
            data = os.read(self._fd, 65_536)
        except OSError:  # Linux says so where the other end is closed
            data = b""
        if data:
            self.shown += data.decode(errors="replace")
        else:
            self.close()
        self._more.set()

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            asyncio.get_running_loop().remove_reader(self._fd)
            os.close(self._fd)

    async def see(self, text: str) -> None:
        """Wait until this has been shown."""
        while text not in self.shown:
            assert not self._closed, f"{text!r} was never shown:\n{self.shown}"
            self._more.clear()
            await self._more.wait()

    def resize(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self._fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, text: str) -> None:
        os.write(self._fd, text.encode())

    async def end(self) -> int:
        """Wait for the command's end; its exit code."""
        while not self._closed:
            self._more.clear()
            await self._more.wait()
        return await self.process.wait()


def environment(home: Path, dsn: str = "") -> dict[str, str]:
    """Variables for a command that touches nothing but `home`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("TRACEKIT", "PG", "OTEL"))}
    for name in ("NO_COLOR", "FORCE_COLOR", "TRACEPARENT", "TRACESTATE", "COLUMNS", "LINES"):
        kept.pop(name, None)
    config = home / "tracekit.toml"
    config.touch()
    return {**kept, "TRACEKIT_HOME": str(home), "TRACEKIT_CONFIG": str(config), "TRACEKIT_DSN": dsn}

"""Processes that tests start, watch, freeze and kill, and waiting for what others do."""

from __future__ import annotations

import asyncio
import math
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

T = TypeVar("T")

PATIENCE = 100.0
"""Seconds that a test waits for an event before it fails, on however slow a machine. No promise is measured by it: what
must not happen by a timer (a poll, a lease) has one that is longer, and how long things take is printed.
"""

ALL_DAY = 4 * PATIENCE
"""The same for what is many events one after the other, such as the end of all work while workers are killed."""

ROOT = Path(__file__).parents[2]


@asynccontextmanager
async def patience(seconds: float = PATIENCE) -> AsyncIterator[asyncio.Timeout]:
    """As `asyncio.timeout`, of seconds in which this process ran: where a machine stood still as a whole, what is
    waited for has had no time either.
    """
    async with asyncio.timeout(None) as limit:

        async def lose() -> None:
            for _ in range(math.ceil(seconds)):
                await asyncio.sleep(1)
            limit.reschedule(asyncio.get_running_loop().time())

        async with background(lose()):
            yield limit


async def eventually(look: Callable[[], Awaitable[T]], what: str, *, within: float = PATIENCE) -> T:
    """What `look` answers, once that is true; looks again and again for up to `within` seconds."""
    limit: asyncio.Timeout | None = None
    try:
        async with patience(within) as limit:
            while not (seen := await look()):
                if limit.expired():  # what was cancelled took no notice
                    raise TimeoutError
                await asyncio.sleep(0.02)
            return seen
    except TimeoutError as late:
        if limit is None or not limit.expired():
            raise  # what was looked at took too long
        raise AssertionError(f"not within {within:g} s: {what}") from late


class Process:
    """`python -m <module> <arguments>` in the checkout. What it prints is in `lines`, what it logs in a file."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path) -> None:
        self._process = process
        self._log = log
        self._printed = asyncio.Event()
        self._reading = asyncio.create_task(self._read())
        self.lines: list[str] = []

    @classmethod
    async def start(cls, module: str, *arguments: str, log: Path, env: Mapping[str, str] | None = None) -> Self:
        """A running process. `env` is added to this process's environment."""
        with log.open("ab") as sink:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                module,
                *arguments,
                cwd=ROOT,
                env={**os.environ, **(env or {})},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=sink,
            )
        return cls(process, log)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """None while it runs."""
        return self._process.returncode

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    async def prints(self, *, lines: int = 1, within: float = PATIENCE) -> None:
        """Wait until it has printed that many lines."""
        async with patience(within):
            while len(self.lines) < lines:
                assert self.returncode is None, f"{self.pid} ended with {self.returncode}:\n{self.log[-4000:]}"
                self._printed.clear()
                await self._printed.wait()

    def send(self, number: signal.Signals) -> None:
        if self.returncode is None:
            self._process.send_signal(number)

    async def kill(self) -> None:
        """kill -9, and wait until it is gone."""
        self.send(signal.SIGKILL)
        await self.gone()

    def freeze(self) -> None:
        self.send(signal.SIGSTOP)

    def thaw(self) -> None:
        self.send(signal.SIGCONT)

    async def gone(self, *, within: float = PATIENCE) -> int:
        """Its exit status, once it has ended and all it printed is in `lines`."""
        try:
            async with patience(within):
                status = await self._process.wait()
                await self._reading
        except TimeoutError:
            raise AssertionError(f"{self.pid} is still there after {within:g} s:\n{self.log[-4000:]}") from None
        return status

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.kill()

    async def _read(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            # A killed process's last line may be cut: only whole ones count.
            if line.endswith(b"\n"):
                self.lines.append(line.decode().rstrip("\n"))
            self._printed.set()
        self._printed.set()


@asynccontextmanager
async def background(*coroutines: Awaitable[object]) -> AsyncIterator[None]:
    """Coroutines that run beside a block and end with it."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

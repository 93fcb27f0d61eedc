"""A contestant's process, from outside: started, told when to go and when to stop, and its result."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LONGEST = 900.0
"""Seconds that one answer may take."""

_CONFIGURING = ("TRACEKIT_", "OTEL_", "PG", "PROCRASTINATE_", "AWA_")


class Failed(Exception):
    """A contestant did not do what it was told; its last words are in the message."""


class Process:
    """One process of `python -m <module> DSN VERB OPTIONS`; see `benchmarks.driver`."""

    def __init__(self, what: str, process: asyncio.subprocess.Process, errors: asyncio.Task[bytes]) -> None:
        self._what = what
        self._process = process
        self._errors = errors

    async def answer(self, key: str, within: float = LONGEST) -> Any:
        """The value of the next line that has `key`; lines without are passed over. `TimeoutError` after `within`."""
        assert self._process.stdout is not None
        async with asyncio.timeout(within):
            while line := await self._process.stdout.readline():
                try:
                    said = json.loads(line)
                except ValueError:
                    continue
                if isinstance(said, dict) and key in said:
                    return said[key]
        errors = (await self._errors).decode(errors="replace").strip().splitlines()
        raise Failed(f"{self._what}: {' | '.join(errors[-3:]) or 'it ended without a word'}")

    async def tell(self) -> float:
        """One line: go, or stop. Returns the time."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"\n")
        at = time.monotonic()
        await self._process.stdin.drain()
        return at


def _environment() -> dict[str, str]:
    """Without what configures a contestant: all run as their options say, whoever starts the benchmarks."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith(_CONFIGURING)}
    return {**ours, "TRACEKIT_CONFIG": os.devnull}


@asynccontextmanager
async def started(python: str, module: str, dsn: str, verb: str, options: dict[str, Any]) -> AsyncIterator[Process]:
    """The process, which is gone when this is left."""
    process = await asyncio.create_subprocess_exec(
        python, "-m", module, dsn, verb, json.dumps(options), cwd=ROOT, env=_environment(),
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        limit=2**26,
    )  # fmt: skip
    assert process.stderr is not None
    errors = asyncio.create_task(process.stderr.read())
    try:
        yield Process(f"{module} {verb}", process, errors)
        async with asyncio.timeout(10):
            await process.wait()
    except TimeoutError:
        pass  # a result is a result; some clients are slow to leave
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        await errors

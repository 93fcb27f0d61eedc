"""Processes that use an embedded server and can be killed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import TracebackType

_PRELUDE = """
import os, sys
from pathlib import Path
from tracekit.postgres import EmbeddedServer

server = EmbeddedServer(Path(sys.argv[1]), linger=0)
"""

_HOLD = """
lease = server.acquire()
print("ready", flush=True)
sys.stdin.read()
"""


class UserProcess:
    """A program that runs `code` with `server` at hand; by default it takes a lease and holds it."""

    def __init__(
        self,
        home: Path,
        code: str = _HOLD,
        *,
        prefix: tuple[str, ...] = (),
        env: dict[str, str] | None = None,
    ) -> None:
        self.process = subprocess.Popen(
            [*prefix, sys.executable, "-c", _PRELUDE + code, str(home)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=env,
            cwd="/",
        )

    def line(self) -> str:
        """The next line that it prints; blocks until it does."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def ready(self) -> UserProcess:
        line = self.line()
        assert line == "ready", line + self.rest()
        return self

    def rest(self) -> str:
        """All that it prints until its end."""
        assert self.process.stdout is not None
        return self.process.stdout.read()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def __enter__(self) -> UserProcess:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.kill()
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()

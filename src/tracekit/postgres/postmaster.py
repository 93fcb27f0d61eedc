"""The running server of a data directory: who it is, whether it lives, how it is stopped."""

from __future__ import annotations

import contextlib
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

StopMode = Literal["fast", "immediate"]

_SIGNALS: dict[StopMode, signal.Signals] = {
    "fast": signal.SIGINT,
    "immediate": signal.SIGQUIT,
}


@dataclass(frozen=True)
class Postmaster:
    """What `postmaster.pid` says. It may be stale: ask `is_alive`."""

    data: Path
    pid: int
    ready: bool

    @classmethod
    def read(cls, data: Path) -> Postmaster | None:
        """The server that last started on this data, dead or alive."""
        try:
            lines = (data / "postmaster.pid").read_text(encoding="utf-8").splitlines()
            # A negative number stands for a standalone backend.
            pid = abs(int(lines[0]))
        except (OSError, ValueError, IndexError):
            return None
        return cls(data, pid, ready=len(lines) > 7 and lines[7].strip() == "ready")

    def is_alive(self) -> bool:
        """Whether the process is this directory's server, and not one that got its number after it died."""
        return is_running(self.pid) and _works_in(self.pid, self.data)

    def signal(self, mode: StopMode) -> None:
        """Tells the server to stop, in either case without waiting for its clients to leave."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, _SIGNALS[mode])


def is_running(pid: int) -> bool:
    """Whether there is a process of this number, whosever it is."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def running(data: Path) -> Postmaster | None:
    """The live server of this data directory."""
    found = Postmaster.read(data)
    return found if found and found.is_alive() else None


def clear_stale_locks(data: Path, socket_dir: Path) -> None:
    """Removes the lock files of a dead server whose number another process has got, as happens in containers.

    PostgreSQL refuses to start while a process with the recorded number exists. A number that is free is left to it,
    so that its own check for surviving backends sees everything there is to see.
    """
    for path in (data / "postmaster.pid", socket_dir / ".s.PGSQL.5432.lock"):
        try:
            pid = abs(int(path.read_text(encoding="utf-8").split("\n", 1)[0]))
        except (OSError, ValueError):
            continue
        if is_running(pid) and not _works_in(pid, data):
            path.unlink(missing_ok=True)


def _works_in(pid: int, data: Path) -> bool:
    """Whether the process's working directory is `data`; the postmaster enters it before it writes its lock file."""
    if not os.path.isdir("/proc/self"):
        return True  # no way to tell; then the number has to do
    try:
        return os.path.samefile(f"/proc/{pid}/cwd", data)
    except OSError:
        return False

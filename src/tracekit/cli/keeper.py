"""The keeper: a small process that uses the embedded server until it is told to go, so that the server stays.

`tracekit db start` begins it, `tracekit db stop` ends it. There is one for each data directory: it holds a lock beside
the server's own, which the kernel takes back however it ends.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tracekit.errors import TracekitError
from tracekit.postgres import EmbeddedServer, ServerError
from tracekit.postgres.layout import Layout
from tracekit.postgres.locks import FileLock

_READY = "ready"
_ALREADY = "already"
_LOOK_S = 5.0
"""Between looks whether the server and its supervisor are there: killed together, nobody else would restart them."""

_LEAVE_S = 10.0


def _lock_path(home: Path) -> Path:
    return Layout(home.resolve()).keeper_lock


def start(home: Path) -> int | None:
    """Begin a keeper; returns its pid when the server runs, or None where there was one. Raises `ServerError`."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tracekit.cli.keeper", str(home)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        text=True,
    )
    assert process.stdout is not None, "it is a pipe"
    with process.stdout as said:
        answer = said.read().strip()
    if answer == _READY:
        return process.pid
    process.wait()
    if answer == _ALREADY:
        return None
    message, _, hint = answer.partition("\n")
    raise ServerError(message or "the server's keeper did not start", hint=hint)


def pid(home: Path) -> int | None:
    """The keeper's process, or None where there is none."""
    return FileLock.holder(_lock_path(home))


def stop(home: Path) -> None:
    """End the keeper, if there is one; the server may go on for others. Raises `ServerError`."""
    deadline = time.monotonic() + _LEAVE_S
    while (keeping := pid(home)) is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(keeping, signal.SIGTERM)
        if time.monotonic() > deadline:
            raise ServerError(f"the server's keeper, process {keeping}, does not end", hint=f"kill -9 {keeping}")
        time.sleep(0.02)


def keep(home: Path) -> int:
    """Be the keeper, until SIGTERM."""
    ends = {signal.SIGTERM, signal.SIGINT}
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)
    try:
        with EmbeddedServer(home).acquire() as lease:
            lock = FileLock(_lock_path(home))
            if not lock.try_exclusive():
                _say(_ALREADY)
                return 0
            lock.sign()
            _say(_READY)
            while signal.sigtimedwait(ends, _LOOK_S) is None:
                lease.ensure()
            lock.close()
    except TracekitError as error:
        _say(f"{error}\n{error.hint}")
        return error.exit_code
    return 0


def _say(text: str) -> None:
    """Answer whoever began this process, once, and let go of them."""
    if sys.stdout.closed:
        return
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.write(text)
        sys.stdout.flush()
    # The descriptor stays taken: a database connection that got number 1 would be printed to.
    os.dup2(os.open(os.devnull, os.O_RDWR), 1)


if __name__ == "__main__":
    sys.exit(keep(Path(sys.argv[1])))

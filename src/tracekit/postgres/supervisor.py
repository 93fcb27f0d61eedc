"""The process that keeps an embedded server: starts it, restarts it when it dies, stops it when
its last user has left.

`python -m tracekit.postgres.supervisor` is started by `EmbeddedServer`, which hands it the
supervisor's lock as an open descriptor. It runs in a session of its own and outlives the process
that started it.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

from .errors import ServerError
from .locks import FileLock
from .orders import Orders
from .postmaster import Postmaster, StopMode, clear_stale_locks, running

# How often the users' lock is tried, and how late the death of an adopted server is seen.
_TICK_S = 0.25

# A fast stop writes a checkpoint. Past this the server is stopped at once and recovers on start.
_STOP_TIMEOUT_S = 60.0

# A server that dies is started again after these waits, doubled each time.
_FIRST_BACKOFF_S = 0.1
_LONGEST_BACKOFF_S = 30.0

# A server that was up this long was well; its death starts the backoff anew.
_HEALTHY_S = 30.0

# A server that was never ready and died this often will not be ready the next time either. More
# than once, because the backends of a killed one may hold its memory for a moment.
_FIRST_STARTS = 4

# The log is kept once more under `.1`.
_LOG_LIMIT_BYTES = 16 * 1024 * 1024

_STOP_SIGNALS: dict[int, StopMode] = {
    signal.SIGTERM: "fast",
    signal.SIGINT: "fast",
    signal.SIGQUIT: "immediate",
}


class Supervisor:
    """Holds the supervisor's lock and looks after one server until nobody uses it."""

    def __init__(self, orders: Orders) -> None:
        self._layout = orders.layout
        self._orders = orders
        self._lock = FileLock.inherited(orders.layout.supervisor_lock, orders.lock_fd)
        self._users = FileLock(orders.layout.users_lock)
        self._server: Postmaster | None = None
        self._child: subprocess.Popen[bytes] | None = None
        self._was_ready = False
        self._failures = 0
        self._started_at = 0.0
        self._next_start = 0.0
        self._idle_since: float | None = None
        self._idle_mark = 0
        self._stop_mode: StopMode | None = None
        self._wakeup = self._handle_signals()

    def run(self) -> int:
        """Returns the process's exit status: 0 if the server was stopped, 1 if it cannot start."""
        self._lock.sign()
        if adopted := running(self._layout.data):
            _note(f"adopting the server with pid {adopted.pid}")
            self._server, self._was_ready = adopted, True
            self._started_at = time.monotonic()
        while True:
            if not self._is_alive() and not self._revive():
                return 1
            _rotate(self._layout.log)
            self._wait()
            if self._stop_mode:
                self._stop(self._stop_mode)
                return 0
            if self._is_idle():
                # The users' lock is now ours alone and stays so: who comes now waits for us to
                # leave, and does not join a server that is going down.
                self._stop("fast")
                return 0

    def _handle_signals(self) -> int:
        wakeup, writer = os.pipe()
        for fd in (wakeup, writer):
            os.set_blocking(fd, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        for number in _STOP_SIGNALS:
            signal.signal(number, self._on_stop_signal)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        return wakeup

    def _on_stop_signal(self, number: int, _frame: FrameType | None) -> None:
        self._stop_mode = _STOP_SIGNALS[number]

    def _wait(self) -> None:
        """Until the server may have died, a signal came, or the tick is over."""
        if select.select([self._wakeup], [], [], _TICK_S)[0]:
            with contextlib.suppress(BlockingIOError):
                os.read(self._wakeup, 4096)

    def _is_idle(self) -> bool:
        """Whether nobody has used the server for the linger; if so, the users' lock is held."""
        if not self._users.try_exclusive():
            self._idle_since = None
            return False
        now, mark = time.monotonic(), self._users.touched()
        if self._idle_since is None or mark != self._idle_mark:
            self._idle_since, self._idle_mark = now, mark
        if now - self._idle_since >= self._orders.linger:
            return True
        self._users.unlock()
        return False

    def _start(self) -> None:
        clear_stale_locks(self._layout.data, self._layout.socket_dir)
        # Something may have cleaned /tmp since.
        self._layout.prepare_socket_dir(self._orders.account)
        settings = {
            "listen_addresses": "",
            "port": "5432",
            "unix_socket_directories": _quoted(str(self._layout.socket_dir)),
            "unix_socket_permissions": "0700",
            "timezone": "UTC",
            "log_timezone": "UTC",
        }
        options = [f"--{name}={value}" for name, value in settings.items()]
        # Its log is ours: standard error, which is appended to. It gets no lock (close_fds).
        self._child = subprocess.Popen(
            [self._orders.bin_dir / "postgres", "-D", self._layout.data, *options],
            stdin=subprocess.DEVNULL,
            **self._orders.account.popen_options(),
        )
        self._server = Postmaster(self._layout.data, self._child.pid, ready=False)
        self._started_at = time.monotonic()
        self._next_start = 0.0

    def _is_alive(self) -> bool:
        if self._server is None:
            return False
        alive = self._child.poll() is None if self._child else self._server.is_alive()
        if alive and not self._was_ready:
            found = Postmaster.read(self._layout.data)
            self._was_ready = found is not None and found.pid == self._server.pid and found.ready
        return alive

    def _revive(self) -> bool:
        """Starts a dead server when its backoff is over; False if there is no point in it."""
        now = time.monotonic()
        if self._server is not None:
            status = f" with status {self._child.returncode}" if self._child else ""
            if now - self._started_at >= _HEALTHY_S:
                self._failures = 0
            self._server = self._child = None
            return self._failed(f"the server ended{status}")
        if now >= self._next_start:
            try:
                self._start()
            except (OSError, ServerError) as exc:
                return self._failed(f"the server cannot be started: {exc}")
        return True

    def _failed(self, what: str) -> bool:
        backoff = min(_FIRST_BACKOFF_S * 2**self._failures, _LONGEST_BACKOFF_S)
        self._failures += 1
        if not self._was_ready and self._failures >= _FIRST_STARTS:
            _note(f"{what}; giving up after {self._failures} starts")
            return False
        _note(f"{what}; starting it in {backoff:.1f} s")
        self._next_start = time.monotonic() + backoff
        return True

    def _stop(self, mode: StopMode) -> None:
        if self._server is None:
            return
        _note(f"stopping the server ({mode})")
        if not self._end(self._server, mode):
            _note(f"the server did not stop within {_STOP_TIMEOUT_S:.0f} s; stopping it at once")
            self._end(self._server, "immediate")

    def _end(self, server: Postmaster, mode: StopMode) -> bool:
        server.signal(mode)
        deadline = time.monotonic() + _STOP_TIMEOUT_S
        while self._is_alive():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True


def _quoted(path: str) -> str:
    """An element of a list setting."""
    return '"' + path.replace('"', '""') + '"'


def _note(text: str) -> None:
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
    sys.stderr.write(f"{now} UTC [{os.getpid()}] SUPERVISOR:  {text}\n")
    sys.stderr.flush()


def _rotate(log: Path) -> None:
    """Copies a full log and empties it; the server keeps it open for appending."""
    with contextlib.suppress(OSError):
        if log.stat().st_size > _LOG_LIMIT_BYTES:
            shutil.copyfile(log, log.with_name(f"{log.name}.1"))
            os.truncate(log, 0)


def main(argv: list[str]) -> int:
    """Leaves the caller's process tree and supervises; the first process returns at once."""
    orders = Orders.parse(argv)
    if os.fork():
        os._exit(0)
    os.umask(0o077)
    return Supervisor(orders).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

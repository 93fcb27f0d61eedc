"""A PostgreSQL server of the user's own, shared by all of the user's processes."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sysconfig
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from psycopg import pq
from psycopg.conninfo import make_conninfo

from .account import Account
from .binaries import BinaryProvider, choose_binaries, default_provider
from .cluster import DATABASE, ROLE, initialise, reachable
from .errors import ServerError
from .layout import Layout
from .locks import FileLock
from .orders import Orders
from .postmaster import Postmaster, StopMode, running

_POLL_S = 0.02
_STOP_TIMEOUT_S = 150.0  # longer than the supervisor itself waits for either kind of stop
_LOG_TAIL_LINES = 20
_LOG_TAIL_BYTES = 16_384


@dataclass(frozen=True)
class ServerStatus:
    """What can be said of an embedded server without changing it.

    `version` is the data's PostgreSQL version, major only, None before the first start. `in_use`
    says whether any process holds a lease.
    """

    running: bool
    pid: int | None
    version: str | None
    data_dir: Path
    socket_dir: Path
    in_use: bool
    supervisor_pid: int | None
    log: Path
    dsn: str


class Lease:
    """The right to a running server. Held until `release`, or until the process ends in any way.

    It does not pass to forked children: a child acquires its own.
    """

    def __init__(self, server: EmbeddedServer, users: FileLock) -> None:
        self._server = server
        self._users = users

    @property
    def dsn(self) -> str:
        """The server's conninfo string. It stays the same when the server comes back."""
        return self._server.dsn

    def ensure(self) -> None:
        """Brings the server and its supervisor back if they are gone; cheap when they are there.

        The supervisor restarts a crashed server by itself. This is for the case that both were
        killed, or that somebody stopped the server while it was in use. Raises ServerError.
        """
        if not self._users.is_open:
            raise ServerError("the lease was given up, or belongs to the parent process")
        self._server._ensure_running(time.monotonic() + self._server.start_timeout)

    def release(self) -> None:
        """Gives the lease up; the last one lets the server stop. Does nothing the second time."""
        if not self._users.is_open:
            return
        # Where the supervisor was killed, nobody would stop the server after us.
        with contextlib.suppress(ServerError, OSError):
            self._server._replace_supervisor()
        self._users.close()

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()


class EmbeddedServer:
    """The server whose data lies below a home directory.

    It runs while somebody uses it. Each user holds a shared lock on a file, which the kernel takes
    back however the user ends; a small supervisor process starts the server again when it crashes,
    and stops it once nobody has held that lock for the linger.

    It listens on a Unix socket only, and takes anybody who gets there for its superuser. What keeps
    others out is the file system: the socket's directory belongs to the user that the server runs
    as and is closed to everybody else (0700), and so is the socket (0700). The same protects the
    data directory, so a password would guard nothing more: who can get at the socket is that user,
    or root. Run as root, the server runs as `postgres` or `nobody`; whatever else runs as that user
    is let in, which is a reason not to have daemons share `nobody`.
    """

    def __init__(
        self,
        home: Path,
        *,
        provider: BinaryProvider | None = None,
        start_timeout: float | None = None,
        linger: float | None = None,
    ) -> None:
        """Touches nothing yet.

        `start_timeout` (seconds, default `TRACEKIT_POSTGRES_START_TIMEOUT` or 60) is how long
        `acquire` waits, crash recovery included. `linger` (seconds, default
        `TRACEKIT_POSTGRES_LINGER` or 2) is how long a server without users stays up, so that
        commands that follow one another do not start and stop it each time; the process that
        starts the server decides it.
        """
        self._layout = Layout(home.absolute().resolve())
        self._provider = provider
        self.start_timeout = _seconds("TRACEKIT_POSTGRES_START_TIMEOUT", 60.0, start_timeout)
        self.linger = _seconds("TRACEKIT_POSTGRES_LINGER", 2.0, linger)

    @property
    def dsn(self) -> str:
        """The conninfo string, whether the server runs or not."""
        return make_conninfo(host=str(self._layout.socket_dir), port=5432, user=ROLE, dbname=DATABASE)

    def acquire(self) -> Lease:
        """Joins the running server, or sets it up and starts it; returns when it answers.

        Blocks for up to `start_timeout` seconds; call it in a thread from a coroutine. Raises
        ServerError, which carries the end of the server's log where that helps.
        """
        deadline = time.monotonic() + self.start_timeout
        with _as_server_error("cannot use the embedded server"):
            self._layout.prepare(Account.for_data(self._layout.data))
            users = FileLock(self._layout.users_lock)
            try:
                # Refused only while the supervisor stops the server, or looks whether to.
                while not users.try_shared():
                    if time.monotonic() > deadline:
                        raise self._too_late("the server is being stopped")
                    time.sleep(_POLL_S)
                users.touch()
                self._ensure_running(deadline)
            except BaseException:
                users.close()
                raise
        return Lease(self, users)

    def status(self) -> ServerStatus:
        """Looks without touching anything; a home that does not exist is not made."""
        layout = self._layout
        with _as_server_error("cannot look at the embedded server"):
            server = running(layout.data)
            supervisor = FileLock.holder(self._layout.supervisor_lock)
            in_use = False
            if layout.users_lock.exists():
                with contextlib.closing(FileLock(layout.users_lock)) as users:
                    # Not shared either: the supervisor has it, and is stopping the server.
                    in_use = not users.try_exclusive() and users.try_shared()
            version_file = layout.data / "PG_VERSION"
            version = version_file.read_text().strip() if version_file.exists() else None
        return ServerStatus(
            running=server is not None,
            pid=server.pid if server else None,
            version=version,
            data_dir=layout.data,
            socket_dir=layout.socket_dir,
            in_use=in_use,
            supervisor_pid=supervisor,
            log=layout.log,
            dsn=self.dsn,
        )

    def stop(self, *, mode: StopMode = "fast") -> None:
        """Stops the server, in use or not, and returns when it is down.

        `fast` rolls back what is open and writes a checkpoint; `immediate` drops everything, and
        the next start recovers from the log. Users find their connections broken until somebody
        acquires again. Does nothing if it does not run. Raises ServerError if it does not stop.
        """
        deadline = time.monotonic() + _STOP_TIMEOUT_S
        with _as_server_error("cannot stop the embedded server"):
            signalled: set[int] = set()
            server: Postmaster | None = None
            while True:
                supervisor = FileLock.holder(self._layout.supervisor_lock)
                # The server's file goes a moment before the process does.
                last = server if server and server.is_alive() else None
                server = running(self._layout.data) or last
                if supervisor is None and server is None:
                    return
                if supervisor is not None:
                    if supervisor not in signalled:
                        number = signal.SIGTERM if mode == "fast" else signal.SIGQUIT
                        with contextlib.suppress(ProcessLookupError):
                            os.kill(supervisor, number)
                        signalled.add(supervisor)
                elif server is not None and server.pid not in signalled:
                    server.signal(mode)
                    signalled.add(server.pid)
                if time.monotonic() > deadline:
                    raise ServerError(
                        f"the server did not stop within {_STOP_TIMEOUT_S:.0f} s",
                        hint=f"See {self._layout.log}.",
                    )
                time.sleep(_POLL_S)

    def _ensure_running(self, deadline: float) -> None:
        """Returns when the server answers and has a supervisor. Call it with the users' lock."""
        log_start = self._log_size()
        started = False
        while True:
            answer = pq.PGconn.ping(f"{self.dsn} connect_timeout=2".encode())
            with contextlib.closing(FileLock(self._layout.supervisor_lock)) as lock:
                unsupervised = lock.try_exclusive()
                if unsupervised:
                    if started:
                        raise ServerError(
                            f"the PostgreSQL server did not start{self._log_tail(log_start)}",
                            hint=f"The whole log is {self._layout.log}.",
                        )
                    self._start_supervisor(lock)
                    started = True
            if answer == pq.Ping.OK and not unsupervised:
                return
            if time.monotonic() > deadline:
                why = "is still starting" if answer == pq.Ping.REJECT else "does not answer"
                raise self._too_late(f"the server {why}{self._log_tail(log_start)}")
            time.sleep(_POLL_S)

    def _replace_supervisor(self) -> None:
        """Gives a running server a supervisor if it has none."""
        with contextlib.closing(FileLock(self._layout.supervisor_lock)) as lock:
            if lock.try_exclusive() and running(self._layout.data):
                self._start_supervisor(lock)

    def _start_supervisor(self, lock: FileLock) -> None:
        """Sets up what is missing and hands the lock, which is held, to a new supervisor."""
        os.ftruncate(lock.fileno(), 0)  # a killed supervisor left its pid there
        layout = self._layout
        account = Account.for_data(layout.data)
        binaries = choose_binaries(self._provider or default_provider(), layout.data)
        binaries = reachable(binaries, account, layout.copies)
        initialise(layout, binaries, account)
        layout.prepare_socket_dir(account)
        orders = Orders(layout, binaries.bin_dir, account, self.linger, lock.fileno())
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW
        log = os.open(layout.log, flags, 0o600)
        try:
            # Returns at once: the supervisor forks, so that it is nobody's child.
            done = subprocess.run(
                orders.command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/",
                env=_with_import_path(), pass_fds=[lock.fileno()], start_new_session=True,
                timeout=self.start_timeout, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired as exc:
            raise self._too_late("its supervisor does not start") from exc
        finally:
            os.close(log)
        if done.returncode != 0:
            raise ServerError(f"the server's supervisor did not start{self._log_tail(0)}")

    def _log_size(self) -> int:
        try:
            return self._layout.log.stat().st_size
        except FileNotFoundError:
            return 0

    def _log_tail(self, start: int) -> str:
        """The last lines of the log that came after `start` bytes, to end a sentence with."""
        try:
            with self._layout.log.open("rb") as log:
                size = log.seek(0, os.SEEK_END)
                if size < start:
                    start = 0  # it was rotated
                log.seek(max(start, size - _LOG_TAIL_BYTES))
                lines = log.read().decode(errors="replace").splitlines()
        except OSError:
            return ""
        return ":\n" + "\n".join(lines[-_LOG_TAIL_LINES:]) if lines else ""

    def _too_late(self, what: str) -> ServerError:
        return ServerError(
            f"no server within {self.start_timeout:g} s: {what}",
            hint="If it only needs longer, set TRACEKIT_POSTGRES_START_TIMEOUT (seconds). "
            f"The log is {self._layout.log}.",
        )


@contextlib.contextmanager
def _as_server_error(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise ServerError(f"{what}: {exc}") from exc


def _seconds(variable: str, default: float, given: float | None) -> float:
    if given is not None:
        return given
    text = os.environ.get(variable)
    if not text:
        return default
    try:
        return float(text)
    except ValueError as exc:
        raise ServerError(f"{variable}={text} is not a number of seconds") from exc


def _with_import_path() -> dict[str, str]:
    """The environment for a Python that finds this package also where it is not installed."""
    root = str(Path(__file__).parents[2])
    environment = dict(os.environ)
    if root not in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib")):
        before = environment.get("PYTHONPATH")
        environment["PYTHONPATH"] = os.pathsep.join([root, before] if before else [root])
    return environment

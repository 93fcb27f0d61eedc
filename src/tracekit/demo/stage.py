"""Where the demo plays: a directory, a configuration file, and processes, all gone at its end."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self, TypeVar

import httpx

from tracekit.errors import TracekitError
from tracekit.postgres import EmbeddedServer, ServerError

Found = TypeVar("Found")

START_S = 60.0
FOLLOW_S = 60.0
_LEAVE_S = 10.0

LEASE_S = 4
"""Of the demo's workers: short, so that a killed one's work is seen to come back. The default is 60."""

HOLDERS = {
    "alertmanager": ("alertmanager", "system", "observer"),
    "renee": ("android", "renee", "android"),
    "rob": ("terminal", "rob", "manual"),
}
"""Who holds a token: its surface, its principal, its origin."""


class StageError(TracekitError):
    """The demo cannot begin, or a process of it has gone."""


class Process:
    """A process of the demo. What it says goes to a file."""

    def __init__(self, name: str, command: list[str], log: Path, environment: Mapping[str, str]) -> None:
        self.name = name
        self.log = log
        with log.open("ab") as sink:
            # A group of its own: Ctrl-C reaches the demo, which ends the others in order.
            self._process = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                process_group=0,
            )

    @property
    def pid(self) -> int:
        """Its id."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._process.poll() is None

    def says(self, text: str) -> bool:
        """Whether it has logged this."""
        return text in self.log.read_text(errors="replace")

    def send(self, number: signal.Signals) -> None:
        """A signal, if it still runs."""
        if self.alive:
            self._process.send_signal(number)

    def kill(self) -> int:
        """`kill -9`; returns once it is gone, with the status that it left."""
        self.send(signal.SIGKILL)
        return self._process.wait(_LEAVE_S)

    def leave(self, deadline: float) -> None:
        """Wait for its end until `deadline` (monotonic), then kill it."""
        try:
            self._process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self.kill()


class Stage:
    """The directory and the processes, from `with` to its end."""

    def __init__(self, *, ntfy_url: str, keep: bool) -> None:
        self.keep = keep
        self.processes: list[Process] = []
        self.tokens = {holder: secrets.token_urlsafe(24) for holder in HOLDERS}
        self.house_token = secrets.token_urlsafe(24)
        self.port, self.house_port = _free_ports(2)
        self.directory = _make_directory()
        self.home = self.directory / "data"
        self.vault = self.directory / "vault"
        self.config = self.directory / "tracekit.toml"
        self.config.touch(0o600)
        self.config.write_text(self._toml(ntfy_url), encoding="utf-8")
        self.environment = {
            # The reader's own settings would lead to the reader's own database.
            **{
                name: value
                for name, value in os.environ.items()
                if not name.startswith("TRACEKIT_") or name.startswith("TRACEKIT_POSTGRES_")
            },
            "TRACEKIT_CONFIG": str(self.config),
            "PYTHONUNBUFFERED": "1",
        }
        # A proxy of the reader's is no way to this machine.
        for name in ("NO_PROXY", "no_proxy"):
            self.environment[name] = ",".join(filter(None, [os.environ.get(name), "127.0.0.1"]))
        self.environment.pop("TRACEPARENT", None)
        self._http = httpx.Client(timeout=10, trust_env=False)

    # --- processes ------------------------------------------------------------------------------------------------

    def start(self, name: str, *arguments: str) -> Process:
        """`python -m <arguments>`, beside this process."""
        log = self.directory / f"{name}.log"
        process = Process(name, [sys.executable, "-m", *arguments], log, self.environment)
        self.processes.append(process)
        return process

    def run(self, *arguments: str, stdout: IO[Any] | int | None = None, timeout: float = FOLLOW_S) -> tuple[int, str]:
        """`tracekit <arguments>` in the foreground: its exit code, and what it printed where `stdout` is a pipe.

        One that does not end in time is killed, and its code is -9.
        """
        with subprocess.Popen(
            [sys.executable, "-m", "tracekit", *arguments],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            text=True,
        ) as process:
            try:
                printed, _ = process.communicate(timeout=timeout)
            except subprocess.TimeoutExpired:
                process.kill()
                printed, _ = process.communicate()
            except BaseException:
                # Ctrl-C reached it too; it is given a moment to say its last word.
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(2)
                process.kill()
                raise
            return process.returncode, printed or ""

    def wait(
        self, what: str, look: Callable[[], Found | None], *, timeout: float, needs: tuple[Process, ...] = ()
    ) -> Found:
        """What `look` answers once that is true. Raises `StageError` if it never is, or if a process ends first."""
        deadline = time.monotonic() + timeout
        while True:
            if found := look():
                return found
            for process in needs:
                if not process.alive:
                    raise StageError(f"{process.name} ended before {what}{_tail(process.log)}")
            if time.monotonic() > deadline:
                raise StageError(f"not within {timeout:g} s: {what}")
            time.sleep(0.05)

    # --- HTTP -----------------------------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        """Of the ingress."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def house_url(self) -> str:
        """Of the stand-in for Home Assistant."""
        return f"http://127.0.0.1:{self.house_port}"

    def ask(self, method: str, path: str, holder: str | None = None, **what: Any) -> httpx.Response:
        """A request to the ingress, with somebody's token."""
        headers = {"Authorization": f"Bearer {self.tokens[holder]}"} if holder else {}
        headers |= what.pop("headers", {})
        url = path if path.startswith("http") else self.url + path
        return self._http.request(method, url, headers=headers, **what)

    def ready(self) -> bool:
        """Whether the ingress says so."""
        with contextlib.suppress(httpx.HTTPError):
            return self.ask("GET", "/readyz").status_code == 200
        return False

    def house_state(self, entity: str) -> str | None:
        """An entity's state, as the stand-in for Home Assistant tells it."""
        with contextlib.suppress(httpx.HTTPError):
            answer = self._http.get(
                f"{self.house_url}/api/states/{entity}", headers={"Authorization": f"Bearer {self.house_token}"}
            )
            if answer.status_code == 200:
                return str(answer.json()["state"])
        return None

    # --- the end --------------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with _uninterrupted():
            self._http.close()
            for process in self.processes:
                # One that is frozen hears nothing else.
                process.send(signal.SIGCONT)
                process.send(signal.SIGTERM)
            deadline = time.monotonic() + _LEAVE_S
            for process in self.processes:
                process.leave(deadline)
            with contextlib.suppress(ServerError):
                EmbeddedServer(self.home).stop(mode="fast" if self.keep else "immediate")
            if not self.keep:
                shutil.rmtree(self.directory, ignore_errors=True)

    def _toml(self, ntfy_url: str) -> str:
        text = f"""\
# Made by `tracekit demo`. To look around: export TRACEKIT_CONFIG={self.config}
home = "{self.home}"
vault = "{self.vault}"
log_format = "json"

[worker]
lease = {LEASE_S}            # the default is 60: here a killed worker's hop is to come back while you watch
heartbeat = 1
sweep_interval = 0.25
grace = 5

[ingress]
port = {self.port}

[home_assistant]     # a stand-in: `python -m tracekit.demo.home_assistant`
url = "{self.house_url}"
token = "{self.house_token}"

[prometheus]         # there is none here
url = ""

[ntfy]               # a stand-in: the demo's own process
url = "{ntfy_url}"
topic = "demo"
"""
        for holder, (surface, principal, origin) in HOLDERS.items():
            digest = hashlib.sha256(self.tokens[holder].encode()).hexdigest()
            text += f"""
[[tokens]]
surface = "{surface}"
principal = "{principal}"
origin = "{origin}"
sha256 = "{digest}"
"""
        return text


def _make_directory() -> Path:
    """A new directory with a short path: a socket's name has 103 bytes. As root, the server's user must get through."""
    base = Path("/tmp")
    directory = Path(
        tempfile.mkdtemp(prefix="tracekit-demo-", dir=base if os.access(base, os.W_OK | os.X_OK) else None)
    )
    if os.geteuid() == 0:
        directory.chmod(0o711)
    return directory


def _free_ports(count: int) -> list[int]:
    """Ports that nobody listens on. All are held until all are known, so that they differ."""
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in held:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in held]


def _tail(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines()[-15:]
    return ":\n" + "\n".join(lines) if lines else ""


@contextlib.contextmanager
def _uninterrupted() -> Any:
    """A second Ctrl-C does not leave half of it behind."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

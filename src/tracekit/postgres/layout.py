"""Where an embedded server keeps its things, and the modes that keep others out."""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from .account import Account
from .errors import ServerError

# sun_path holds 108 bytes with its closing zero on Linux; macOS has 104.
_LONGEST_SOCKET_PATH = 103
_SOCKET_NAME = "/.s.PGSQL.5432"


@dataclass(frozen=True)
class Layout:
    """The files of one embedded server."""

    home: Path

    @property
    def root(self) -> Path:
        """Everything of the server, apart from what else tracekit keeps in its home."""
        return self.home / "postgres"

    @property
    def data(self) -> Path:
        """PostgreSQL's data directory. It exists only when it is complete."""
        return self.root / "data"

    @property
    def log(self) -> Path:
        """What the server and its supervisor have to say."""
        return self.root / "server.log"

    @property
    def users_lock(self) -> Path:
        """Shared by every process that uses the server; exclusive to the supervisor while it stops it."""
        return self.root / "users.lock"

    @property
    def supervisor_lock(self) -> Path:
        """Exclusive to the supervisor, or to the process that is about to start it. Holds the supervisor's pid."""
        return self.root / "supervisor.lock"

    @property
    def keeper_lock(self) -> Path:
        """Exclusive to the keeper of `tracekit db start`. Holds the keeper's pid."""
        return self.root / "keeper.lock"

    @property
    def copies(self) -> Path:
        """Server programs, for a user that cannot reach the originals."""
        return self.root / "binaries"

    @property
    def socket_dir(self) -> Path:
        """Below the home, or in /tmp where that path would be too long for a socket.

        A comma is out as well: libpq takes it for a list of hosts. The path follows from the home alone, so that
        every process computes the same one, and a server that comes back is found where it was.
        """
        below = self.root / "socket"
        length = len(os.fsencode(below)) + len(_SOCKET_NAME)
        if length <= _LONGEST_SOCKET_PATH and "," not in str(below):
            return below
        digest = hashlib.sha256(os.fsencode(self.home)).hexdigest()[:16]
        return Path("/tmp") / f"tracekit-{digest}"

    def prepare(self, account: Account) -> None:
        """Makes the directories that are missing. No directory that was there before is changed.

        As root they let the server's user through but not see what is in them (0711); else they are private (0700).
        Raises ServerError where they cannot be made, or where the server's user cannot reach them.
        """
        mode = 0o711 if account.is_other else 0o700
        missing = [p for p in (self.root, *self.root.parents) if not p.exists()]
        try:
            for path in reversed(missing):
                path.mkdir(mode=mode, exist_ok=True)
                if account.is_other:
                    path.chmod(mode)  # a umask of 077 would shut the server's user out
        except OSError as exc:
            raise ServerError(
                f"cannot make {self.root}: {exc.strerror}",
                hint="Set TRACEKIT_HOME to a directory that this user can write to.",
            ) from exc
        if not os.access(self.root, os.W_OK | os.X_OK):
            raise ServerError(
                f"cannot write to {self.root}",
                hint="Run as its owner, or set TRACEKIT_HOME to a directory that this user can write to.",
            )
        if account.is_other and not account.can_enter(self.root):
            raise ServerError(
                f"the server runs as user {account.name}, who cannot reach {self.root}",
                hint="Set TRACEKIT_HOME to a directory whose parents are open to that user (mode o+x), such as "
                "/var/lib/tracekit; tracekit does not change the modes of directories that it did not make.",
            )

    def prepare_socket_dir(self, account: Account) -> None:
        """Makes the socket's directory, owned by the server's user and closed to everybody else.

        Raises ServerError if it is there and somebody else's: in /tmp, anybody could have made it.
        """
        path = self.socket_dir
        try:
            path.mkdir(mode=0o700)
            os.chown(path, account.uid, account.gid)
        except FileExistsError:
            pass
        info = path.lstat()
        if not stat.S_ISDIR(info.st_mode) or info.st_uid != account.uid or stat.S_IMODE(info.st_mode) & 0o077:
            raise ServerError(
                f"{path} is not a directory that belongs to user {account.name} alone",
                hint="Remove it, or set TRACEKIT_HOME to another directory.",
            )

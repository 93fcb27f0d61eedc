"""The system user that the server's processes run as."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from .errors import ServerError

# Used when tracekit runs as root, which PostgreSQL refuses to. No user is created.
_STAND_INS = ("postgres", "nobody")


@dataclass(frozen=True)
class Account:
    """A user, and whether it is another than the one that this process runs as."""

    uid: int
    gid: int
    name: str
    is_other: bool
    has_entry: bool = True

    @classmethod
    def for_data(cls, data: Path) -> Account:
        """The owner of the data if there is some; else this user, or a stand-in for root.

        Raises ServerError if the data belongs to somebody whom this process cannot run programs as.
        """
        euid = os.geteuid()
        try:
            owner = data.stat().st_uid
        except FileNotFoundError:
            return cls._stand_in() if euid == 0 else cls._of(euid)
        except OSError as exc:
            raise ServerError(f"cannot look at {data}: {exc.strerror}") from exc
        if euid == owner and euid != 0:
            return cls._of(euid)
        if euid != 0:
            raise ServerError(
                f"{data} belongs to user {_name(owner)}, and this is user {_name(euid)}",
                hint="Run tracekit as that user, or set TRACEKIT_HOME to a directory of your own.",
            )
        if owner == 0:
            raise ServerError(
                f"{data} belongs to root, and PostgreSQL does not run as root",
                hint="Give it to another user: chown -R postgres on that directory.",
            )
        return cls._of(owner)

    @classmethod
    def _of(cls, uid: int) -> Account:
        is_other = uid != os.geteuid()
        try:
            entry = pwd.getpwuid(uid)
        except KeyError:
            gid = uid if is_other else os.getegid()
            return cls(uid, gid, str(uid), is_other, has_entry=False)
        return cls(uid, entry.pw_gid if is_other else os.getegid(), entry.pw_name, is_other)

    @classmethod
    def _stand_in(cls) -> Account:
        for name in _STAND_INS:
            try:
                entry = pwd.getpwnam(name)
            except KeyError:
                continue
            if entry.pw_uid != 0:
                return cls._of(entry.pw_uid)
        raise ServerError(
            "PostgreSQL does not run as root, and there is no user to run it as",
            hint=f"Create a user named {_STAND_INS[0]}, or run tracekit as an ordinary user.",
        )

    def popen_options(self) -> dict[str, Any]:
        """Arguments to subprocess that make a program run as this user."""
        options: dict[str, Any] = {"cwd": "/", "env": _environment()}
        if self.is_other:
            options |= {"user": self.uid, "group": self.gid, "extra_groups": []}
        return options

    def run(
        self, command: list[str | Path], *, timeout: float, stdin: IO[Any] | str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Runs a program as this user, its output and its errors in `stdout`; raises OSError if it cannot be run."""
        source: dict[str, Any] = {"input": stdin} if isinstance(stdin, str) else {"stdin": subprocess.DEVNULL}
        return subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            errors="replace", timeout=timeout, check=False, **source, **self.popen_options(),
        )  # fmt: skip

    def can_enter(self, directory: Path) -> bool:
        """Asked of the kernel in the user's own name, so that ACLs and mount options count."""
        return self.run(["/bin/sh", "-c", 'cd -- "$1"', "sh", directory], timeout=10).returncode == 0

    def can_run(self, program: Path) -> bool:
        """Whether this user can reach and execute one of the server's programs."""
        try:
            return self.run([program, "--version"], timeout=10).returncode == 0
        except OSError:
            return False

    def naming_prefix(self) -> list[str]:
        """What to put before `initdb` and `postgres --single`, which insist on a name for their user.

        A user without an entry in /etc/passwd (containers run with a bare uid) borrows that of `nobody` inside a user
        namespace; the files come out with the real uid. The server itself asks for no name and runs without this.
        """
        if self.has_entry:
            return []
        unshare = shutil.which("unshare")
        try:
            nobody = pwd.getpwnam("nobody").pw_uid
        except KeyError:
            nobody = None
        if unshare and nobody is not None:
            prefix: list[str] = [unshare, "--user", f"--map-user={nobody}"]
            try:
                if self.run([*prefix, "true"], timeout=10).returncode == 0:
                    return prefix
            except OSError:
                pass
        raise ServerError(
            f"uid {self.uid} has no entry in /etc/passwd, which PostgreSQL needs to set up its data, and this system "
            "does not let it borrow one in a user namespace",
            hint=f"Add the entry to the image (useradd --uid {self.uid} tracekit), run as a user that has one, or give "
            "tracekit the DSN of a server that runs elsewhere.",
        )


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _environment() -> dict[str, str]:
    """This process's environment without what libpq and the server would take as settings."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("PG", "LC_", "LANG"))}

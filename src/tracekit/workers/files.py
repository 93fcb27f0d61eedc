"""Files that are there whole or not at all, whoever looks and whatever dies meanwhile."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path


def private_directory(path: Path) -> None:
    """Make `path` and what is missing above it, for the owner's eyes only. What is there keeps its mode: whoever made
    it has decided who may look.

    Raises `OSError`.
    """
    if not path.is_dir():
        private_directory(path.parent)
        path.mkdir(mode=0o700, exist_ok=True)


def write_whole(path: Path, content: bytes, *, mode: int = 0o666, replace: bool) -> None:
    """Write `path` in a directory that is there: under another name, synced, then put in place. `mode` is subject to
    the umask. Without `replace` a file that is there already stays, and of two writers the first one's counts.

    Raises `OSError`; the other name is gone then too.
    """
    # Not made from `path`: a name may be as long as names can be.
    new = path.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if replace:
            new.replace(path)
        else:
            with suppress(FileExistsError):
                os.link(new, path)
    finally:
        new.unlink(missing_ok=True)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)

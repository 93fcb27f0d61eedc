"""Workarounds in checkouts: comments that say what they wait for, and where.

A workaround is a comment of this form, in any text file that git tracks::

    # workaround: https://github.com/owner/project/issues/12 — remove when closed

`#`, `//`, `--`, `;`, `/*`, `*` and `<!--` begin it, and the dash may be `—`, `–`, `-` or `--`. What its condition may
say is for `tracekit.workers.upstream` to know.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import stat
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import structlog

from tracekit.errors import TracekitError
from tracekit.queue.payload import plain_text
from tracekit.tracing.secrets import redact_text

log = structlog.get_logger()

MAX_FILE = 1_048_576
"""Bytes of a file that is read; a larger one is no source that anybody comments."""
MOST_FILES = 100_000
"""Files of one checkout that are looked at."""
GIT_TIMEOUT = 60
"""Seconds for one call of git."""

_WORKAROUND = re.compile(
    r"(?:\#|//|--|;|/\*|\*|<!--)\s*workaround:\s*(?P<url>https?://\S+?)\s*(?:\s--?|—|–)\s*remove\s+when\s+"
    r"(?P<condition>.+?)\s*(?:\*/|-->)?\s*$",
    re.IGNORECASE,
)


class CheckoutError(TracekitError):
    """A checkout cannot be read."""


@dataclass(frozen=True, slots=True)
class Workaround:
    """A workaround in one file: every line of it that has the same address and condition."""

    repository: str
    """What the checkout is a clone of, or its directory's name. For people."""
    file: str
    lines: tuple[int, ...]
    url: str
    condition: str

    @property
    def key(self) -> str:
        """Names it wherever the checkout lies, and whatever line it moves to."""
        identity = json.dumps([self.url, self.condition.lower(), self.file], ensure_ascii=False)
        return f"workaround:{hashlib.sha256(identity.encode()).hexdigest()[:40]}"

    @property
    def places(self) -> str:
        """`file:line`, as editors take it; further lines after commas."""
        listed = ",".join(map(str, self.lines[:20])) + (",…" if len(self.lines) > 20 else "")
        return f"{plain_text(self.file, 500)}:{listed}"


def in_text(text: str) -> Iterator[tuple[int, str, str]]:
    """Line number, address and condition of each workaround in a file's text."""
    for number, line in enumerate(text.split("\n"), 1):
        if len(line) <= 2_000 and (found := _WORKAROUND.search(line)):
            yield number, found["url"].rstrip(".,;"), " ".join(found["condition"].split())[:200].rstrip(".")


async def find_workarounds(checkout: Path) -> list[Workaround]:
    """The workarounds in a checkout's tracked files. Raises `CheckoutError`."""
    root = _root(checkout)
    listed = await _git(root, "ls-files", "-z", "--cached")
    names = [os.fsdecode(name) for name in listed.split(b"\0") if name]
    if len(names) > MOST_FILES:
        log.warning("watcher.too_many_files", files=len(names), looked_at=MOST_FILES)
    repository = await _repository(root)
    return await asyncio.to_thread(_scan, root, names[:MOST_FILES], repository)


def _root(checkout: Path) -> Path:
    root = checkout.expanduser().absolute()
    if not root.is_dir():
        raise CheckoutError(f"there is no checkout at {root}", hint="check `checkouts`")
    return root


def _scan(root: Path, names: Iterable[str], repository: str) -> list[Workaround]:
    found: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    for name in names:
        raw = _read(root / name)
        if b"workaround:" not in raw.lower() or b"\0" in raw:
            continue
        shown = name.encode(errors="replace").decode()
        for line, url, condition in in_text(raw.decode(errors="replace")):
            found[shown, plain_text(url, 500), plain_text(condition, 200)].append(line)
    return [
        Workaround(repository, file, tuple(lines), url, condition) for (file, url, condition), lines in found.items()
    ]


def _read(path: Path) -> bytes:
    """A regular file's bytes; nothing of links, devices, directories, large files and files that have gone."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return b""
    with os.fdopen(descriptor, "rb") as file:
        state = os.fstat(file.fileno())
        return file.read(MAX_FILE) if stat.S_ISREG(state.st_mode) and state.st_size <= MAX_FILE else b""


async def _repository(root: Path) -> str:
    try:
        remote = (await _git(root, "config", "--get", "remote.origin.url")).decode(errors="replace").strip()
    except CheckoutError:
        return root.name
    return plain_text(redact_text(remote).removesuffix(".git"), 300) or root.name


async def _git(root: Path, *arguments: str) -> bytes:
    # A checkout's own configuration may name programs to run: none of them is wanted for reading.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        process = await asyncio.create_subprocess_exec(
            *("git", "-C", str(root), "-c", "core.fsmonitor=false", *arguments),
            env={**environment, "GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
    except OSError as error:
        raise CheckoutError(f"git cannot be started: {error.strerror}", hint="install git") from None
    try:
        async with asyncio.timeout(GIT_TIMEOUT):
            out, told = await process.communicate()
    except TimeoutError:
        raise CheckoutError(f"git took longer than {GIT_TIMEOUT} s in {root}") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        said = " ".join(told.decode(errors="replace").split())[:300]
        raise CheckoutError(f"git cannot read {root}: {said}", hint="is it a git checkout that belongs to this user?")
    return out

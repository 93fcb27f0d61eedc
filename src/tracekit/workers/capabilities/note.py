"""`note.write`: a Markdown file below the notes directory. It never replaces one that says something else."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator

from tracekit.queue.model import Json
from tracekit.workers.capabilities import Capability, Refused, Unavailable
from tracekit.workers.files import private_directory, write_whole
from tracekit.workers.mode import Hop

LONGEST = 65_536
_PART = re.compile(r"[^\s./\\\x00-\x1f\x7f][^/\\\x00-\x1f\x7f]*")
"""Of a path: no hidden file, no `.` and `..`, nothing that another system reads as a separator."""


class Note(BaseModel):
    """A text and where it goes."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    path: Annotated[str, StringConstraints(min_length=4, max_length=200)]
    """Below the notes directory, with `/` between folders; ends in `.md`."""
    text: Annotated[str, Field(min_length=1, max_length=LONGEST)]

    @field_validator("path")
    @classmethod
    def _inside(cls, value: str) -> str:
        if not value.endswith(".md"):
            raise ValueError("must end in .md")
        if not all(_PART.fullmatch(part) for part in value.split("/")):
            raise ValueError("must be a relative path without hidden, empty or '..' parts")
        return value


class WriteNote(Capability[Note]):
    """Writes a note."""

    name = "note.write"
    arguments_type = Note

    def describe(self, arguments: Note) -> str:
        """The path and the text."""
        return f"write the note {arguments.path}: {' '.join(arguments.text.split())}"

    def brief(self, arguments: Note) -> str:
        """The path; the text is in the note."""
        return f"write the note {arguments.path}"

    def category(self, arguments: Note) -> str:
        """`note`."""
        return "note"

    def destructive(self, arguments: Note) -> bool:
        """Never: it adds a file, and refuses to replace another."""
        return False

    def repeatable(self, arguments: Note) -> bool:
        """Yes: the same text under the same name is the same note."""
        return True

    def expect(self, arguments: Note) -> dict[str, Json]:
        """The text's hash."""
        return {"sha256": _hash(arguments.text.encode())}

    async def run(self, hop: Hop[Any], arguments: Note, idempotency_key: str) -> Json:
        """Write it, whole or not at all."""
        await asyncio.to_thread(_write, hop.services.settings.notes_dir, arguments)
        return {"path": arguments.path}

    async def observe(
        self, hop: Hop[Any], arguments: Note, expect: Mapping[str, Json], result: Json
    ) -> dict[str, Json]:
        """The hash of what is in the file."""
        return await asyncio.to_thread(_read, hop.services.settings.notes_dir, arguments)


def _target(root: Path, note: Note, *, make: bool) -> Path:
    """The file, in a folder that really lies below `root`, whatever links there are on the way."""
    path = root.joinpath(*PurePosixPath(note.path).parts)
    if make:
        private_directory(path.parent)
    if not path.parent.resolve().is_relative_to(root.resolve()):
        raise Refused(f"the note {note.path} would lie outside the notes directory")
    return path


def _write(root: Path, note: Note) -> None:
    content = note.text.encode()
    try:
        # A link that leads out is found before anything is made behind it.
        existing = root.joinpath(*PurePosixPath(note.path).parts).parent
        while not existing.exists() and existing != root:
            existing = existing.parent
        if existing.exists() and not existing.resolve().is_relative_to(root.resolve()):
            raise Refused(f"the note {note.path} would lie outside the notes directory")
        path = _target(root, note, make=True)
        write_whole(path, content, replace=False)
        if path.is_symlink() or not path.is_file() or path.read_bytes() != content:
            raise Refused(f"there is another note {note.path} already, and it says something else")
    except (FileExistsError, NotADirectoryError):
        raise Refused(f"a folder of {note.path} is a file") from None
    except OSError as error:
        raise Unavailable(f"the note {note.path} cannot be written: {error.strerror}", hint="check `notes`") from None


def _read(root: Path, note: Note) -> dict[str, Json]:
    try:
        path = _target(root, note, make=False)
        if path.is_symlink() or path.stat().st_size > 4 * LONGEST:
            return {note.path: {"sha256": None}}
        return {note.path: {"sha256": _hash(path.read_bytes())}}
    except (FileNotFoundError, NotADirectoryError, Refused):
        return {note.path: {"sha256": None}}
    except OSError as error:
        raise Unavailable(f"the note {note.path} cannot be read: {error.strerror}", hint="check `notes`") from None


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()

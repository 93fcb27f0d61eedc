"""Personas: the characters that modes take on, as Markdown files with YAML front matter.

The format is that of Claude Code's agents: `name`, `description`, `tools` and `model` in front, the system prompt as
the body. Other keys in front are let through, since those files serve other programs too.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from tracekit.config import ConfigError
from tracekit.envelope import Name, Text

MAX_FILE = 262_144
"""Bytes of a persona's file."""

_FENCE = "---"


class PersonaError(ConfigError):
    """A persona file that cannot be used; the message names the file."""


class Persona(BaseModel):
    """A character. One that has no file has only its name."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    name: Name
    """As hops carry it, and log lines and spans with them."""
    description: Annotated[Text, Field(max_length=4_000)] = ""
    tools: tuple[Annotated[Text, Field(min_length=1, max_length=200)], ...] | None = None
    """What it may use. None: the file does not say, and nothing is narrowed."""
    model: Annotated[Text, Field(max_length=200)] | None = None
    """Which model it asks for. None: whichever is configured."""
    prompt: Text = ""
    """The system prompt."""

    @field_validator("tools", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        """`Read, Grep` is the same as a list of the two."""
        return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


class Personas:
    """The personas of a directory, by name."""

    def __init__(self, known: Mapping[str, Persona]) -> None:
        self._known = dict(known)

    @classmethod
    def load(cls, directory: Path | None) -> Personas:
        """All `*.md` files of `directory`; None has none. Raises `PersonaError`, which lists every file's fault."""
        if directory is None:
            return cls({})
        directory = directory.expanduser()
        if not directory.is_dir():
            raise PersonaError(f"there is no directory of personas at {directory}", hint="set `personas`, or leave it")
        known: dict[str, Persona] = {}
        files: dict[str, str] = {}
        faults = []
        for file in sorted(directory.glob("*.md")):
            try:
                persona = read_persona(file)
            except PersonaError as error:
                faults.append(str(error))
                continue
            if persona.name in known:
                faults.append(f"{file.name}: {files[persona.name]} has the name {persona.name!r} already")
                continue
            known[persona.name] = persona
            files[persona.name] = file.name
        if faults:
            raise PersonaError(
                f"personas in {directory} cannot be used: " + "; ".join(faults),
                hint="a persona is Markdown with a YAML front matter that has at least a name",
            )
        return cls(known)

    def get(self, name: str) -> Persona:
        """The persona of a name; one that nobody described has only its name. Raises `PersonaError` for no name."""
        if name in self._known:
            return self._known[name]
        try:
            return Persona(name=name)
        except ValidationError:
            raise PersonaError(f"{name[:100]!r} cannot be a persona's name", hint="lower case, digits, - . _") from None

    @property
    def names(self) -> list[str]:
        """Those that have a file."""
        return sorted(self._known)


def read_persona(file: Path) -> Persona:
    """The persona in `file`. Raises `PersonaError` that begins with the file's name."""
    try:
        with file.open("rb") as opened:
            raw = opened.read(MAX_FILE + 1)
        if len(raw) > MAX_FILE:
            raise PersonaError(f"{file.name}: is larger than {MAX_FILE} bytes")
        text = raw.decode("utf-8-sig").replace("\r\n", "\n")
    except OSError as error:
        raise PersonaError(f"{file.name}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise PersonaError(f"{file.name}: is not UTF-8") from None
    front, prompt = _parts(file.name, text)
    try:
        return Persona.model_validate({**front, "prompt": prompt.strip()})
    except ValidationError as error:
        faults = ", ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
        raise PersonaError(f"{file.name}: {faults}") from None


def _parts(name: str, text: str) -> tuple[dict[str, Any], str]:
    lines = text.split("\n")
    fences = [number for number, line in enumerate(lines) if line.rstrip() == _FENCE]
    if not fences or fences[0] != 0:
        raise PersonaError(f"{name}: has no front matter: its first line must be {_FENCE}")
    if len(fences) < 2:
        raise PersonaError(f"{name}: its front matter has no end: a second line of {_FENCE}")
    try:
        front = yaml.safe_load("\n".join(lines[1 : fences[1]]))
    except yaml.MarkedYAMLError as error:
        where = f" in line {error.problem_mark.line + 2}" if error.problem_mark else ""
        raise PersonaError(f"{name}: its front matter is not YAML{where}: {error.problem}") from None
    except (yaml.YAMLError, RecursionError):
        raise PersonaError(f"{name}: its front matter is not YAML") from None
    if not isinstance(front, dict):
        raise PersonaError(f"{name}: its front matter must be a mapping, such as `name: butler`")
    return {str(key): value for key, value in front.items()}, "\n".join(lines[fences[1] + 1 :])

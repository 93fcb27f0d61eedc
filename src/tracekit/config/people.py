"""Who may ask, and the credentials by which they are known."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from tracekit.config.section import Section
from tracekit.envelope import Name, Origin

Role = Literal["operator", "household", "system"]


class Principal(Section):
    """Someone who may ask: an `operator` decides and sees everything, a `household` member gets plain words, a `system`
    is a program.
    """

    role: Role


class Token(Section):
    """A credential, bound to a surface, a principal and an origin. Kept as a hash, or in a variable or a file."""

    surface: Name
    principal: Name
    origin: Origin = Origin.MANUAL
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    """Hash of the token (`tracekit token` makes both)."""
    env: str | None = None
    """Environment variable that holds the token itself."""
    file: Path | None = None
    """File that holds the token itself, and nothing else."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.sha256, self.env, self.file).count(None) != 2:
            raise ValueError("give one of sha256, env and file")
        return self

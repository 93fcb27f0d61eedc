"""`rollup.write`: a week as a note in the vault. It never writes over what a person has changed."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, field_validator

from tracekit.queue.model import Json
from tracekit.workers.capabilities import Capability, Refused, Unavailable
from tracekit.workers.mode import Hop
from tracekit.workers.rollup import ChangedByHand, roll_up, write_rollup
from tracekit.workers.vault import VaultError
from tracekit.workers.week import NoSuchWeek, Week

_NOTE = "the roll-up"


class RollUp(BaseModel):
    """Which week."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    week: str | None = None
    """Such as `2026-W47`. None: the last one that is over."""

    @field_validator("week")
    @classmethod
    def _is_one(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                Week.parse(value)
            except NoSuchWeek as error:
                raise ValueError(f"{error}; {error.hint}") from None
        return value


class WriteRollup(Capability[RollUp]):
    """Writes a week's roll-up."""

    name = "rollup.write"
    arguments_type = RollUp

    def describe(self, arguments: RollUp) -> str:
        """Which week."""
        return f"write the roll-up of {f'the week {arguments.week}' if arguments.week else 'the last week'}"

    def category(self, arguments: RollUp) -> str:
        """`rollup`."""
        return "rollup"

    def destructive(self, arguments: RollUp) -> bool:
        """Never: it replaces nothing but what it wrote itself."""
        return False

    def repeatable(self, arguments: RollUp) -> bool:
        """Yes: it is the same note."""
        return True

    def expect(self, arguments: RollUp) -> dict[str, Json]:
        """That it lies there."""
        return {"written": True}

    async def run(self, hop: Hop[Any], arguments: RollUp, idempotency_key: str) -> Json:
        """Write it, whole or not at all."""
        settings = hop.services.settings
        try:
            week, text = await roll_up(
                hop.services.queue, settings, Week.parse(arguments.week) if arguments.week else None
            )
            written = await asyncio.to_thread(write_rollup, settings.vault_dir, week, text)
        except (ChangedByHand, NoSuchWeek) as error:
            raise Refused(str(error), hint=error.hint) from None
        except VaultError as error:
            raise Unavailable(str(error), hint=error.hint) from None
        return {"path": str(written.path), "sha256": written.sha256, "changed": written.changed}

    async def observe(
        self, hop: Hop[Any], arguments: RollUp, expect: Mapping[str, Json], result: Json
    ) -> dict[str, Json]:
        """Whether the note is the one that was written."""
        if not isinstance(result, dict):
            return {_NOTE: {"written": False}}
        path = hop.services.settings.vault_dir / str(result.get("path"))
        try:
            digest = hashlib.sha256(await asyncio.to_thread(path.read_bytes)).hexdigest()
        except FileNotFoundError:
            digest = ""
        except OSError as error:
            raise Unavailable(f"the roll-up cannot be read: {error.strerror}", hint="check `vault`") from None
        return {_NOTE: {"written": digest == result.get("sha256")}}

"""The vault: where in it a note lies, which is the same for ever."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from tracekit.errors import TracekitError
from tracekit.workers.week import Week


class VaultError(TracekitError):
    """A note cannot be written. Tried again: a full disk may be given room."""


def summary_path(task_id: str, created_at: datetime) -> Path:
    """A task's summary: `<YYYY>/<MM>/<date>-<task id>.md`, dated by the task's acceptance (UTC)."""
    day = created_at.astimezone(UTC)
    return Path(f"{day:%Y}", f"{day:%m}", f"{day:%Y-%m-%d}-{task_id}.md")


def rollup_path(week: Week) -> Path:
    """A week's roll-up: `<year>/weekly/<year>-W<nn>.md`."""
    return Path(f"{week.year:04}", "weekly", f"{week}.md")

"""Whose call it is."""

from __future__ import annotations

from dataclasses import dataclass

from tracekit.envelope import Priority
from tracekit.queue import Position


@dataclass(frozen=True, slots=True)
class Spender:
    """Whose call it is: one attempt of a task, under its lease."""

    task_id: str
    hop: int
    attempt: int
    mode: str
    persona: str | None
    requester: str
    origin: str
    token: int = 0
    urgent: bool = False

    @classmethod
    def of(cls, at: Position) -> Spender:
        """The attempt of a claim."""
        urgent = at.priority is Priority.URGENT
        return cls(at.task_id, at.hop, at.attempt, at.mode, at.persona, at.requester, at.origin, at.token, urgent)

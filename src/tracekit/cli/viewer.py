"""What a person is shown: plain characters only, and of a restricted task no content unless they are the operator."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from tracekit.config import Role
from tracekit.queue.deadletters import DeadLetter
from tracekit.queue.tasks import Event, Task
from tracekit.workers.words import printable

__all__ = ["HIDDEN", "Viewer", "one_line", "printable"]

HIDDEN = "(restricted)"

_CONTENT = frozenset({"summary", "reason", "step"})
"""Fields of an event that quote what the task is about. Of an error the type stays."""


def one_line(text: str) -> str:
    """The same in one line."""
    return " ".join(printable(text).split())


@dataclass(frozen=True, slots=True)
class Viewer:
    """Who looks, and in what role."""

    principal: str
    role: Role

    def sees(self, data_tier: str) -> bool:
        """Whether content of this tier is shown to them."""
        return self.role == "operator" or data_tier != "restricted"

    def task(self, task: Task) -> Task:
        """The task as they may see it."""
        if self.sees(task.data_tier):
            return task
        return dataclasses.replace(task, intent=HIDDEN, summary=HIDDEN if task.summary else None, tags=[])

    def event(self, task: Task, event: Event) -> Event:
        """A line of the task's record as they may see it."""
        if self.sees(task.data_tier):
            return event
        data = {name: HIDDEN if name in _CONTENT else value for name, value in event.data.items()}
        if isinstance(error := data.get("error"), dict):
            data["error"] = {"type": error.get("type"), "message": HIDDEN}
        return dataclasses.replace(event, data=data)

    def dead_letter(self, entry: DeadLetter) -> DeadLetter:
        """An entry of the DLQ as they may see it. It does not know its task's tier: only the operator sees content."""
        if self.role == "operator":
            return entry
        return dataclasses.replace(entry, intent=HIDDEN, error=HIDDEN if entry.error else None)

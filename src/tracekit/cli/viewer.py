"""What a person is shown: plain characters only, and of a restricted task no content unless they are the operator."""

from __future__ import annotations

import dataclasses
import unicodedata
from dataclasses import dataclass

from tracekit.config import Role
from tracekit.queue.deadletters import DeadLetter
from tracekit.queue.tasks import Event, Task

HIDDEN = "(restricted)"

_CONTENT = frozenset({"summary", "reason", "step"})
"""Fields of an event that quote what the task is about. Of an error the type stays."""


def printable(text: str) -> str:
    """`text` without what a terminal would obey: control characters and directional overrides. Newlines stay."""
    return "".join(
        character
        if character == "\n" or unicodedata.category(character) not in ("Cc", "Cf", "Cs")
        else "\N{REPLACEMENT CHARACTER}"
        for character in text.replace("\t", " ").replace("\u200d", "")
    )


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
